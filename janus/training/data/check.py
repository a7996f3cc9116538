"""What is wrong with a file of training data, all of it at once, and how long its documents are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from janus.processing.processor import Processor
from janus.progress import Progress
from janus.progress import Report as OnProgress
from janus.training.data.outline import Geometry, Task, outline
from janus.training.data.rows import PlaceholderMismatch, Resolve, beside, parse_row
from janus.training.data.sources import JsonLines

Kind = Literal["malformed", "placeholders", "missing", "broken", "long"]
MEANING: dict[Kind, str] = {
    "malformed": "rows that are malformed",
    "placeholders": "rows with more or fewer placeholders than pictures",
    "missing": "pictures that do not exist",
    "broken": "pictures that cannot be read",
    "long": "rows over the limit",
}
BINS, BAR = 12, 40  # of a histogram: the most rows, and the width in characters


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the row of a line; the message begins with file and line."""

    line: int
    kind: Kind
    message: str


@dataclass
class Report:
    """What was found in a file: its rows by task, the lengths of their documents, and every problem."""

    path: Path
    limit: int
    rows: int = 0
    tasks: Counter[Task] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def unusable(self) -> dict[int, list[Problem]]:
        """The problems of each line that no policy for long documents can help."""
        lines: dict[int, list[Problem]] = {}
        for problem in self.problems:
            if problem.kind != "long":
                lines.setdefault(problem.line, []).append(problem)
        return lines


def check(
    path: str | PathLike[str],
    processor: Processor,
    limit: int,
    *,
    geometry: Geometry | None = None,
    progress: bool | OnProgress | None = None,
) -> Report:
    """Read every row of a file of JSON lines, and every picture of it, as training would.

    Raises FileNotFoundError or ValueError only where the file itself cannot be read.
    """
    source = JsonLines(path)
    report = Report(source.path, limit, rows=len(source.lines))
    with Progress(len(source.lines), "row", progress) as bar:
        for index, line in enumerate(source.lines.tolist()):
            for kind, message in _problems(source, index, report, processor, geometry):
                report.problems.append(Problem(line, kind, message))
            bar.advance()
    return report


def format_report(report: Report) -> str:
    """A report as people read it: every problem in a line of its own, then sums and the histogram."""
    lines = [problem.message for problem in report.problems]
    found = Counter(problem.kind for problem in report.problems)
    lines += [f"{found[kind]} {meaning}" for kind, meaning in MEANING.items() if found[kind]]
    tasks = ", ".join(f"{count} {task}" for task, count in sorted(report.tasks.items())) or "none usable"
    lines.append(f"{report.path}: {report.rows} rows ({tasks}), limit {report.limit} tokens")
    if report.lengths:
        mean = sum(report.lengths) / len(report.lengths)
        shortest, longest = min(report.lengths), max(report.lengths)
        lines.append(f"tokens of a row: from {shortest} to {longest}, {mean:.1f} in the mean")
        lines += histogram(report.lengths)
    return "\n".join(lines)


def histogram(values: Sequence[int]) -> list[str]:
    """Lines of a histogram: from, to, how many; bins of 1, 2 or 5 times a power of ten, 12 at the most."""
    widths = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
    low, high = min(values), max(values)
    width = next(width for width in widths if high // width - low // width < BINS)
    counts = Counter(value // width for value in values)
    bins = range(low // width, high // width + 1)
    digits = len(str((bins[-1] + 1) * width - 1))
    most = max(counts.values())
    return [
        f"{bin * width:>{digits}} - {(bin + 1) * width - 1:>{digits}}  "
        f"{'#' * -(-counts[bin] * BAR // most):<{BAR}}  {counts[bin]}"
        for bin in bins
    ]


def _problems(
    source: JsonLines,
    index: int,
    report: Report,
    processor: Processor,
    geometry: Geometry | None,
) -> Iterator[tuple[Kind, str]]:
    """What is wrong with a row; what is right with it goes into the report."""
    where, raw = source.where(index), None
    try:
        raw = source.raw(index)
        row = parse_row(raw, where, beside(source.path.parent))
        document = outline(row, processor, geometry)
    except PlaceholderMismatch as error:
        yield "placeholders", str(error)
    except ValueError as error:
        yield "malformed", str(error)
    else:
        report.tasks[document.task] += 1
        report.lengths.append(len(document))
        if len(document) > report.limit:
            yield "long", f"{where}: {len(document)} tokens, over the limit of {report.limit}"
    for picture in _pictures(raw, beside(source.path.parent)):
        try:
            processor.image.open(picture)
        except FileNotFoundError as error:
            yield "missing", f"{where}: {error}"
        except ValueError as error:
            yield "broken", f"{where}: {error}"


def _pictures(raw: Any, resolve: Resolve) -> Iterator[Any]:
    """All that a row names as a picture, however malformed the rest of it is."""
    if not isinstance(raw, Mapping):
        return
    named = [raw.get("image"), *_list(raw.get("images"))]
    for message in _list(raw.get("messages")):
        parts = _list(message.get("content")) if isinstance(message, Mapping) else []
        named += [part.get("image") for part in parts if isinstance(part, Mapping)]
    yield from (resolve(picture) for picture in named if picture is not None)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
