"""Speculative drawing: several codes in one run of the model, and the picture that one at a time would give.

The noise at a position is a function of (seed, picture, position, code) alone, so each code is a function of
the codes before it, and a picture is the fixed point of computing all of them at once. A pass feeds a window
of guessed codes, computes with each position's own noise which code stands there, and keeps what it can be
sure of: the codes up to and including the first that was guessed wrong. What it computed beyond is the next
pass's guess.

Sources: Song et al., "Accelerating feedforward computation via parallel nonlinear equation solving" (2021),
for the iteration; Teng et al., "Accelerating auto-regressive text-to-image generation with training-free
speculative Jacobi decoding" (2024), for drawing by it. Theirs draws new noise in every pass, and accepts by
probability; with fixed noise a guess is right or wrong, and the picture itself is kept, not its distribution
only.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), W codes of a window, V codes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from janus.checks import require_whole
from janus.inference.draw_batch import DrawStep, Picture, PromptCaches, begin, check_pictures
from janus.inference.sampling import Sampling
from janus.models.janus import Janus


@dataclass(frozen=True)
class SpeculativeStep(DrawStep):
    """A code of each picture that is sure, and how many passes it took to come so far.

    A pass is one run of the language model over a window; the prompt and codes given beforehand take none.
    """

    passes: int


@dataclass(frozen=True)
class Clues:
    """What a code can be guessed by.

    The codes before its position, (P, position), of which the last may be guesses too; and what the
    position's own noise chooses by the newest logits, those of the last position computed: () -> codes (P,).
    """

    position: int
    grid: int
    codes: Tensor
    by_newest: Callable[[], Tensor]


Guess = Callable[[Clues], Tensor]


def by_newest(clues: Clues) -> Tensor:
    """The position's own noise, with the newest logits in place of those that are not known yet.

    The noise decides much of what is chosen, and it is known beforehand; what is greedy is the likeliest code
    of a position nearby. benchmarks/speculation.py compares with guessing a code nearby.
    """
    return clues.by_newest()


def window_of(speculate: Any) -> int:
    """The codes of a window that a user's option means; 1, which is one code after another, for no window.

    None leaves it to the library, which speculates nowhere by default: what it gains depends on how well the
    codes of a checkpoint's pictures can be guessed, and where they cannot, it costs time. ValueError unless
    it is None, False or a whole number of at least 0.
    """
    if speculate is None or speculate is False:
        return 1
    return max(
        1,
        require_whole(
            "speculate (codes read at once, all but one of them guessed; 0 for none)", speculate, least=0
        ),
    )


def speculative_steps(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    window: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    prompt_caches: PromptCaches | None = None,
    guess: Guess = by_newest,
) -> Iterator[SpeculativeStep]:
    """As `draw_steps`, with up to `window` codes of each picture in one run of the model.

    The steps are the same, position by position: in float32 their codes are equal, unless two of them are as
    good as equally likely and the rounding of a matrix product, which depends on its shape, tells them apart.
    In 16 bits, where rounding is coarse, they are on a CPU on which a product's rows round alike however many
    they are; on a GPU they need not be, and the picture is then another one, as truly drawn from the model.
    Pictures advance together, by what is sure in all of them; one that is ahead keeps its codes as guesses.
    The arguments are checked at once.
    """
    window = min(require_whole("window", window, least=1), model.config.picture_tokens)
    check_pictures(model, pictures, guidance)
    return _steps(
        model,
        pictures,
        pad_id,
        window,
        guidance,
        sampling or Sampling(),
        prompt_caches or PromptCaches(model),
        guess,
    )


@torch.no_grad()
def _steps(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    window: int,
    guidance: float,
    sampling: Sampling,
    prompt_caches: PromptCaches,
    guess: Guess,
) -> Iterator[SpeculativeStep]:
    start, end, grid = len(pictures[0].start), model.config.picture_tokens, model.config.grid
    batch, hidden = begin(model, pictures, pad_id, guidance, sampling, None, prompt_caches)
    cache = batch.cache
    shift = cache.length - start  # from a code's position in the picture to that in the cache
    places = torch.arange(end, device=model.device)
    codes = torch.zeros(len(pictures), end, dtype=torch.long, device=model.device)
    codes[:, :start] = torch.tensor([picture.start for picture in pictures], device=model.device)

    def choose(position: int, logits: Tensor) -> Tensor:
        """The codes (P,) that a position's noise gives by logits (R, V)."""
        return batch.sampler.choose(logits, places[position : position + 1])

    logits = model.image_logits(hidden).float()
    codes[:, start] = choose(start, logits)
    yield SpeculativeStep(start, *batch.sampler.split(logits), codes[:, start], 0)
    sure = filled = start + 1  # codes before `sure` are final, and those from there to `filled` are guesses
    passes = 0
    while sure < end:
        last = min(sure + window, end)  # of the codes [sure, last) all but the last are fed
        for position in range(filled, last - 1):
            clues = Clues(position, grid, codes[:, :position], partial(choose, position, logits))
            codes[:, position] = guess(clues)
        cache.truncate(shift + sure - 1)
        hidden = model.hidden_states(batch.sampler.feed(codes[:, sure - 1 : last - 1]), None, cache)
        computed = model.image_logits(hidden).float().unbind(dim=1)
        drawn = torch.stack([choose(sure + ahead, each) for ahead, each in enumerate(computed)], dim=1)
        right = (codes[:, sure : last - 1] == drawn[:, :-1]).all(dim=0)
        codes[:, sure:last] = drawn
        passes += 1
        found, logits = 1 + int(right.cumprod(dim=0).sum()), computed[-1]
        for position, each in zip(range(sure, sure + found), computed, strict=False):
            yield SpeculativeStep(position, *batch.sampler.split(each), codes[:, position], passes)
        sure, filled = sure + found, last
