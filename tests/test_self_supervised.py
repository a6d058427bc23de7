"""Checkpoints of MAE, MoCo v3, DINO and DINOv2 by path, against timm's models with such weights."""

from __future__ import annotations

import pytest
import timm_models
import torch
from timm.models.vision_transformer import VisionTransformer

from nas.errors import WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.training.pretrained import load_weights
from search_spaces import vit

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 3, 3, 8, 40
TOLERANCE = 2e-5


def network_of(task=None, **form):
    domain, parts = vit.model(PATCH, WIDTH, DEPTH, HEADS, SIDE, **form)
    space = SearchSpace("vit:small", domain, parts, task or Embedding())
    torch.manual_seed(1)
    return Network(space, space.largest).eval()


def model_of(side=SIDE, **form):
    torch.manual_seed(0)
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 0}
    return timm_models.perturbed(VisionTransformer(side, PATCH, **(sizes | form)).eval())


@torch.no_grad()
def assert_same(network, model):
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = model(images)
    assert expected.shape[1:] == network(images).shape[1:]
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    assert float((network(images) - expected).abs().max()) <= limit


def prefixed(state, before):
    return {f"{before}{name}": x for name, x in state.items()}


def saved(tmp_path, held):
    torch.save(held, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


def test_mae_is_read_without_its_decoder(tmp_path, capfd):
    model, network = model_of(), network_of()
    decoder = {
        "mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.zeros(1, 26, 32),
        "decoder_embed.weight": torch.zeros(32, WIDTH), "decoder_pred.bias": torch.zeros(192),
        "decoder_blocks.0.norm1.weight": torch.zeros(32),
    }  # fmt: skip
    held = {"model": model.state_dict() | decoder, "optimizer": {}, "epoch": 799}
    assert load_weights(network, saved(tmp_path, held)) == []
    assert_same(network, model)
    assert "only for pretraining, and left out: mask_token, decoder_pos_embed and 3 more" in (
        capfd.readouterr().err
    )


def test_mae_as_it_is_tuned_pools_the_patches(tmp_path):
    model = model_of(num_classes=5, global_pool="avg")
    assert "fc_norm.weight" in model.state_dict()
    network = network_of(Classification(5), pooled=True)
    load_weights(network, saved(tmp_path, {"model": model.state_dict()}), new_head=False)
    assert_same(network, model)
    other = network_of(Classification(5))
    with pytest.raises(WeightsError, match=r"no norm\.weight.*fc_norm"):
        load_weights(other, model.state_dict())


def test_moco_v3_gives_its_base_encoder(tmp_path):
    model, momentum, network = model_of(), model_of(), network_of()
    head = {"head.0.weight": torch.zeros(64, WIDTH), "head.1.running_mean": torch.zeros(64)}
    held = {
        "epoch": 300,
        "arch": "vit_base",
        "state_dict": {
            **prefixed(model.state_dict() | head, "module.base_encoder."),
            **prefixed({n: x + 1 for n, x in momentum.state_dict().items()} | head,
                       "module.momentum_encoder."),
            "module.predictor.0.weight": torch.zeros(64, 64),
        },
    }  # fmt: skip
    assert load_weights(network, saved(tmp_path, held)) == []
    assert_same(network, model)


def test_the_small_network_of_moco_v3_needs_its_twelve_heads():
    space = load_space("vit_small_patch16_224", Embedding())
    with torch.device("meta"):
        network = Network(space, space.largest)
    held = {"module.base_encoder.cls_token": torch.zeros(1, 1, 384)}
    with pytest.raises(WeightsError, match="12 heads") as caught:
        load_weights(network, held)
    assert "moco_v3_vit_small" in str(caught.value)
    named = load_space("moco_v3_vit_small").largest
    assert {block.heads for block in named.stages[0].blocks} == {12}


def test_dino_gives_its_teacher(tmp_path):
    model, network = model_of(), network_of()
    head = {"mlp.0.weight": torch.zeros(64, WIDTH), "last_layer.weight_v": torch.zeros(9, 64)}
    head = prefixed(head, "head.")
    students = {n: x + 1 for n, x in model.state_dict().items()}
    held = {
        "student": prefixed(students, "module.backbone.") | prefixed(head, "module."),
        "teacher": prefixed(model.state_dict(), "backbone.") | head,
    }
    assert load_weights(network, saved(tmp_path, held)) == []
    assert_same(network, model)


def test_layer_scale_of_dinov2_is_folded(tmp_path, capfd):
    model, network = model_of(init_values=0.5), network_of()
    assert "blocks.0.ls1.gamma" in model.state_dict()
    held = model.state_dict() | {"mask_token": torch.zeros(1, WIDTH)}
    assert load_weights(network, saved(tmp_path, held)) == []
    assert_same(network, model)
    assert "only for pretraining, and left out: mask_token" in capfd.readouterr().err


def test_positions_of_another_resolution_are_resized_as_timm_does():
    large, network = model_of(side=64, init_values=0.1), network_of()
    state, small = large.state_dict(), model_of(init_values=0.1)
    load_weights(network, state)
    resampled = vit.resized(state["pos_embed"][0, 1:].view(8, 8, -1), 5).view(1, 25, -1)
    theirs = torch.cat([state["pos_embed"][:, :1], resampled], 1)
    from timm.layers import resample_abs_pos_embed

    official = resample_abs_pos_embed(state["pos_embed"], [5, 5])
    torch.testing.assert_close(theirs, official, rtol=1e-5, atol=1e-6)
    small.load_state_dict(state | {"pos_embed": official})
    assert_same(network, small)


def test_what_networks_here_do_not_have_is_refused():
    model, network = model_of(init_values=0.5), network_of()
    state = model.state_dict()
    with pytest.raises(WeightsError, match="registers"):
        load_weights(network, state | {"register_tokens": torch.zeros(1, 4, WIDTH)})
    with pytest.raises(WeightsError, match=r"ls1\.gamma scales .* of another size"):
        load_weights(network, state | {"blocks.0.ls1.gamma": torch.ones(7)})
    with pytest.raises(WeightsError, match="has the shape"):
        load_weights(network, state | {"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16)})
    with pytest.raises(WeightsError, match="also holds dist_token"):
        load_weights(network, state | {"dist_token": torch.zeros(1, 1, WIDTH)})


def test_vectors_start_from_a_classifier(capfd):
    model, network = model_of(num_classes=5), network_of()
    assert load_weights(network, model.state_dict()) == []
    assert "vectors need no classifier" in capfd.readouterr().err
    model.reset_classifier(0)
    assert_same(network, model)


@pytest.mark.parametrize(
    ("name", "theirs", "more"),
    [
        ("dinov2_vits14", "vit_small_patch14_dinov2", 2 * 12 * 384),
        ("dinov2_vitb14", "vit_base_patch14_dinov2", 2 * 12 * 768),
        ("dinov2_vitl14", "vit_large_patch14_dinov2", 2 * 24 * 1024),
        ("mae_vit_base_patch16", "vit_base_patch16_224.mae", 0),
        ("mae_vit_large_patch16", "vit_large_patch16_224.mae", 0),
        ("mae_vit_huge_patch14", "vit_huge_patch14_224.mae", 0),
        ("moco_v3_vit_base", "vit_base_patch16_224", 0),
    ],
)
def test_named_models_have_the_parameters_of_timms(name, theirs, more):
    """Beside the factors of layer scale, which are folded."""
    space = load_space(name, Embedding())
    with torch.device("meta"):
        network = Network(space, space.largest)
        model = timm_models.timm.create_model(theirs, num_classes=0)
    assert sum(p.numel() for p in network.parameters()) == (
        sum(p.numel() for p in model.parameters()) - more
    )
