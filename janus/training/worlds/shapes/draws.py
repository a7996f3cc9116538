"""Draws from a numpy Generator. One uniform number each: a fifth of the time of `Generator.integers`."""

from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

T = TypeVar("T")


def chance(rng: Generator, probability: float) -> bool:
    return rng.random() < probability


def whole(rng: Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Generator, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]
