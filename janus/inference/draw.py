"""Drawing: codes one after another from a prompt, guided by what the model would draw without one.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), V codes, T codes of a whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor

from janus.checks import require_whole
from janus.inference.batch import max_batch_size
from janus.inference.draw_batch import (
    DrawStep,
    Picture,
    PromptCaches,
    begin,
    check_pictures,
    check_prompts,
    unconditional,
)
from janus.inference.prepare import capacity_for
from janus.inference.sampling import Noise, Sampling
from janus.inference.speculate import speculative_steps, window_of
from janus.models.janus import Janus


def draw_steps(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    noise: Noise | None = None,
    prompt_caches: PromptCaches | None = None,
) -> Iterator[DrawStep]:
    """Draw pictures side by side, a code of each per step; guidance 1 needs and runs no unconditional rows.

    Pictures begin with the codes given in their `start`, of which all must have as many. `noise`, from
    position to (P, V) exponential noise, replaces what seed and number give. The arguments are checked at
    once.
    """
    check_pictures(model, pictures, guidance)
    return _steps(
        model, pictures, pad_id, guidance, sampling or Sampling(), noise, prompt_caches or PromptCaches(model)
    )


@torch.no_grad()
def _steps(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    guidance: float,
    sampling: Sampling,
    noise: Noise | None,
    prompt_caches: PromptCaches,
) -> Iterator[DrawStep]:
    batch, hidden = begin(model, pictures, pad_id, guidance, sampling, noise, prompt_caches)
    start, end = len(pictures[0].start), model.config.picture_tokens
    yield batch.shown(start, batch.step.first(hidden))
    for position in range(start + 1, end):
        yield batch.shown(position, batch.step())


def pictures_at_once(model: Janus, longest_prompt: int, guidance: float) -> int:
    """How many pictures to draw together: at most 16, with caches in at most half of the free memory."""
    rows = 1 if guidance == 1 else 2
    return max_batch_size(model, rows * capacity_for(model, longest_prompt + model.config.picture_tokens - 1))


def draw_codes(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    speculate: int | None = None,
    on_codes: Callable[[Tensor], None] | None = None,
) -> Iterator[Tensor]:
    """Codes (P', grid, grid) of the pictures in order, a batch at a time.

    Without a batch size, batches are alike and of at most `pictures_at_once`. `speculate` is how many
    codes to read at once, all but the first of them guessed; None, 0 and 1 guess none: see
    `speculative_steps`. `on_codes` is called after every step with the batch's codes so far, (P', steps).
    """
    window = window_of(speculate)
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)
    if not pictures:
        return
    size = batch_size
    if size is None:
        most = pictures_at_once(model, max(len(picture.prompt) for picture in pictures), guidance)
        # Every picture takes as many steps: batches of one size keep all of them full, the last one too.
        size = ceil(len(pictures) / ceil(len(pictures) / most))
    check_prompts(model, pictures)  # of all, before the first is drawn: what is drawn would be lost
    prompt_caches = PromptCaches(model)
    for first in range(0, len(pictures), size):
        batch = pictures[first : first + size]
        to_come = [picture.prompt for picture in pictures[first:]]
        prompt_caches.forget_all_but([*to_come, *(unconditional(prompt, pad_id) for prompt in to_come)])
        given = torch.tensor([picture.start for picture in batch], dtype=torch.long, device=model.device)
        codes = torch.empty(len(batch), model.config.picture_tokens, dtype=torch.long, device=model.device)
        codes[:, : given.shape[1]] = given
        steps = draw_steps if window == 1 else partial(speculative_steps, window=window)
        for step in steps(
            model, batch, pad_id=pad_id, guidance=guidance, sampling=sampling, prompt_caches=prompt_caches
        ):
            codes[:, step.position] = step.codes
            if on_codes:
                on_codes(codes[:, : step.position + 1])
        yield codes.unflatten(1, (model.config.grid, model.config.grid))


@torch.no_grad()
def decode_codes(model: Janus, codes: Tensor) -> Tensor:
    """Codes (P, h, w) -> pixels (P, 3, H, W) in float32 on the CPU.

    One picture at a time: a convolution over several rounds differently, and truncation to 8 bits would show
    it.
    """
    return torch.cat([model.vq.decode(one).float().cpu() for one in codes.split(1)])
