"""Files of open_clip: what is written and read gives what its towers give."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from random import Random

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nas.cli import main
from nas.data import load_data
from nas.errors import UsageError, WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.text.encoder import TextEncoder
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower
from nas.training.objectives.clip import Clip
from nas.training.open_clip import image_tower, read_texts, write_open_clip
from nas.training.pretrained import load_weights
from nas.training.recipe import Recipe
from nas.training.train import train
from search_spaces import vit


class Block(nn.Module):
    def __init__(self, width, heads, hidden, eps):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = nn.MultiheadAttention(width, heads)
        layers = OrderedDict(
            c_fc=nn.Linear(width, hidden), gelu=nn.GELU(), c_proj=nn.Linear(hidden, width)
        )
        self.mlp = nn.Sequential(layers)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


TEXTS = ["a bag", "A Sneaker at the top left, really?!", "what!ever", "日本 🎈", "", "x " * 60]


def behind(tokens, end):
    """Where rows of tokens have an end already."""
    return (tokens == end).long().cumsum(1) - (tokens == end).long() > 0


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Tower(nn.Module):
    """The image tower of CLIP as its authors wrote it, with open_clip's two options that we use."""

    def __init__(self, image_size, patch_size, width, layers, head_width, mlp_ratio, embed_dim,
                 no_ln_pre=False, norm_kwargs=None, quick=False):  # fmt: skip
        super().__init__()
        eps = (norm_kwargs or {}).get("eps", 1e-5)
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        grid = image_size // patch_size
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.ln_pre = nn.Identity() if no_ln_pre else nn.LayerNorm(width, eps=eps)
        blocks = [
            Block(width, width // head_width, int(width * mlp_ratio), eps) for _ in range(layers)
        ]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        if quick:
            for block in blocks:
                block.mlp.gelu = QuickGELU()
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) / width**0.5)

    def forward(self, images):
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding).permute(1, 0, 2)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[0]) @ self.proj


def moved(module, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return module.eval()


def encoder_of(embedding=6):
    tokenizer = Tokenizer.trained(["a photo of a bag", "a sneaker at the top left"] * 3)
    sizes = TextSizes(tokenizer.vocabulary, tokenizer.context, 16, 2, 2, embedding)
    return TextEncoder(tokenizer, moved(TextTower(sizes), 1))


def fits(architecture, width_of_a_head=4):
    (stage,) = architecture.stages
    return all(
        block.heads * width_of_a_head <= stage.width
        and not block.sparsity
        and block.precision == "fp32"
        for block in stage.blocks
    )


def dense():
    space = load_space("vit:debug", Embedding(6))
    return space.restrict("sparsity", 0).restrict("precision", "fp32")


def test_a_network_that_is_written_is_an_image_tower_of_open_clip(tmp_path):
    space, encoder = dense(), encoder_of()
    drawn = {space.draw(Random(seed)) for seed in range(60)}
    sizes = {
        a
        for a in drawn
        if fits(a) and len({(b.heads, b.mlp_ratio) for b in a.stages[0].blocks}) > 1
    }
    assert len(sizes) > 3  # of several sizes within a network, which open_clip has not
    for architecture in sorted(sizes, key=lambda a: a.id)[:4]:
        network = moved(Network(space, architecture))
        assert write_open_clip(network, encoder, (0.15,), (0.25,), tmp_path) < 1e-5
        config = json.loads((tmp_path / "open_clip_config.json").read_text())
        model, tensors = config["model_cfg"], load_file(tmp_path / "open_clip_model.safetensors")
        tower = Tower(**model["vision_cfg"], embed_dim=model["embed_dim"]).eval()
        own = {k.removeprefix("visual."): v for k, v in tensors.items() if k.startswith("visual.")}
        tower.load_state_dict(own)
        images = torch.randn(2, *space.example(architecture))
        with torch.no_grad():
            assert (tower(images) - network(images)).abs().max() < 2e-5
        assert config["preprocess_cfg"]["mean"] == [0.15] * 3
        again = read_texts(tmp_path)
        assert torch.equal(again.embed(["a bag"]), encoder.embed(["a bag"]))


@pytest.mark.parametrize("quick", [False, True])
def test_an_image_tower_of_clip_is_read_by_its_names(quick):
    form = vit.QUICK if quick else vit.CLIP
    entry = vit.model(8, 32, 3, 4, 48, clip=form)
    space = SearchSpace("vit:test", *entry, Embedding(6))
    tower = moved(Tower(48, 8, 32, 3, 8, 4.0, 6, quick=quick))
    texts = {k: v for k, v in encoder_of().tower.state_dict().items()}
    checkpoint = {f"visual.{k}": v for k, v in tower.state_dict().items()} | texts
    network = Network.empty(space, space.largest)
    assert load_weights(network, checkpoint) == []
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert (network(images) - tower(images)).abs().max() < 2e-5
    assert image_tower({"patch_embed.proj.weight": 1}) == {"patch_embed.proj.weight": 1}


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit_base_patch32_clip_224", 151_277_313), ("vit_base_patch16_clip_224", 149_620_737)],
)
def test_both_towers_have_as_many_parameters_as_published(name, published):
    with torch.device("meta"):
        space = load_space(name, Embedding(512))
        image = Network(space, space.largest)
        text = TextTower(TextSizes(49_408, 77, 512, 12, 8, 512))
    bias = 512  # of our projection, which is zero where they have none
    found = sum(p.numel() for part in (image, text) for p in part.parameters())
    assert found - bias == published


def test_a_checkpoint_with_another_projection_is_refused_and_its_text_tower_gives_the_size(
    tmp_path,
):
    write_open_clip(
        moved(Network(dense(), dense().largest)), encoder_of(6), (0.1,), (0.2,), tmp_path
    )
    assert Clip.task(Classification(10), text=str(tmp_path)) == Embedding(6)
    space = SearchSpace("vit:test", *vit.model(8, 32, 3, 4, 48, clip=vit.CLIP), Embedding(9))
    tower = moved(Tower(48, 8, 32, 3, 8, 4.0, 6))
    checkpoint = {f"visual.{k}": v for k, v in tower.state_dict().items()}
    network = Network(space, space.largest)
    assert load_weights(network, checkpoint) == ["head.fc.weight", "head.fc.bias"]  # which is said
    with pytest.raises(
        WeightsError, match=r"head\.weight has the shape 6x32, head\.fc\.weight needs 9x32"
    ):
        load_weights(network, checkpoint, new_head=False)


@pytest.mark.parametrize("words", ["text", "frozen"])
def test_training_starts_from_a_text_tower_or_leaves_it_as_it_is(tmp_path, words):
    network, encoder = moved(Network(dense(), dense().largest)), encoder_of()
    write_open_clip(network, encoder, (0.15,), (0.25,), tmp_path / "open")
    recipe = Recipe(images=(0, 4, 0), batches=(4, 4, 4), subnets={})
    out = train("vit:debug", load_data("scenes:captions"), tmp_path / "out", recipe,
                objective=f"clip,{words}={tmp_path / 'open'}")  # fmt: skip
    before, after = encoder.tower.state_dict(), TextEncoder.load(out).tower.state_dict()
    same = [
        torch.equal(before[name].half().float(), after[name])
        for name in before
        if name != "logit_scale"
    ]
    assert all(same) if words == "frozen" else not any(same[:3])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json beside"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read"),
        (
            lambda folder: save_file({"a": torch.zeros(2)}, folder / "open_clip_model.safetensors"),
            "no text tower",
        ),
    ],
)
def test_text_towers_that_cannot_be_read_say_why(tmp_path, spoil, message):
    network = moved(Network(dense(), dense().largest))
    write_open_clip(network, encoder_of(), (0.15,), (0.25,), tmp_path)
    spoil(tmp_path)
    with pytest.raises(WeightsError, match=message) as error:
        read_texts(tmp_path)
    assert error.value.fix


@pytest.mark.parametrize("name", ["swin:debug", "vit:debug"])
def test_networks_that_open_clip_has_no_place_for_say_why(tmp_path, name):
    space = load_space(name, Embedding(6))
    if name == "vit:debug":
        space = space.restrict("sparsity", 50)
    with pytest.raises(UsageError, match="no place for this network"):
        write_open_clip(Network(space, space.largest), encoder_of(), (0.5,), (0.5,), tmp_path)


def test_an_architecture_is_exported_by_the_command_line(tmp_path, capsys):
    recipe = Recipe(images=(0, 8, 0), batches=(4, 4, 4), subnets={})
    words = train(
        "vit:debug", load_data("scenes:captions"), tmp_path / "words", recipe, objective="clip"
    )
    architecture = next(a for a in map(dense().draw, map(Random, range(99))) if fits(a))
    command = ["export", architecture.to_json(), "--space", "vit:debug", "--supernet", str(words),
               "--data", "scenes:captions", "--out", str(tmp_path / "out"), "--format", "open-clip"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert "open_clip_model.safetensors" in capsys.readouterr().out.replace("\n", "")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {
        "open_clip_model.safetensors",
        "open_clip_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    command[command.index(str(words))] = ""
    with pytest.raises(SystemExit):
        main([*command[:-2], "--format", "open-clip", "--space", "efficientvit:micro"])


def test_open_clip_itself_reads_the_files(tmp_path):
    import timm_models  # noqa: F401  (defines two operators that torchvision lacks here)

    open_clip = pytest.importorskip("open_clip")
    logging.getLogger().setLevel(logging.ERROR)
    space, encoder = dense(), encoder_of()
    network = moved(Network(space, space.largest))
    write_open_clip(network, encoder, (0.15,), (0.25,), tmp_path)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    images = torch.randn(2, *space.example(space.largest))
    tokens, _ = encoder.tokenizer.encode(TEXTS)
    with torch.no_grad():
        assert (model.eval().encode_image(images) - network(images)).abs().max() < 2e-5
        assert (model.encode_text(tokens) - encoder.tower(tokens)).abs().max() < 2e-5
    pytest.importorskip("transformers")  # by which open_clip reads any tokens but OpenAI's
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    ends = encoder.tokenizer.vocabulary - 1
    assert theirs.masked_fill(behind(theirs, ends), 0).tolist() == tokens.tolist()
    with torch.no_grad():
        assert (model.encode_text(theirs) - encoder.tower(tokens)).abs().max() < 2e-5


def test_the_files_of_tokens_are_read_by_their_library_and_give_the_same_rows(tmp_path):
    network, encoder = moved(Network(dense(), dense().largest)), encoder_of()
    write_open_clip(network, encoder, (0.15,), (0.25,), tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())
    library.enable_truncation(named["model_max_length"])
    rows, _ = encoder.tokenizer.encode(TEXTS)
    ends = library.token_to_id(named["eos_token"])
    for text, row in zip(TEXTS, rows.tolist()):
        assert library.encode(text).ids == row[: row.index(ends) + 1]
