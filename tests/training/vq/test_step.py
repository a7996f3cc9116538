"""One step in each of its stages: what learns, what stands still, what is counted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus import cpu
from janus.models.vq import VQ
from janus.training.vq import (
    PatchDiscriminator,
    VQState,
    VQTraining,
    code,
    codebook_loss,
    commitment_loss,
    pixel_weights,
    reconstruction_loss,
    total,
    vq_losses,
    vq_step,
)

SIDE = 8


@pytest.fixture
def vq(build: Callable[..., VQ]) -> VQ:
    return build()


@pytest.fixture
def pixels(squares: Callable[..., Tensor]) -> Tensor:
    return squares(0, count=2, side=SIDE, tile=4)


def copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_a_step_is_its_terms_and_one_step_of_the_optimizer(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(learning_rate=0.1, clip=0.01, l1=0.5, codebook=2.0, start_latents=0)
    state = VQState.start(vq, config, optimizer=torch.optim.SGD(vq.parameters(), lr=0.1))
    latents = vq.latents(pixels)
    entries = vq.lookup(vq.nearest(latents))
    pictures = vq.decode_latents(vq.quantize(latents)[0])
    terms = {
        "reconstruction": reconstruction_loss(pictures, pixels, l1=0.5, l2=1.0),
        "codebook": codebook_loss(latents, entries),
        "commitment": commitment_loss(latents, entries),
    }
    loss = terms["reconstruction"] + 2 * terms["codebook"] + 0.25 * terms["commitment"]
    names, parameters = zip(*vq.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    expected = {
        name: parameter.detach() - 0.1 * gradient * 0.01 / norm
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True)
    }
    figures = vq_step(vq, pixels, state, config)
    for name, term in (terms | {"loss": loss, "norm": norm}).items():
        assert torch.equal(figures[name], term) or name == "norm", name
    # Norms are summed in another order, and torch adds 1e-6 to them before it divides.
    torch.testing.assert_close(figures["norm"], norm, rtol=1e-5, atol=0)
    for name, parameter in vq.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert state.step == 1


def test_the_entropy_term_is_on_when_it_has_a_weight(vq: VQ, pixels: Tensor) -> None:
    for weight in (0.0, 0.1):
        config = VQTraining(entropy=weight, temperature=1.0)
        state = VQState.start(vq, config)
        terms = vq_losses(vq, code(vq, pixels, 0, config), pixels, state, config)
        assert ("entropy" in terms) == (weight > 0)
        parts = [terms["reconstruction"], terms["codebook"], 0.25 * terms["commitment"]]
        parts += [weight * terms["entropy"]] if weight else []
        torch.testing.assert_close(total(terms, config), torch.stack(parts).sum())


def test_before_it_quantizes_the_codebook_has_no_part(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(quantize_from=2, learning_rate=1e-2)
    state, before = VQState.start(vq, config), copy(vq)
    figures = vq_step(vq, pixels, state, config)
    assert set(figures) == {"reconstruction", "loss", "norm"}
    unmoved = set(before) - moved(vq, before)
    assert "codebook" in unmoved
    assert not [name for name in unmoved if name.endswith("weight") and "q." not in name and "k." not in name]


def test_in_the_last_stage_the_decoder_alone_learns(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(decoder_only_from=1, learning_rate=1e-2, revive_every=1)
    state = VQState.start(vq, config)
    vq_step(vq, pixels, state, config)
    before, codes = copy(vq), vq.encode(pixels)
    figures = vq_step(vq, pixels, state, config)
    assert {"codebook", "commitment"}.isdisjoint(figures)
    assert figures["revived"] == 0
    changed = moved(vq, before)
    assert {name.split(".")[0] for name in changed} == {"post_quant_conv", "decoder"}
    assert torch.equal(vq.encode(pixels), codes)


def test_parts_that_are_frozen_stand_still(vq: VQ, pixels: Tensor) -> None:
    vq.encoder.requires_grad_(False)
    vq.codebook.requires_grad_(False)
    config = VQTraining(learning_rate=1e-2, revive_every=1)
    state, before = VQState.start(vq, config), copy(vq)
    figures = vq_step(vq, pixels, state, config)
    assert figures["revived"] == 0
    stems = {name.split(".")[0] for name in moved(vq, before)}
    assert stems == {"quant_conv", "post_quant_conv", "decoder"}


# --- pixels that matter ---


def test_the_background_is_told_by_color_or_by_the_caller(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(background=(128, 128, 128), foreground=6.0)
    weights, background = pixel_weights(vq, pixels, config)
    gray = ((pixels - (128 / 127.5 - 1)).abs() < 1e-6).all(dim=1)
    assert 0 < gray.sum() < gray.numel()
    assert weights is not None
    assert torch.equal(weights, torch.where(gray, 1.0, 6.0))
    assert torch.equal(background, gray[:, ::2, ::2])  # type: ignore[arg-type]
    own = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    weights, background = pixel_weights(vq, pixels, config, own)
    assert weights is not None
    assert background is not None
    assert (weights == 1).all()
    assert background.all()
    assert pixel_weights(vq, pixels, VQTraining()) == (None, None)


def test_a_foreground_of_another_shape_raises(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining()
    state = VQState.start(vq, config)
    with pytest.raises(ValueError, match=r"foreground must be \(2, 8, 8\) bool, not \(2, 4, 4\) torch.bool"):
        vq_step(vq, pixels, state, config, foreground=torch.ones(2, 4, 4, dtype=torch.bool))


# --- the discriminator ---


def adversarial(vq: VQ, **settings: Any) -> tuple[VQState, VQTraining]:
    config = VQTraining(discriminator_channels=4, discriminator_layers=1, **settings)
    return VQState.start(vq, config), config


def test_the_discriminator_learns_from_its_step_on(vq: VQ, pixels: Tensor) -> None:
    state, config = adversarial(vq, discriminator_from=1)
    assert isinstance(state.discriminator, PatchDiscriminator)
    before = copy(state.discriminator)
    assert "adversarial" not in vq_step(vq, pixels, state, config)
    assert not moved(state.discriminator, before)
    figures = vq_step(vq, pixels, state, config)
    assert {"adversarial", "discriminator"} <= set(figures)
    # Within both hinges, as at the start, real and fake pull the last bias equally far.
    assert moved(state.discriminator, before) == set(before) - {"body.5.bias"}


def test_what_is_judged_leaves_no_gradient_in_the_judge(vq: VQ, pixels: Tensor) -> None:
    state, config = adversarial(vq, discriminator_from=0)
    assert state.discriminator is not None
    coded = code(vq, pixels, 0, config)
    vq_losses(vq, coded, pixels, state, config)["adversarial"].backward()
    assert all(parameter.grad is None for parameter in state.discriminator.parameters())
    assert vq.decoder.conv_out.weight.grad is not None
    assert vq.encoder.conv_in.weight.grad is not None


# --- precision and failure ---


def test_autocast_computes_nearly_the_same(build: Callable[..., VQ], pixels: Tensor) -> None:
    losses = []
    for bfloat16 in (False, True):
        vq = build()
        state, config = adversarial(vq, discriminator_from=0, start_latents=0, bfloat16=bfloat16)
        figures = vq_step(vq, pixels, state, config)
        assert all(tensor.dtype == torch.float32 for tensor in vq.state_dict().values())
        assert figures["loss"].dtype == torch.float32
        losses.append(figures["reconstruction"])
    # bfloat16 has 8 bits; some twenty roundings in a row are within 4 %.
    torch.testing.assert_close(losses[1], losses[0], rtol=0.04, atol=0)
    assert bool(losses[0] == losses[1]) == cpu.widens(pixels.device, torch.bfloat16)


def test_gradients_that_are_not_finite_raise_before_anything_moves(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(start_latents=0)
    state, before = VQState.start(vq, config), copy(vq)
    broken = pixels.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="gradients of step 0 are not finite: lower the learning"):
        vq_step(vq, broken, state, config)
    assert not moved(vq, before)
    assert state.step == 0
