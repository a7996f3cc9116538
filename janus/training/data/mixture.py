"""Which row comes when: sources in a fixed ratio, each shuffled anew every epoch, and split over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from janus.checks import require_number, require_whole
from janus.training.data.order import Schedule, hashed, shuffled, whole_shares
from janus.training.data.outline import Task
from janus.training.data.rows import Row


class Source(Protocol):
    """Rows by number, or endless ones by seed: reading one must not depend on those read before it."""

    name: str
    size: int | None  # None: endless

    def row(self, index: int, seed: int) -> Row:
        """Row `index` of a source of a size; of an endless one, the row that `seed` makes.

        Raises ValueError or FileNotFoundError naming file and line.
        """
        ...


@dataclass(frozen=True)
class Part:
    """A source and its weight in the mixture; `task`, if named, is what all its rows must be."""

    source: Source
    weight: float
    task: Task | None = None


@dataclass(frozen=True)
class Draw:
    """One place in the order of a rank: the part, the row's number in its source, and the row's own seed."""

    part: int
    index: int
    seed: int


class Mixture:
    """The order of the rows that one rank reads: an endless list, of which any place can be looked up.

    Parts take turns by error diffusion, on every rank, so that every stretch has their ratio. The rows of a
    source are dealt to the ranks in turn, from a new random order every epoch.
    """

    def __init__(self, parts: Sequence[Part], *, seed: int, rank: int = 0, ranks: int = 1) -> None:
        _check(parts)
        require_whole("the number of ranks", ranks, least=1)
        if not 0 <= require_whole("rank", rank) < ranks:
            raise ValueError(f"rank is {rank}: of {ranks} ranks, the numbers go from 0 to {ranks - 1}")
        self.parts, self.seed, self.rank, self.ranks = list(parts), seed, rank, ranks
        self.schedule = Schedule(whole_shares([part.weight for part in parts]))
        # Ranks begin at different places, so that a step of all ranks has the ratio, too.
        self.offset = rank * self.schedule.period // ranks

    def draw(self, place: int) -> Draw:
        """What stands at a place of this rank's order."""
        turn = place + self.offset
        part = self.schedule.turn(turn)
        number = self.drawn(place, part) * self.ranks + self.rank  # of all ranks' draws from this source
        source = self.parts[part].source
        seed = hashed("row", self.seed, source.name, number)
        if source.size is None:
            return Draw(part, number, seed)
        epoch, position = divmod(number, source.size)
        key = hashed("epoch", self.seed, source.name, epoch)
        return Draw(part, shuffled(position, source.size, key), seed)

    def instead(self, draw: Draw, attempt: int) -> Draw:
        """Another row of the same source, for a place whose own row cannot be used; attempts count from 1."""
        size = self.parts[draw.part].source.size
        seed = hashed("instead", draw.seed, attempt)
        return Draw(draw.part, draw.index if size is None else seed % size, seed)

    def drawn(self, place: int, part: int) -> int:
        """How many rows this rank took from a part before a place."""
        return self.schedule.count(place + self.offset, part) - self.schedule.count(self.offset, part)

    def identity(self) -> dict[str, object]:
        """What the order depends on; a saved place means the same only where this is the same."""
        return {
            "seed": self.seed,
            "ranks": self.ranks,
            "parts": [[part.source.name, part.source.size] for part in self.parts],
            "shares": self.schedule.shares,
        }

    def check_identity(self, saved: Mapping[str, object]) -> None:
        """Raise ValueError where a place was saved in another order of rows."""
        ours = self.identity()
        for key, theirs in saved.items():
            if ours[key] != theirs:
                raise ValueError(
                    f"the data's {key} were {theirs} when the state was saved, and are {ours[key]}: give the "
                    "same, or begin a new run"
                )


def _check(parts: Sequence[Part]) -> None:
    if not parts:
        raise ValueError("a mixture needs at least one source")
    names = [part.source.name for part in parts]
    for part in parts:
        require_number(f"the weight of {part.source.name}", part.weight, "a number of at least 0", least=0)
        if part.source.size == 0:
            raise ValueError(f"{part.source.name} holds no rows: leave it out of the mixture")
        if names.count(part.source.name) > 1:
            raise ValueError(f"{part.source.name} is in the mixture twice: add its weights up")
    if not any(part.weight for part in parts):
        raise ValueError(f"the weights of {', '.join(names)} are all 0: give one of them a positive weight")
