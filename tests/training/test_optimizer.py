"""AdamW and Muon: which parameters are whose, which decay, and a first step by hand."""

import copy

import pytest
import torch

from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.training.flow import add_alignment
from janus.training.muon import Muon, orthogonal
from janus.training.optimizer import Together, begin_states, block_matrices, build_optimizer, kinds_of
from janus.training.parts import STAGE_1, STAGE_3, freeze, trained
from janus.training.recipe.sections import Optimizer


@pytest.fixture
def fresh(model: Janus) -> Janus:
    return copy.deepcopy(model)


def test_kinds(fresh: Janus) -> None:
    kinds = kinds_of(fresh)
    for name, kind in {
        "language.layers.0.input_norm.weight": "norms",
        "language.norm.weight": "norms",
        "vision.blocks.1.norm2.bias": "norms",
        "vq.encoder.levels.0.res.0.norm1.weight": "norms",
        "vision.blocks.0.attn.qkv.bias": "biases",
        "image_head.out.bias": "biases",
        "language.embed.weight": "embeddings",
        "code_embedding.weight": "embeddings",
        "vision.pos_embed": "embeddings",
        "vq.codebook": "embeddings",
        "language.head.weight": "weights",
        "language.layers.2.mlp.gate_up.weight": "weights",
        "vision.patch_embed.weight": "weights",
        "code_adapter.0.weight": "weights",
    }.items():
        assert kinds[name] == kind, name
    assert set(kinds) == {name for name, _ in fresh.named_parameters()}
    # A parameter of more than one dimension that is a weight decays, and one of one dimension never does.
    for name, weight in fresh.named_parameters():
        assert (weight.ndim > 1) == (kinds[name] in ("weights", "embeddings")), name


def test_kinds_of_a_flow(fresh_flow: JanusFlow) -> None:
    kinds = kinds_of(fresh_flow)
    for name, kind in {
        "begin_embedding": "embeddings",
        "velocity_norm.weight": "norms",
        "encoder.blocks.0.response_norm.weight": "norms",
        "decoder.blocks.0.response_norm.bias": "norms",
        "decoder.blocks.0.expand.weight": "weights",
        "decoder.out_conv.bias": "biases",
    }.items():
        assert kinds[name] == kind, name
    add_alignment(fresh_flow, 1, tokens=None)
    matrices = block_matrices(trained(fresh_flow))
    assert {"language.layers.0.mlp.gate_up.weight", "decoder.blocks.0.expand.weight"} <= set(matrices)
    assert not any(name.startswith("alignment") for name in matrices)


def test_groups_hold_what_learns_once(fresh: Janus) -> None:
    freeze(fresh, STAGE_3)
    optimizer = build_optimizer(fresh, Optimizer(lr=1e-3, weight_decay=0.1))
    decaying, others = optimizer.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(weight): name for name, weight in fresh.named_parameters()}
    kinds = kinds_of(fresh)
    assert {kinds[names[id(weight)]] for weight in decaying["params"]} == {"weights"}
    assert {kinds[names[id(weight)]] for weight in others["params"]} == {"norms", "biases", "embeddings"}
    found = [names[id(weight)] for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(found) == sorted(trained(fresh))
    assert not any(name.startswith("vq.") for name in found)


def test_what_does_not_decay_is_the_recipes_to_say(fresh: Janus) -> None:
    freeze(fresh, STAGE_1)
    optimizer = build_optimizer(fresh, Optimizer(lr=1e-3, weight_decay=0.1, undecayed=()))
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.1
    assert len(group["params"]) == len(trained(fresh))


def test_settings_arrive(fresh: Janus) -> None:
    freeze(fresh, STAGE_1)
    optimizer = build_optimizer(fresh, Optimizer(lr=3e-4, betas=(0.8, 0.9), eps=1e-6))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.9), 1e-6)
        assert group["fused"]


def test_nothing_learns(fresh: Janus) -> None:
    freeze(fresh, ())
    with pytest.raises(ValueError, match=r"^no parameter learns: name the parts in the recipe's train$"):
        build_optimizer(fresh, Optimizer(lr=1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_step_by_hand(fresh: Janus, dtype: torch.dtype) -> None:
    """The first moments over the root of the second are the gradient's sign, whatever the betas."""
    fresh.to(dtype)
    freeze(fresh, ("text_head", "code_adapter"))
    settings = Optimizer(lr=0.25, weight_decay=0.5, eps=1e-12)
    optimizer = build_optimizer(fresh, settings)
    before = {name: weight.detach().clone() for name, weight in trained(fresh).items()}
    for weight in trained(fresh).values():
        weight.grad = torch.full_like(weight, -2.0)
    optimizer.step()
    kinds = kinds_of(fresh)
    for name, weight in trained(fresh).items():
        decay = 0.5 if kinds[name] == "weights" else 0.0
        expected = before[name].float() * (1 - 0.25 * decay) + 0.25
        # Three roundings of the dtype between this formula and the kernel's order of it.
        spacing = 3 * torch.finfo(dtype).eps
        assert torch.allclose(weight.float(), expected, rtol=spacing, atol=spacing), name
        assert optimizer.state[weight]["exp_avg"].dtype == dtype


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest(fresh: Janus) -> None:
    freeze(fresh, STAGE_3)
    learning = trained(fresh)
    optimizer = build_optimizer(fresh, Optimizer(kind="muon", lr=1e-3, weight_decay=0.1))
    assert isinstance(optimizer, Together)
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(weight): name for name, weight in learning.items()}
    matrices = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    others = {names[id(weight)] for group in adamw.param_groups for weight in group["params"]}
    assert matrices == set(block_matrices(learning))
    assert matrices | others == set(learning)
    assert not matrices & others
    assert {"language.layers.2.mlp.gate_up.weight", "vision.blocks.0.attn.qkv.weight"} <= matrices
    for name in (
        "language.head.weight",
        "language.embed.weight",
        "code_adapter.0.weight",
        "vision.pos_embed",
    ):
        assert name in others
    assert muon.param_groups[0]["weight_decay"] == 0.1


def test_a_rate_that_is_set_is_that_of_both(fresh: Janus) -> None:
    freeze(fresh, STAGE_3)
    optimizer = build_optimizer(fresh, Optimizer(kind="muon", lr=1.0))
    assert isinstance(optimizer, Together)
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.25}


def test_adapters_alone_are_adamws(fresh: Janus) -> None:
    freeze(fresh, STAGE_1)
    assert isinstance(build_optimizer(fresh, Optimizer(kind="muon", lr=1.0)), torch.optim.AdamW)


def test_a_first_step_of_muon_by_hand(fresh: Janus) -> None:
    """The first momentum is the gradient but for a factor, of which the step is free: it is U V' of U S V'.

    Five steps of Newton and Schulz leave singular values between 0.68 and 1.14 (Jordan, 2024), and the rate
    is scaled by 0.2 of the root of the longer side (Liu et al., 2025).
    """
    freeze(fresh, ("language",))
    optimizer = build_optimizer(fresh, Optimizer(kind="muon", lr=0.5, weight_decay=0.25))
    weight = fresh.get_parameter("language.layers.0.mlp.gate_up.weight")
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
    optimizer.step()
    change = (before * (1 - 0.5 * 0.25) - weight) / (0.5 * 0.2 * max(weight.shape) ** 0.5)
    within = u.T @ change @ v.T
    assert ((within.diagonal() > 0.6) & (within.diagonal() < 1.25)).all()
    # 16 bits round each of its products to 2 ** -8.
    assert (within - within.diagonal().diag()).abs().max() < 0.1
    # What is left of a difference of numbers up to 3, divided by at least a half.
    assert torch.allclose(change, orthogonal(weight.grad[None])[0], rtol=0, atol=1e-5)


def test_what_is_kept_before_the_first_step_is_as_after_it(fresh: Janus) -> None:
    freeze(fresh, STAGE_3)
    optimizer = build_optimizer(fresh, Optimizer(kind="muon", lr=1e-3))
    begin_states(optimizer)
    blank = {
        name: {key: value.clone() for key, value in optimizer.state[weight].items()}
        for name, weight in trained(fresh).items()
    }
    optimizer.state.clear()
    for weight in trained(fresh).values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for name, weight in trained(fresh).items():
        kept = optimizer.state[weight]
        assert {key: value.shape for key, value in kept.items()} == {
            key: value.shape for key, value in blank[name].items()
        }
        assert not any(value.any() for value in blank[name].values())
