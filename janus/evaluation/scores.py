"""What a model scored on the world `shapes`: as JSON for programs, as a table for people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from janus.evaluation.intervals import Tally

# What can be said of a task: its category, and why it is held out from training ("kind", "pair", or None).
Judged = tuple[str, str | None, bool]
REASONS = {"kind": "a kind never seen", "pair": "a pair never seen together"}


@dataclass(frozen=True)
class ListScores:
    """A list of tasks: by category, and by why they are held out (empty for a list that is not)."""

    by_category: Mapping[str, Tally]
    by_reason: Mapping[str, Tally]

    @classmethod
    def of(cls, judged: Iterable[Judged], categories: Iterable[str]) -> "ListScores":
        """From the tasks one by one; `categories` in the order to show, those without a task left out."""
        categories_of: dict[str, Tally] = dict.fromkeys(categories, Tally())
        reasons_of: dict[str, Tally] = dict.fromkeys(REASONS, Tally())
        for category, reason, right in judged:
            categories_of[category] += Tally(int(right), 1)
            if reason is not None:
                reasons_of[reason] += Tally(int(right), 1)
        return cls(_counted(categories_of), _counted(reasons_of))

    @property
    def whole(self) -> Tally:
        return sum(self.by_category.values(), Tally())


def _counted(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    return {name: tally for name, tally in tallies.items() if tally.total}


@dataclass(frozen=True)
class PartScores:
    """One ability, on combinations that training sees and on those that are held out, if there are."""

    seen: ListScores
    heldout: ListScores = ListScores({}, {})

    @property
    def whole(self) -> Tally:
        return self.seen.whole + self.heldout.whole

    @property
    def by_category(self) -> dict[str, Tally]:
        """Both lists together."""
        both: dict[str, Tally] = {}
        for name, tally in chain(self.seen.by_category.items(), self.heldout.by_category.items()):
            both[name] = both.get(name, Tally()) + tally
        return both


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of a model on `shapes`: pictures that survive codes or latents, drawings and answers that are right.

    `samples` is the length of each list, which with `seed`, `split` and `color` are always the same.
    """

    reconstruction: PartScores
    drawing: PartScores
    answers: PartScores
    samples: int
    seed: int
    split: str
    color: str | None = None

    @property
    def parts(self) -> dict[str, PartScores]:
        return {"reconstruction": self.reconstruction, "drawing": self.drawing, "answers": self.answers}

    def to_json(self) -> dict[str, Any]:
        """Shares from 0 to 1; under "details" each with its counts and interval, for each list by itself.

        `by_category` is of both lists together, and has no key for a category without a task.
        """
        return {
            "reconstruction": self.reconstruction.whole.share,
            "drawing": _shares(self.drawing),
            "answers": _shares(self.answers),
            "details": {name: _details(part) for name, part in self.parts.items()},
            "samples": self.samples,
            "seed": self.seed,
            "split": self.split,
            "color": self.color,
        }

    def table(self) -> str:
        """Markdown, its columns aligned so that it reads as plain text too."""
        rows = [("task", "category", "seen", "held out")]
        for name, part in self.parts.items():
            rows.append((name, "all", _cell(part.seen.whole), _cell(part.heldout.whole)))
            # What makes codes or latents is not told what a picture is of: its categories say little.
            for category in part.by_category if name != "reconstruction" else ():
                cells = [_cell(scores.by_category.get(category)) for scores in (part.seen, part.heldout)]
                rows.append((name, category.replace("_", " "), cells[0], cells[1]))
            for reason, tally in part.heldout.by_reason.items():
                rows.append((name, f"held out: {REASONS[reason]}", "", _cell(tally)))
        lists = f"{self.split} lists" if self.color is None else f"{self.split} lists with {self.color}"
        note = f"{lists} of seed {self.seed}, {self.samples:,} tasks each; 95 % intervals (Wilson)"
        return f"{_aligned(rows)}\n\n{note}"


def _shares(part: PartScores) -> dict[str, Any]:
    return {
        "seen": part.seen.whole.share,
        "heldout": part.heldout.whole.share,
        "by_category": {name: tally.share for name, tally in part.by_category.items()},
    }


def _details(part: PartScores) -> dict[str, Any]:
    lists = {
        name: {
            "all": _figures(scores.whole),
            "by_category": {key: _figures(tally) for key, tally in scores.by_category.items()},
        }
        for name, scores in (("seen", part.seen), ("heldout", part.heldout))
    }
    lists["heldout"]["by_reason"] = {key: _figures(tally) for key, tally in part.heldout.by_reason.items()}
    lists["both"] = {
        "all": _figures(part.whole),
        "by_category": {key: _figures(tally) for key, tally in part.by_category.items()},
    }
    return lists


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "right": tally.right,
        "total": tally.total,
        "share": tally.share,
        "interval": list(tally.interval),
    }


def _cell(tally: Tally | None) -> str:
    """ "97.5 % (95.9–98.5), 390 of 400"; empty where there was no task."""
    if tally is None or tally.share is None:
        return ""
    low, high = tally.interval
    counts = f"{tally.right:,} of {tally.total:,}"
    return f"{100 * tally.share:.1f} % ({100 * low:.1f}–{100 * high:.1f}), {counts}"


def _aligned(rows: list[tuple[str, str, str, str]]) -> str:
    """A markdown table whose first row is the heading; names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (width - 1) for width in widths[:2]] + [
        "-" * (width - 1) + ":" for width in widths[2:]
    ]
    lines = []
    for row in (rows[0], tuple(rule), *rows[1:]):
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append(f"| {' | '.join(names + figures)} |")
    return "\n".join(lines)
