"""CLIP: text tower, tokens and prompts against independent arithmetic, and the objective."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, logsumexp

from nas.cli import main
from nas.data import Split, load_data
from nas.errors import RunError, UsageError, VitnasError, WeightsError
from nas.evaluation.retrieval import recalls
from nas.families import load_space
from nas.network.network import Network
from nas.report.training import report_training
from nas.tasks.classification import Classification
from nas.text.encoder import TextEncoder
from nas.text.packed import packed
from nas.text.prompts import TEMPLATES, checked_labels, classifier_of, phrase_of
from nas.text.tokens import END, START, Tokenizer
from nas.text.tower import TextSizes, TextTower
from nas.training.objectives.clip import SIZE, Clip, shared, texts_in
from nas.training.recipe import Recipe
from nas.training.train import check_training, train

TEXTS = [
    "a photo of a sneaker",
    "a small bag at the left",
    "there is a coat among clutter",
    "a bag",
]
SMALL = TextSizes(vocabulary=70, context=9, width=24, depth=3, heads=4, embedding=10)


def tower_of(sizes, seed=0):
    torch.manual_seed(seed)
    tower = TextTower(sizes).eval()
    with torch.no_grad():
        for weight in tower.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    return tower


def layer_norm(x, state, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def by_hand(tower, tokens):
    """The embedding of one text, token by token, in float64 NumPy."""
    sizes = tower.sizes
    state = {k: v.double().numpy() for k, v in tower.state_dict().items()}
    end = int(np.argmax(tokens))
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][: len(tokens)]
    for i in range(sizes.depth):
        at = f"transformer.resblocks.{i}"
        y = layer_norm(x, state, f"{at}.ln_1")
        q, k, v = np.split(
            y @ state[f"{at}.attn.in_proj_weight"].T + state[f"{at}.attn.in_proj_bias"], 3, axis=1
        )
        mixed, d = np.zeros_like(x), sizes.width // sizes.heads
        for h in range(sizes.heads):
            own = slice(h * d, (h + 1) * d)
            for t in range(len(tokens)):  # looks back, and never ahead
                logits = k[: t + 1, own] @ q[t, own] / math.sqrt(d)
                mixed[t, own] = np.exp(logits - logsumexp(logits)) @ v[: t + 1, own]
        x = x + mixed @ state[f"{at}.attn.out_proj.weight"].T + state[f"{at}.attn.out_proj.bias"]
        y = layer_norm(x, state, f"{at}.ln_2")
        y = y @ state[f"{at}.mlp.c_fc.weight"].T + state[f"{at}.mlp.c_fc.bias"]
        if sizes.activation == "quick_gelu":
            y = y / (1 + np.exp(-1.702 * y))
        else:
            y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = x + y @ state[f"{at}.mlp.c_proj.weight"].T + state[f"{at}.mlp.c_proj.bias"]
    return layer_norm(x, state, "ln_final")[end] @ state["text_projection"]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_text_tower_is_the_one_of_the_paper(activation):
    tower = tower_of(TextSizes(70, 9, 24, 3, 4, 10, activation))
    tokens = torch.tensor([[68, 5, 3, 69, 0, 0, 0, 0, 0], [68, 9, 9, 1, 2, 3, 4, 7, 69]])
    expected = np.stack([by_hand(tower, row) for row in tokens.numpy()])
    assert np.abs(tower(tokens).detach().numpy() - expected).max() < 2e-5


def test_what_follows_the_end_of_a_text_changes_nothing():
    tower = tower_of(SMALL)
    tokens = torch.tensor([[68, 5, 3, 69, 0, 0, 0, 0, 0]])
    other = tokens.clone()
    other[0, 4:] = torch.tensor([8, 1, 2, 3, 4])
    assert torch.equal(tower(tokens), tower(other))


def test_the_text_tower_of_clip_has_as_many_parameters_as_published():
    # ViT-B/32 and B/16 have 151,277,313 and 149,620,737, of which the same text tower.
    with torch.device("meta"):
        tower = TextTower(TextSizes(49_408, 77, 512, 12, 8, 512))
    assert sum(weight.numel() for weight in tower.parameters()) == 63_428_097


def test_names_and_shapes_are_those_of_open_clip():
    state = tower_of(SMALL).state_dict()
    assert {name: tuple(x.shape) for name, x in state.items() if ".1." not in name and ".2." not in name} == {
        "token_embedding.weight": (70, 24),
        "positional_embedding": (9, 24),
        "text_projection": (24, 10),
        "logit_scale": (),
        "ln_final.weight": (24,),
        "ln_final.bias": (24,),
        **{
            f"transformer.resblocks.0.{name}": shape
            for name, shape in {
                "ln_1.weight": (24,), "ln_1.bias": (24,), "ln_2.weight": (24,), "ln_2.bias": (24,),
                "attn.in_proj_weight": (72, 24), "attn.in_proj_bias": (72,),
                "attn.out_proj.weight": (24, 24), "attn.out_proj.bias": (24,),
                "mlp.c_fc.weight": (96, 24), "mlp.c_fc.bias": (96,),
                "mlp.c_proj.weight": (24, 96), "mlp.c_proj.bias": (24,),
            }.items()
        },
    }  # fmt: skip
    assert TextSizes.of(state, SMALL.heads, "gelu") == SMALL


def test_the_scale_begins_at_one_over_seven_hundredths_and_ends_at_a_hundred():
    tower = TextTower(SMALL)
    assert float(tower.scale.detach()) == pytest.approx(1 / 0.07)
    for logarithm, scale in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2))):
        with torch.no_grad():
            tower.logit_scale.fill_(logarithm)
        tower.clamp_scale()
        assert float(tower.scale.detach()) == pytest.approx(scale, rel=1e-6)


def test_tokens_are_start_text_end_and_zeros_and_say_the_text_again():
    tokenizer = Tokenizer.trained(TEXTS * 3, context=16)
    tokens, cut = tokenizer.encode(TEXTS)
    assert cut == 0
    assert tokens.shape == (4, 16)
    library = json.loads(tokenizer.content)
    names = {v: k for k, v in library["model"]["vocab"].items()}
    for row, text in zip(tokens.tolist(), TEXTS):
        end = row.index(tokenizer.vocabulary - 1)
        assert row[0] == tokenizer.vocabulary - 2
        assert max(row) == row[end]
        assert set(row[end + 1 :]) <= {0}
        said = "".join(names[token] for token in row[1:end]).replace("Ġ", " ")
        assert said.strip() == text
    assert len({tuple(row) for row in tokens.tolist()}) == 4


def test_tokens_of_other_scripts_are_bytes_and_capitals_are_small():
    tokenizer = Tokenizer.trained(TEXTS)
    tokens, cut = tokenizer.encode(["日本", "العربية", "🎈", "A BAG", "a bag", ""])
    assert cut == 0
    assert len({tuple(row) for row in tokens.tolist()}) == 5
    assert torch.equal(tokens[3], tokens[4])
    assert tokens[5].tolist()[:3] == [tokenizer.vocabulary - 2, tokenizer.vocabulary - 1, 0]


def test_long_texts_are_cut_keep_their_end_and_are_counted():
    tokenizer = Tokenizer.trained(TEXTS, context=8)
    tokens, cut = tokenizer.encode(["a bag", "x " * 50, "y " * 60])
    assert cut == 2
    assert (tokens[1:, -1] == tokenizer.vocabulary - 1).all()


def test_a_tokenizer_without_the_ends_of_clip_is_refused():
    trained = Tokenizer.trained(TEXTS)
    with pytest.raises(WeightsError, match="no tokens"):
        Tokenizer(trained.content.replace(END, "<|end|>"))
    with pytest.raises(WeightsError, match="cannot read"):
        Tokenizer("{}")
    assert START in trained.content


def encoder_of(texts=TEXTS, embedding=10, seed=0):
    tokenizer = Tokenizer.trained(texts)
    sizes = TextSizes(tokenizer.vocabulary, tokenizer.context, 24, 2, 4, embedding)
    return TextEncoder(tokenizer, tower_of(sizes, seed))


def test_a_classifier_is_the_normalised_mean_of_normalised_prompts():
    encoder = encoder_of()
    found = classifier_of(encoder, ["sneaker", "a bag"])
    for row, phrase in zip(found.double().numpy(), ("a sneaker", "a bag")):
        total = np.zeros(10)
        for template in TEMPLATES:
            tokens, _ = encoder.tokenizer.encode([template.format(phrase)])
            vector = by_hand(encoder.tower, tokens[0].numpy())
            total += vector / np.linalg.norm(vector)
        assert np.abs(row - total / np.linalg.norm(total)).max() < 2e-5


def test_labels_are_read_with_or_without_an_article():
    found = checked_labels([" a sneaker", "bag ", " the  old coat", "apple", "りんご"])
    assert found == ["a sneaker", "bag", "the old coat", "apple", "りんご"]
    phrases = [phrase_of(label) for label in found]
    assert phrase_of("ankle_boot") == phrase_of("an  ankle boot") == "an ankle boot"
    assert phrases == ["a sneaker", "a bag", "the old coat", "an apple", "りんご"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a bag"], "by two labels at least, got 1"),
        ([], "by two labels at least, got 0"),
        (["a bag", "Bag"], "'a bag' and 'Bag' are the same"),
        (["bag", " "], "is empty"),
        (["bag", "_"], "is empty"),
        (["ankle_boot", "Ankle boot"], "'ankle_boot' and 'Ankle boot' are the same"),
    ],
)
def test_lists_of_one_or_of_equal_labels_are_refused(labels, message):
    with pytest.raises(UsageError, match=message):
        checked_labels(labels)


def test_a_text_encoder_is_saved_and_loaded(tmp_path):
    encoder = encoder_of()
    encoder.save(tmp_path)
    again = TextEncoder.load(tmp_path)
    before, after = (F.normalize(own.embed(TEXTS)) for own in (encoder, again))
    assert float((before * after).sum(1).min()) > 0.9999  # weights are in half precision


@pytest.mark.parametrize("file", ["text.safetensors", "text.json", "tokenizer.json"])
def test_damaged_files_of_texts_are_refused(tmp_path, file):
    encoder_of().save(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(VitnasError) as error:
        TextEncoder.load(tmp_path)
    assert error.value.fix
    path.unlink()
    with pytest.raises(VitnasError):
        TextEncoder.load(tmp_path)


def clip_loss(images, texts, scale, same):
    """The loss of CLIP in float64 NumPy; `same` pairs (i, j) leave the sums."""
    logits = scale * images @ texts.T
    for i, j in same:
        logits[i, j] = -np.inf
    n = np.arange(len(logits))
    return -(log_softmax(logits, 1)[n, n].mean() + log_softmax(logits, 0)[n, n].mean()) / 2


def made_of(*, samples=6, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        F.normalize(torch.randn(samples, size, generator=generator), dim=1) for _ in range(2)
    )
    return images, texts


def objective_of(space="vit:debug", data=None):
    task = Clip.task(Classification(10))
    learned = Clip(load_space(space, task))
    learned.study(data or load_data("scenes:captions"))
    return learned


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    return objective_of()


def test_the_loss_is_the_symmetric_cross_entropy_and_its_gradient(learned):
    images, texts = made_of()
    images.requires_grad_()
    none = torch.zeros(6, 6, dtype=torch.bool)
    loss = learned.loss((images, texts, none), {})
    scale = float(learned.text.scale.detach())
    plain = images.detach().double().numpy()
    expected = clip_loss(plain, texts.double().numpy(), scale, [])
    assert float(loss.detach()) == pytest.approx(expected, abs=2e-5)
    loss.backward()
    step = 1e-6
    for at in ((0, 0), (3, 5)):
        moved = plain.copy()
        moved[at] += step
        slope = (clip_loss(moved, texts.double().numpy(), scale, []) - expected) / step
        assert float(images.grad[at]) == pytest.approx(slope, abs=2e-4)


def test_captions_that_stand_at_both_pictures_are_no_negatives(learned):
    images, texts = made_of()
    texts[4] = texts[1]  # one caption at two pictures
    both = shared(
        ["a", "b", "c", "d", "b", "f"],
        [["a"], ["b"], ["c", "a"], ["d"], ["b", "e"], ["f"]],
        torch.arange(12).view(6, 2),
    )
    # The pictures 1 and 4 share b, and the caption a of the first is one of the third's, too.
    pairs = {(1, 4), (4, 1), (0, 2), (2, 0)}
    assert {tuple(pair) for pair in both.nonzero().tolist()} == pairs
    expected = clip_loss(
        images.double().numpy(), texts.double().numpy(), float(learned.text.scale.detach()), pairs
    )
    assert float(learned.loss((images, texts, both), {}).detach()) == pytest.approx(
        expected, abs=2e-5
    )


def test_texts_that_the_tower_reads_alike_are_no_negatives():
    tokens = torch.tensor([[8, 1, 9], [8, 2, 9], [8, 1, 9]])
    both = shared(["A", "b", "a"], [["A"], ["b"], ["a"]], tokens)
    assert both.nonzero().tolist() == [[0, 2], [2, 0]]


def test_small_networks_learn_what_the_large_one_finds_near(learned):
    (small, texts), (large, _) = made_of(), made_of(seed=1)
    found = float(learned.distil((small,), (large, texts)).detach())
    scale = float(learned.text.scale.detach())
    ours, theirs = (scale * (x @ texts.T).double().numpy() for x in (small, large))
    expected = 0.0
    for a, b in ((ours, theirs), (ours.T, theirs.T)):
        expected -= (np.exp(log_softmax(b, 1)) * log_softmax(a, 1)).sum(1).mean() / 2
    assert found == pytest.approx(expected, abs=2e-5)
    assert float(learned.distil((large,), (large, texts)).detach()) < found


def test_only_the_network_as_it_was_built_is_compared_with_captions(learned):
    space, data = learned.space, load_data("scenes:captions")
    network = Network(space, space.largest)
    batch = data.prepare(data.train.batch(range(4), space.largest.resolution))
    made = learned(network, space.largest, batch, Random(0))
    assert [tuple(x.shape) for x in made] == [(4, SIZE), (4, SIZE), (4, 4)]
    assert torch.allclose(made[0].norm(dim=1), torch.ones(4))
    small = space.smallest
    batch["images"] = space.parts.resized(batch["images"], small.resolution)
    assert len(learned(network, small, batch, Random(0))) == 1


def test_data_without_captions_are_refused():
    with pytest.raises(UsageError, match="scenes has none"):
        objective_of(data=load_data("scenes"))


def test_the_scale_is_clamped_after_a_step(learned):
    with torch.no_grad():
        learned.text.logit_scale.fill_(7.0)
    learned.after_step(None)
    assert float(learned.text.scale.detach()) == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize("name", ["vit:debug", "efficientvit:debug"])
def test_a_training_ends_with_what_zero_shot_needs_and_resumes_to_the_same(tmp_path, name):
    data, recipe = load_data("scenes:captions"), Recipe(images=(0, 24, 16), batches=(4, 4, 4))
    steps = iter(range(5))
    train(name, data, tmp_path / "whole", recipe, objective="clip")
    train(
        name,
        data,
        tmp_path / "killed",
        recipe,
        objective="clip",
        stop=lambda: next(steps, None) is None,
    )
    assert not (tmp_path / "killed" / "text.json").exists()
    train(name, data, tmp_path / "killed", recipe, objective="clip", resume=True)
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / folder).iterdir() if p.suffix != ".lock"}
        for folder in ("whole", "killed")
    ]
    for file in ("weights.safetensors", "text.safetensors", "tokenizer.json"):
        assert files[0][file] == files[1][file]
    encoder = TextEncoder.load(tmp_path / "whole")
    assert encoder.embed(["a sneaker"]).shape == (1, SIZE)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A supernet that learned from captions, the objective that it has, and its recipe."""
    out, recipe = (
        tmp_path_factory.mktemp("words") / "words",
        Recipe(images=(0, 8, 0), batches=(4, 4, 4)),
    )
    return train("vit:debug", load_data("scenes:captions"), out, recipe, objective="clip"), recipe


def state_of(folder):
    return TextEncoder.load(folder).tower.state_dict()


@pytest.mark.parametrize("start", ["adapt", "init"])
def test_a_training_goes_on_with_the_texts_of_its_start(tmp_path, capsys, words, start):
    folder, recipe = words
    out = train(
        "vit:debug",
        load_data("scenes:captions"),
        tmp_path / "out",
        replace(recipe, learning_rate=1e-9, images=(0, 4, 0)),
        objective="clip",
        **{start: str(folder)},
    )
    assert "the text tower goes on" in capsys.readouterr().err
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    for (name, before), after in zip(state_of(folder).items(), state_of(out).values()):
        assert torch.allclose(before, after, atol=1e-3), name
    card = json.loads((out / "supernet.json").read_text())
    assert card["training"]["text_fingerprint"] == TextEncoder.load(folder).fingerprint


def test_a_training_takes_the_texts_of_any_folder_of_ours(tmp_path, words):
    folder, recipe = words
    out = train("vit:debug", load_data("scenes:captions"), tmp_path / "out", recipe,
                objective=f"clip,frozen={folder}")  # fmt: skip
    for (name, before), after in zip(state_of(folder).items(), state_of(out).values()):
        assert name == "logit_scale" or torch.equal(before, after)
    folder.with_name("moved").mkdir()
    moved = folder.rename(folder.with_name("moved") / "words")
    try:
        assert "their captions, by similarity" in report_training(out).read_text()
    finally:
        moved.rename(folder)


def test_texts_of_another_length_are_refused_with_both_numbers(tmp_path, words):
    encoder_of().save(tmp_path)
    learned = Clip(load_space("vit:debug", Clip.task(Classification(10))))
    learned.take(tmp_path)
    with pytest.raises(UsageError, match="texts have 10 numbers, and those of the network 128"):
        learned.study(load_data("scenes:captions"))
    assert Clip.task(Classification(10), text=str(tmp_path)).outputs == 10
    with pytest.raises(WeightsError, match=r"for embedding \(128 outputs\), and .* \(10 outputs\)"):
        train("vit:debug", load_data("scenes:captions"), tmp_path / "out", words[1],
              objective=f"clip,text={tmp_path}", adapt=str(words[0]))  # fmt: skip


def test_texts_are_read_once_and_a_change_of_them_ends_a_resumed_training(
    tmp_path, monkeypatch, words
):
    data, source, out = load_data("scenes:captions"), tmp_path / "texts", tmp_path / "out"
    sizes = state_of(words[0])["text_projection"].shape[1]
    encoder_of(embedding=sizes).save(source)
    reads, load = [], TextEncoder.load
    monkeypatch.setattr(TextEncoder, "load", lambda path: reads.append(path) or load(path))
    name, ends = f"clip,text={source}", iter(range(1))
    check_training("vit:debug", out, False, "", name)
    train("vit:debug", data, out, words[1], objective=name, stop=lambda: next(ends, None) is None)
    assert reads == [source]
    encoder_of(embedding=sizes, seed=1).save(source)
    with pytest.raises(RunError, match="trained with another text_fingerprint"):
        train("vit:debug", data, out, words[1], objective=name, resume=True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a,b", "a value has no comma"),
        ("nothing", "there is no nothing"),
        ("x" * 999, "there is no x"),
    ],
)
def test_paths_of_texts_that_are_none_say_so(tmp_path, path, message):
    with pytest.raises(VitnasError) as error:
        check_training("vit:debug", tmp_path / "out", False, "", f"clip,text={path}")
    assert message in str(error.value) + str(error.value.fix)


def test_a_supernet_without_texts_is_no_source_of_texts(tmp_path):
    (tmp_path / "supernet.json").write_text("{}")
    with pytest.raises(VitnasError, match="has not learned from captions"):
        texts_in(str(tmp_path))


def test_the_data_of_a_supernet_to_go_on_from_come_before_those_of_the_objective(
    monkeypatch, words
):
    card = json.loads((words[0] / "supernet.json").read_text())
    monkeypatch.setattr(
        "nas.training.supernet.read_card", lambda *_: {**card, "data": "captions:x"}
    )
    asked: list[str] = []
    monkeypatch.setattr("nas.data.load_data", lambda name: asked.append(name) or 1 / 0)
    go_on = ["--adapt", str(words[0])], ["--objective", "clip"]
    for options in (go_on, go_on[::-1], (go_on[0], [])):  # the objective is its own by default
        with pytest.raises(SystemExit):
            main(["train", *options[0], *options[1], "--out", str(words[0].with_name("out"))])
    assert asked == ["captions:x"] * 3


def test_a_training_goes_on_by_the_objective_of_its_supernet(monkeypatch, words):
    asked = []
    monkeypatch.setattr(
        "nas.training.train.check_training", lambda *given: asked.append(given[4]) or 1 / 0
    )
    with pytest.raises(SystemExit):
        main(["train", "--adapt", str(words[0]), "--out", str(words[0].with_name("out"))])
    assert asked == ["clip"]


def test_captioned_scenes_are_what_captions_are_learned_from_unless_others_are_given(
    monkeypatch, tmp_path
):
    asked = []
    for kind in ("scenes", "captions"):  # not `load_data`, which modules that are imported now keep
        monkeypatch.setattr(
            f"nas.data.{kind}.load",
            lambda argument, seed, kind=kind: (
                asked.append(f"{kind}:{argument}".rstrip(":")) or 1 / 0
            ),
        )
    for words, wanted in (
        (["--objective", "clip"], "scenes:captions"),
        (["--objective=clip", "--data", "captions:x"], "captions:x"),
        (["--data=scenes", "--objective", "clip"], "scenes"),
        (["--objective", "supervised"], "scenes"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "--space", "vit:debug", "--out", str(tmp_path / "out"), *words])
        assert asked[-1] == wanted


def test_recall_is_the_share_that_finds_its_own_among_the_nearest():
    similarities = torch.randn(40, 40, generator=torch.Generator().manual_seed(3))
    similarities += 1.5 * torch.eye(40)
    found = recalls(similarities)
    for count, percent in found.items():
        hits = [i in np.argsort(-row)[:count] for i, row in enumerate(similarities.numpy())]
        assert percent == pytest.approx(100 * np.mean(hits))
    assert found[1] < found[5] < found[10] < 100
    assert recalls(torch.ones(40, 40)) == {1: 0.0, 5: 0.0, 10: 0.0}  # what is all the same


def test_the_picture_of_a_training_shows_which_captions_are_near(learned):
    data = load_data("scenes:captions")
    network = Network(learned.space, learned.space.largest)
    ((caption, shown),) = learned.pictures(network, data).items()
    assert shown.shape == (256, 256, 1)  # 32 pairs, eight pixels each
    assert float(shown.min()) == 0
    assert float(shown.max()) == 1
    assert caption.startswith("32 pictures (rows) and their captions, by similarity")


class Words(Split):
    """Captions whose pictures nobody may read; long ones stand far behind."""

    def batch(self, indices, size):
        raise AssertionError

    def annotations(self, indices, size):
        long = " ".join(f"word{i}" for i in range(60))
        texts = [["a zebra"] if i > 3000 else ["a bag"] for i in indices]
        return {
            "captions": packed([[long] if i % 2500 == 7 else own for i, own in zip(indices, texts)])
        }


def test_all_captions_are_read_and_those_that_are_too_long_counted(capsys):
    data = load_data("scenes:captions")
    learned = objective_of(data=replace(data, train=Words("train", 5000)))
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 5,000 captions have more than 30 tokens, of which the first are read" in said
    assert "by the first" not in said
    assert "Ġzebra" in json.loads(learned.tokenizer.content)["model"]["vocab"]


def test_of_an_endless_split_the_first_captions_are_read(capsys):
    data = load_data("scenes:captions")
    learned = objective_of(data=replace(data, train=Words("train", 10**9)))
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2,048 captions have more than 30 tokens" in said
    assert "of which the first are read, by the first 2,048 samples" in said
    assert "Ġzebra" not in json.loads(learned.tokenizer.content)["model"]["vocab"]
