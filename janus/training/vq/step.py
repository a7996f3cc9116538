"""One step of a VQ tokenizer's training.

B pictures of (H, W) pixels and (h, w) cells; C the width of latents and entries. Source: LlamaGen (Sun et
al., 2024) for the terms; the stages are `VQTraining`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus import cpu
from janus.models.vq import VQ
from janus.training.vq.discriminator import adversarial_loss, discriminator_loss
from janus.training.vq.objectives import (
    background_cells,
    codebook_loss,
    commitment_loss,
    entropy_loss,
    foreground_pixels,
    reconstruction_loss,
)
from janus.training.vq.ranks import average_gradients
from janus.training.vq.state import VQState, VQTraining
from janus.training.vq.upkeep import prepare_codebook, tend_codebook


@dataclass(frozen=True)
class Coded:
    """A batch on its way through the tokenizer: latents (B, C, h, w), pictures (B, 3, H, W), both float32.

    `entries` (B, C, h, w) and `codes` (B, h, w) are None where nothing is quantised.
    """

    latents: Tensor
    entries: Tensor | None
    codes: Tensor | None
    pictures: Tensor


def vq_step(
    vq: VQ, pixels: Tensor, state: VQState, config: VQTraining, *, foreground: Tensor | None = None
) -> dict[str, Tensor]:
    """Learn from pixels (B, 3, H, W) in [-1, 1]; -> each term before its weight, `loss` and other figures.

    Writes into the model and the state. `foreground` (B, H, W) bool marks the pixels that are not background;
    without it `config.background` tells. The figures are scalars on the model's device. Raises
    FloatingPointError, before parameters move, where gradients are not finite. Who adds up the gradients of
    several batches calls what this calls: `prepare_codebook`, `code`, `vq_losses`, `tend_codebook`.
    """
    weights, background = pixel_weights(vq, pixels, config, foreground)
    prepare_codebook(vq, pixels, state, config, background=background)

    coded = code(vq, pixels, state.step, config)
    terms = vq_losses(vq, coded, pixels, state, config, weights=weights)
    loss = total(terms, config)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(vq, state.group)
    norm = _clip(vq, state.step, config)
    state.optimizer.step()

    figures = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach(), "norm": norm}
    if config.is_adversarial(state.step):
        figures["discriminator"] = _discriminator_step(coded.pictures.detach(), pixels, state, config)
    figures |= tend_codebook(vq, coded.latents, coded.codes, state, config, background=background)
    state.step += 1
    return figures


def pixel_weights(
    vq: VQ, pixels: Tensor, config: VQTraining, foreground: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """The weights of pixels (B, H, W), and which cells are background (B, h, w); None where nobody says.

    Raises ValueError for a `foreground` that is not (B, H, W) bool.
    """
    if foreground is None and config.background is not None:
        foreground = foreground_pixels(pixels, config.background, tolerance=config.tolerance)
    if foreground is None:
        return None, None
    expected = (len(pixels), *pixels.shape[2:])
    if foreground.shape != expected or foreground.dtype != torch.bool:
        raise ValueError(
            f"foreground must be {expected} bool, not {tuple(foreground.shape)} {foreground.dtype}"
        )
    return 1 + (config.foreground - 1) * foreground.float(), background_cells(foreground, vq.config.factor)


def code(vq: VQ, pixels: Tensor, step: int, config: VQTraining) -> Coded:
    """Pixels through the encoder, the codebook (where this step quantises) and the decoder."""
    with _computing(config, pixels.device):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.trains_decoder_only(step)):
            latents = vq.latents(pixels).float()
            if config.quantises(step):
                decoded, codes = vq.quantize(latents)
                entries = vq.lookup(codes)
            else:
                decoded, codes, entries = F.normalize(latents, dim=1), None, None
        return Coded(latents, entries, codes, vq.decode_latents(decoded).float())


def vq_losses(
    vq: VQ,
    coded: Coded,
    pixels: Tensor,
    state: VQState,
    config: VQTraining,
    *,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of this step before their weights; `weights` (B, H, W) are the pixels'."""
    terms = {
        "reconstruction": reconstruction_loss(
            coded.pictures, pixels, l1=config.l1, l2=config.l2, weights=weights
        )
    }
    if state.perceptual is not None:
        terms["perceptual"] = state.perceptual(coded.pictures, pixels)
    if config.is_adversarial(state.step):
        assert state.discriminator is not None
        # Its own gradients are of its own step.
        state.discriminator.requires_grad_(False)
        terms["adversarial"] = adversarial_loss(_judge(state.discriminator, coded.pictures, config))
    if coded.entries is not None and not config.trains_decoder_only(state.step):
        terms["codebook"] = codebook_loss(coded.latents, coded.entries)
        terms["commitment"] = commitment_loss(coded.latents, coded.entries)
        if config.entropy:
            terms["entropy"] = entropy_loss(coded.latents, vq.codebook, temperature=config.temperature)
    return terms


def total(terms: dict[str, Tensor], config: VQTraining) -> Tensor:
    """The loss: the sum of terms by their weights. The reconstruction's are within it."""
    weights = {name: 1.0 if name == "reconstruction" else getattr(config, name) for name in terms}
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _discriminator_step(pictures: Tensor, pixels: Tensor, state: VQState, config: VQTraining) -> Tensor:
    discriminator, optimizer = state.discriminator, state.discriminator_optimizer
    assert discriminator is not None
    assert optimizer is not None
    discriminator.requires_grad_(True)
    real, fake = (_judge(discriminator, each, config) for each in (pixels, pictures))
    loss = discriminator_loss(real, fake)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(discriminator, state.group)
    _clip(discriminator, state.step, config)
    optimizer.step()
    return loss.detach()


def _judge(discriminator: nn.Module, pictures: Tensor, config: VQTraining) -> Tensor:
    with _computing(config, pictures.device):
        return discriminator(pictures)


def _clip(module: nn.Module, step: int, config: VQTraining) -> Tensor:
    """Scale gradients to a norm of `config.clip` at most; -> the norm they had."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    if not norm.isfinite():
        raise FloatingPointError(
            f"gradients of step {step} are not finite: lower the learning rate {config.learning_rate}, "
            "or look for pixels that are not numbers"
        )
    return norm


def _computing(config: VQTraining, device: torch.device) -> torch.autocast:
    """How the networks run: in float32, too, on a CPU that does bfloat16 badly."""
    wanted = config.bfloat16 and not cpu.widens(device, torch.bfloat16)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
