"""The codebook from step to step: when it starts, what is counted, which codes restart, which become one.

B pictures of (h, w) cells, N = B * h * w cells; C the width of latents; K codes. A codebook that stands still
(`requires_grad` False) is counted and otherwise left alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq.codebook import count_codes, merge, perplexity, revive, start_codebook, usage_entropy
from janus.training.vq.ranks import gathered, share_first
from janus.training.vq.state import VQState, VQTraining


@torch.no_grad()
def prepare_codebook(
    vq: VQ, pixels: Tensor, state: VQState, config: VQTraining, *, background: Tensor | None = None
) -> None:
    """Before a step: start the codebook, or make the background's codes one, where the step is the one to.

    `background` (B, h, w) bool marks the cells without foreground. The start is from the newest latents; if
    quantizing begins with the first step there are none yet, and they are of these pixels (B, 3, H, W).
    """
    if not vq.codebook.requires_grad:
        return
    if state.step == config.quantize_from and config.start_latents != 0:
        if len(state.pool) == 0:
            _remember(vq.latents(pixels), background, vq, state, config)
        start_codebook(
            vq,
            state.pool,
            generator=_generator(state, config),
            background=state.pool_background,
            background_codes=config.background_codes,
        )
        share_first(vq.codebook, state.group)
        state.pool, state.pool_background = state.pool[:0], state.pool_background[:0]
    if state.step == config.decoder_only_from and config.merge_share is not None:
        _merge_background(vq, state, config.merge_share)


@torch.no_grad()
def tend_codebook(
    vq: VQ,
    latents: Tensor,
    codes: Tensor | None,
    state: VQState,
    config: VQTraining,
    *,
    background: Tensor | None = None,
) -> dict[str, Tensor]:
    """After a step: count the codes it used, restart those that died; -> figures, scalars.

    Latents (B, C, h, w); codes (B, h, w) or None, where nothing is quantized and the latents are kept for the
    start. Of the batch `codes_used`; of the running counts `perplexity`, `code_entropy` and, with
    `background` (B, h, w) bool, `background_entropy`, both in bits; `revived` is a number of codes.
    """
    if codes is None:
        _remember(latents, background, vq, state, config)
        return {}
    codes = gathered(codes, state.group)
    counts = count_codes(codes, len(state.usage))
    state.usage = state.usage.lerp(counts, 1 - config.usage_decay)
    state.unused = torch.where(counts > 0, 0, state.unused + 1)
    figures = {
        "codes_used": (counts > 0).sum(),
        "perplexity": perplexity(state.usage),
        "code_entropy": usage_entropy(state.usage),
    }
    if background is not None:
        of_background = count_codes(codes, len(state.usage), where=gathered(background, state.group))
        state.background_usage = state.background_usage.lerp(of_background, 1 - config.usage_decay)
        figures["background_entropy"] = usage_entropy(state.background_usage)
    return figures | {"revived": _revive(vq, latents, background, state, config)}


def _remember(latents: Tensor, background: Tensor | None, vq: VQ, state: VQState, config: VQTraining) -> None:
    """Keep the newest latents, once so few steps are left that they will be of the codebook's start."""
    wanted = 16 * vq.config.codes if config.start_latents is None else config.start_latents
    cells = latents[:, 0].numel() * (1 if state.group is None else state.group.size())
    if wanted == 0 or (config.quantize_from - state.step - 1) * cells >= wanted:
        return
    new, marked = _by_cell(latents, background, state)
    state.pool = torch.cat([state.pool, new])[-wanted:]
    state.pool_background = torch.cat([state.pool_background, marked])[-wanted:]


def _merge_background(vq: VQ, state: VQState, share: float) -> None:
    """Make one code of those that are used for background cells and hardly for others."""
    which = (state.usage > 0) & (state.background_usage >= share * state.usage)
    if not which.any():
        return
    into = int(which.nonzero()[0])
    merge(vq, which, into, usage=state.background_usage)
    share_first(vq.codebook, state.group)
    for name in ("usage", "background_usage"):
        before = getattr(state, name)
        after = torch.where(which, 0, before)
        after[into] = before[which].sum()
        setattr(state, name, after)


def _revive(vq: VQ, latents: Tensor, background: Tensor | None, state: VQState, config: VQTraining) -> Tensor:
    """Restart, where it is time, the codes that were not used since the last time; -> how many."""
    every, done = config.revive_every, state.step + 1 - config.quantize_from
    stands = config.trains_decoder_only(state.step) or not vq.codebook.requires_grad
    if every is None or done % every or stands:
        return state.unused.new_zeros(())
    cells, of_background = _by_cell(latents, background, state)
    revived = revive(
        vq,
        state.unused >= every,
        cells,
        generator=_generator(state, config),
        excluded=of_background,
        far=config.revive_far,
    )
    share_first(vq.codebook, state.group)
    for counts in (state.unused, state.usage, state.background_usage):
        counts[revived] = 0
    _forget(vq.codebook, revived, state.optimizer)
    return state.unused.new_tensor(len(revived))


def _forget(parameter: Tensor, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Clear Adam's moments of these rows: they were of other entries."""
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[parameter]:
            optimizer.state[parameter][name][rows] = 0


def _by_cell(latents: Tensor, background: Tensor | None, state: VQState) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w) of all processes as (N, C), and which of them are of background, (N,) bool."""
    cells = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
    marked = torch.zeros_like(cells[:, 0], dtype=torch.bool) if background is None else background.flatten()
    return gathered(cells, state.group), gathered(marked, state.group)


def _generator(state: VQState, config: VQTraining) -> np.random.Generator:
    """A step's own, so that a run that is continued draws what it would have drawn."""
    return np.random.default_rng([config.seed, state.step])
