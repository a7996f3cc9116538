"""How a token is chosen: guidance, the limits of a distribution, and noise that anybody can compute again.

The noise at one position is a function of (seed, row, position, token) and of nothing else, on every device
the same but for the rounding of a logarithm. It and the rest of what the kernel computes too are in
`janus.kernels.sample`. Choosing argmax(p / e) with e exponentially distributed samples from p;
`torch.multinomial` does the same with noise of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.checks import require_number, require_whole
from janus.kernels.sample import WORD, exponential_noise, exponential_race, keep_top, seeds_as_int64

Noise = Callable[[int], Tensor]  # from a position to exponentially distributed (B, V)
HOTTEST = 1_000_000  # all are alike long before
COLDEST = 1e-6  # below it, logits divided by the temperature could leave the range of float32
SMALLEST = 5e-324  # the least number above 0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Limits of a distribution.

    Temperature 0 is greedy; `top_k` and `top_p` None or 0 and 1 keep everything.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        wanted = f"0 (greedy) or more, up to {HOTTEST}"
        temperature = require_number("temperature", self.temperature, wanted, least=0, most=HOTTEST)
        object.__setattr__(self, "temperature", temperature)
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {COLDEST}, not {self.temperature!r}"
            )
        if self.top_k is not None:
            require_whole("top_k", self.top_k, least=0)
        if self.top_p is not None:
            top_p = require_number("top_p", self.top_p, "above 0 and at most 1", least=SMALLEST, most=1)
            object.__setattr__(self, "top_p", top_p)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def sorts(self) -> bool:
        """Whether a distribution must be put in order to be limited."""
        return not self.greedy and self.top_p is not None and self.top_p < 1


def limit(logits: Tensor, sampling: Sampling) -> Tensor:
    """(..., V) -> (..., V): divided by the temperature, and at -inf what first top-k, then top-p exclude.

    Top-p drops the least likely tokens while they weigh at most 1 - top_p together, as transformers does.
    """
    logits = keep_top(logits / sampling.temperature, sampling.top_k)
    if sampling.sorts:
        assert sampling.top_p is not None
        ordered, order = logits.sort(dim=-1)
        drop = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        drop[..., -1] = False
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
    return logits


def choose(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """(B, V) logits and exponential noise -> (B,) tokens; greedy needs no noise."""
    if sampling.greedy:
        return logits.argmax(dim=-1)
    assert noise is not None
    return exponential_race(limit(logits, sampling), noise)


def seeded_noise(seeds: Sequence[int], rows: Sequence[int], tokens: int, device: torch.device) -> Noise:
    """From a position to (B, tokens) float32, exponentially distributed.

    Row b is that of picture (or answer) `rows[b]` of seed `seeds[b]`; seeds may be any whole numbers and
    count modulo 2^64.
    """
    patterns = seeds_as_int64(seeds).to(device)
    numbers = torch.tensor([row & WORD for _, row in zip(seeds, rows, strict=True)], dtype=torch.int64).to(
        device
    )

    def noise(position: int) -> Tensor:
        return exponential_noise(patterns, numbers, position, tokens)

    return noise
