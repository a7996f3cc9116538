"""Order without state: which row comes when, and with which seed, are functions of numbers alone.

They are made of a hash, not of a generator, so that they are the same on every machine and with every
version, and any place of an epoch is reached at once.
"""

from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from math import gcd, lcm

ROUNDS = 6
LONGEST_PERIOD = 10_000  # shares are rounded to the ten-thousandth where they cannot be met exactly


def hashed(*key: int | str) -> int:
    """64 bits that look random, of whole numbers and names."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def shuffled(position: int, length: int, key: int) -> int:
    """What stands at `position` of a random order, named by `key`, of the numbers below `length`.

    A Feistel network over the next power of 4, followed until it is below `length` (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).
    """
    assert 0 <= position < length
    bits = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    value = position
    while True:
        left, right = value >> bits, value & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (hashed(key, number, right) & mask)
        value = left << bits | right
        if value < length:
            return value


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Weights as the smallest whole numbers in the same ratio; of at most LONGEST_PERIOD in all."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    shares = [int(weight * scale) for weight in exact]
    shares = [share // gcd(*shares) for share in shares]
    if sum(shares) > LONGEST_PERIOD:
        total = sum(exact)
        shares = [max(1, round(LONGEST_PERIOD * weight / total)) if weight else 0 for weight in exact]
    return shares


class Schedule:
    """Whose turn it is: errors are carried on, so that every share always had its part, to within one turn.

    A share's turn number n is due after n and before n + 1 of its parts of the period have passed; of those
    that may come, the one that must come first does (Baruah et al., "Proportionate progress", 1996).
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = list(shares)
        self.period = sum(shares)
        self.turns: list[int] = []
        self.before = [[0] * len(shares)]  # turns that each share had before each place of the period
        for place in range(1, self.period + 1):
            counts = self.before[-1]
            due = [
                (-(-(count + 1) * self.period // share), index)
                for index, (share, count) in enumerate(zip(shares, counts, strict=True))
                if share * place > count * self.period
            ]
            _, turn = min(due)
            self.turns.append(turn)
            self.before.append([count + (index == turn) for index, count in enumerate(counts)])

    def turn(self, index: int) -> int:
        """The share whose turn number `index` is."""
        return self.turns[index % self.period]

    def count(self, index: int, share: int) -> int:
        """How many turns a share had before turn number `index`."""
        return index // self.period * self.shares[share] + self.before[index % self.period][share]
