"""Shares of what was right, and how far the truth may be from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from janus.checks import require_whole

Z = NormalDist().inv_cdf(0.975)  # standard errors that a 95 % interval reaches to either side


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1 where nothing was counted.

    Wilson's (1927, doi:10.1080/01621459.1927.10502953): all shares p with |right/total - p| of at most 1.96
    standard errors as p itself gives them. It takes the trials for independent. ValueError unless `right` is
    a whole number from 0 to `total`.
    """
    require_whole("total", total, least=0)
    if require_whole("right", right, least=0) > total:
        raise ValueError(f"right must be at most total, and {right} is more than {total}")
    if total == 0:
        return 0.0, 1.0
    middle = right + Z**2 / 2
    reach = Z * math.sqrt(right * (total - right) / total + Z**2 / 4)
    # At the ends the roots are 0 and 1 exactly, which rounding would miss.
    low = (middle - reach) / (total + Z**2) if right else 0.0
    high = (middle + reach) / (total + Z**2) if right < total else 1.0
    return low, high


@dataclass(frozen=True)
class Tally:
    """How many of `total` were right. ValueError as in `wilson`."""

    right: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        wilson(self.right, self.total)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.total + other.total)

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where nothing was counted."""
        return self.right / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)
