"""The combinations that training never sees, fixed by a hash of their names.

Four color-shape pairs ("kinds"), no two of one color or of one shape, are in no picture and no text of
training: the tokenizer of pictures does not see them either. One in ten unordered pairs of kinds, a kind with
itself among them, is never together in one picture, or said to be: all that may be is that a question asks
for one, and is told no, beside the other.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from itertools import combinations, product
from typing import Literal

from janus.training.worlds.shapes.scene import COLORS, SHAPES, Kind

Reason = Literal["kind", "pair"]

ONE_PAIR_IN = 10


def _digest(text: str) -> int:
    """The same number in every process and on every machine, which Python's `hash` is not."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def _choose_kinds(count: int) -> tuple[Kind, ...]:
    """The first kinds by their digests, each of a color and a shape that those before it do not have."""
    chosen: list[Kind] = []
    for color, shape in sorted(product(COLORS, SHAPES), key=lambda kind: _digest(" ".join(kind))):
        if len(chosen) < count and not any(color == other[0] or shape == other[1] for other in chosen):
            chosen.append((color, shape))
    return tuple(chosen)


HELD_OUT_KINDS = _choose_kinds(4)


@cache
def is_held_out_pair(first: Kind, second: Kind) -> bool:
    """Whether two kinds, in either order, are never together in training."""
    names = sorted([" ".join(first), " ".join(second)])
    return _digest(" and ".join(names)) % ONE_PAIR_IN == 0


def held_out_reason(kinds: Sequence[Kind]) -> Reason | None:
    """Why objects of these kinds are not for training: a kind never seen, else a pair never seen together."""
    if any(kind in HELD_OUT_KINDS for kind in kinds):
        return "kind"
    return "pair" if any(is_held_out_pair(a, b) for a, b in combinations(kinds, 2)) else None
