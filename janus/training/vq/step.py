"""One step of a VQ tokenizer's training.

B pictures of (H, W) pixels and (h, w) cells; C the width of latents and entries. Source: LlamaGen (Sun et
al., 2024) for the terms; the stages are `VQTraining`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq.autoencoding import (
    computing,
    foreground_of,
    learn,
    picture_losses,
    weights_of,
)
from janus.training.vq.objectives import background_cells, codebook_loss, commitment_loss, entropy_loss
from janus.training.vq.state import VQState, VQTraining
from janus.training.vq.upkeep import prepare_codebook, tend_codebook


@dataclass(frozen=True)
class Coded:
    """A batch on its way through the tokenizer: latents (B, C, h, w), pictures (B, 3, H, W), both float32.

    `entries` (B, C, h, w) and `codes` (B, h, w) are None where nothing is quantized.
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
    figures = learn(vq, terms, coded.pictures, pixels, state, config)
    figures |= tend_codebook(vq, coded.latents, coded.codes, state, config, background=background)
    state.step += 1
    return figures


def pixel_weights(
    vq: VQ, pixels: Tensor, config: VQTraining, foreground: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """The weights of pixels (B, H, W), and which cells are background (B, h, w); None where nobody says.

    Raises ValueError for a `foreground` that is not (B, H, W) bool.
    """
    found = foreground_of(pixels, config, foreground)
    if found is None:
        return None, None
    return weights_of(found, config), background_cells(found, vq.config.factor)


def code(vq: VQ, pixels: Tensor, step: int, config: VQTraining) -> Coded:
    """Pixels through the encoder, the codebook (where this step quantizes) and the decoder."""
    with computing(config, pixels.device):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.trains_decoder_only(step)):
            latents = vq.latents(pixels).float()
            if config.quantizes(step):
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
    terms = picture_losses(coded.pictures, pixels, state, config, weights=weights)
    if coded.entries is not None and not config.trains_decoder_only(state.step):
        terms["codebook"] = codebook_loss(coded.latents, coded.entries)
        terms["commitment"] = commitment_loss(coded.latents, coded.entries)
        if config.entropy:
            terms["entropy"] = entropy_loss(coded.latents, vq.codebook, temperature=config.temperature)
    return terms
