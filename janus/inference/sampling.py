"""How a token is chosen: guidance, the limits of a distribution, and noise that anybody can compute again.

The noise at one position is a function of (seed, row, position, token) and of nothing else, on every device
the same but for the rounding of a logarithm: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", 2011) with the seed as its key and the rest as its counter. Choosing argmax(p / e) with e
exponentially distributed samples from p; `torch.multinomial` does the same with noise of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.checks import require_number, require_whole

WORD = 0xFFFFFFFF
Noise = Callable[[int], Tensor]  # from a position to exponentially distributed (B, V)
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
        require_number("temperature", self.temperature, "0 (greedy) or more", least=0)
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {COLDEST}, not {self.temperature!r}"
            )
        if self.top_k is not None:
            require_whole("top_k", self.top_k, least=0)
        if self.top_p is not None:
            require_number("top_p", self.top_p, "above 0 and at most 1", least=SMALLEST, most=1)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits, as the original computes it."""
    return unconditional + guidance * (conditional - unconditional)


def limit(logits: Tensor, sampling: Sampling) -> Tensor:
    """(..., V) -> (..., V): divided by the temperature, and at -inf what first top-k, then top-p exclude.

    Top-p drops the least likely tokens while they weigh at most 1 - top_p together, as transformers does.
    """
    logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
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
    return (limit(logits, sampling).softmax(dim=-1) / noise).argmax(dim=-1)


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit words held in int64, without overflowing it."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words per counter; words are int64 in [0, 2^32) and broadcast together."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def seeded_noise(seeds: Sequence[int], rows: Sequence[int], tokens: int, device: torch.device) -> Noise:
    """From a position to (B, tokens) float32, exponentially distributed.

    Row b is that of picture (or answer) `rows[b]` of seed `seeds[b]`; seeds may be any whole numbers and
    count modulo 2^64.
    """
    words = torch.tensor(
        [[seed & WORD, (seed >> 32) & WORD, row & WORD] for seed, row in zip(seeds, rows, strict=True)],
        dtype=torch.int64,
    ).to(device)
    low, high, row_words = words[:, 0:1], words[:, 1:2], words[:, 2:3]
    blocks = torch.arange((tokens + 3) // 4, device=device)[None]
    zero = torch.zeros_like(row_words)

    def noise(position: int) -> Tensor:
        drawn = torch.stack(philox((low, high), (blocks, zero + position, row_words, zero)), dim=-1)
        # The middle of each of 2^32 equal parts of (0, 1): never 0, and finest near 0, where the winners of a
        # race are. The last parts would round to 1, whose noise is infinite: not even a certain token would
        # win.
        uniform = (drawn.flatten(1)[:, :tokens].to(torch.float32) + 0.5) * 2.0**-32
        return -torch.log1p(-uniform.clamp_max(1 - 2.0**-24))

    return noise
