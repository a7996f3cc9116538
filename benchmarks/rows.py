"""A measured number and all that it takes to believe it: one row, in JSON, in a CSV file or on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from janus.checks import one_line
from janus.files import write_whole

RESULTS = Path(__file__).resolve().parent / "results"
OWN = "janus"  # our implementations are called this, or this and something after a hyphen


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times are in `unit` per call; `floor` is what no code could beat on this machine.

    `floor` is the larger of `bytes`, each input read and each output written once, over `bandwidth` (bytes a
    second), and `flop` over `rate` (FLOP a second of a matrix product in `arithmetic`); `floor_fraction` is
    floor / median. `cpu` is the processors' time per call, empty on a GPU. `peak_bytes` is what torch
    allocated at once beyond the inputs, results included; of loading, and of what is timed once on a CPU, the
    growth of the process's resident memory. `clock` says how time was taken: "wall", "events",
    or "graph" (events around a replayed CUDA graph); `calls` are those of one sample, `repeats` the samples.
    `versions` are Python's and that of the implementation's own package, `note` what to know of the row.
    """

    date: str
    machine: str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    quick: bool
    benchmark: str
    case: str
    dtype: str
    implementation: str
    unit: str
    median: float
    quantile_20: float
    quantile_80: float
    cpu: float | None
    repeats: int
    calls: int
    clock: str
    floor: float
    floor_fraction: float
    bytes: int
    flop: int
    arithmetic: str
    bandwidth: float
    rate: float
    peak_bytes: int
    versions: str = ""
    note: str = ""

    @property
    def own(self) -> bool:
        return self.implementation.partition("-")[0] == OWN

    @property
    def identity(self) -> tuple[str | bool, ...]:
        """A row with the same one was measured again, and replaces this."""
        return (
            self.quick,
            self.machine,
            self.torch,
            self.triton,
            self.commit,
            self.benchmark,
            self.case,
            self.implementation,
        )


_READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": {"True": True, "False": False}.__getitem__,
    "float | None": lambda text: float(text) if text else None,
}


def read(file: Path) -> list[Row]:
    """The rows of one CSV file; none where there is no file.

    Older files lack the last columns. ValueError for other columns, and for a line that is damaged.
    """
    if not file.exists():
        return []
    content = file.read_bytes()
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        lines = [(reader.line_num, values) for values in reader]
    except UnicodeDecodeError as error:
        raise _damaged(file, content.count(b"\n", 0, error.start) + 1, error) from error
    except csv.Error as error:
        raise _damaged(file, reader.line_num + 1, error) from error
    found, known = set(reader.fieldnames or ()), {field.name for field in fields(Row)}
    needed = {field.name for field in fields(Row) if field.default is MISSING}
    if not needed <= found <= known:
        odd = ", ".join(sorted((needed - found) | (found - known)))
        raise ValueError(
            f"{file} has other columns than benchmarks/rows.py ({odd}): name another with --results"
        )
    return [_row(file, number, values) for number, values in lines]


def _row(file: Path, line: int, values: dict[str, str]) -> Row:
    kinds = {field.name: _READERS[str(field.type)] for field in fields(Row)}
    try:
        if None in values or None in values.values():  # as DictReader says it
            raise ValueError("it has more or fewer values than there are columns")
        return Row(**{name: kinds[name](text) for name, text in values.items()})
    except (ValueError, KeyError) as error:
        raise _damaged(file, line, error) from error


def _damaged(file: Path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{file}, line {line}, is damaged ({one_line(error)}): mend the line, or name another folder with "
        "--results"
    )


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write the rows of one machine: whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(file, lines.getvalue().encode())


def merge(folder: Path, rows: Iterable[Row]) -> list[Path]:
    """Put rows into their machines' files, in place of older ones of the same identity; -> the files."""
    by_machine: dict[str, list[Row]] = {}
    for row in rows:
        by_machine.setdefault(row.machine, []).append(row)
    files = []
    for machine, new in by_machine.items():
        file = folder / f"{machine}.csv"
        kept = {row.identity: row for row in [*read(file), *new]}
        order = sorted(kept.values(), key=lambda row: (row.benchmark, row.case, row.date, row.implementation))
        write(file, order)
        files.append(file)
    return files


def best_peer(rows: Iterable[Row]) -> Row | None:
    """The fastest that is not ours among the rows of one case and run."""
    return min((row for row in rows if not row.own), key=lambda row: row.median, default=None)


def peer_name(peer: Row, ours: Row) -> str:
    """Its name, and its clock where that is another: "events" count launches, which "graph" does not."""
    return peer.implementation if peer.clock == ours.clock else f"{peer.implementation}, {peer.clock}"


def by_case(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by benchmark and case, the fastest first."""
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.median):
        cases.setdefault((row.benchmark, row.case), []).append(row)
    return cases


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of each case only its last run: what is put side by side was measured side by side."""
    rows = list(rows)
    last: dict[tuple[str, str, str], str] = {}
    for row in rows:
        key = row.machine, row.benchmark, row.case
        last[key] = max(last.get(key, ""), row.date)
    return [row for row in rows if row.date == last[row.machine, row.benchmark, row.case]]


def number(value: float) -> str:
    """Three significant digits, never with an exponent; five decimals at most."""
    bounds = (100, 10, 1, 0.1, 0.01)
    decimals = next((place for place, bound in enumerate(bounds) if value >= bound), len(bounds))
    return f"{value:,.{decimals}f}"


def table(rows: Iterable[Row]) -> str:
    """What the screen shows: implementations of a case together, the fastest first."""
    titles = (
        "case",
        "implementation",
        "median",
        "20 %",
        "80 %",
        "unit",
        "clock",
        "cpu",
        "floor",
        "x floor",
        "peak MB",
    )
    lines: list[tuple[str, ...]] = [(*titles, "best peer / ours", "note")]
    for (_, case), group in sorted(by_case(rows).items()):
        peer = best_peer(group)
        for row in group:
            against = f"{peer.median / row.median:.2f} ({peer_name(peer, row)})" if row.own and peer else ""
            times = (row.median, row.quantile_20, row.quantile_80)
            lines.append(
                (
                    case,
                    row.implementation,
                    *(number(value) for value in times),
                    row.unit,
                    row.clock,
                    "" if row.cpu is None else number(row.cpu),
                    number(row.floor),
                    f"{1 / row.floor_fraction:.1f}",
                    f"{row.peak_bytes / 1e6:.1f}",
                    against,
                    row.note,
                )
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = {0, 1, 5, 6, len(titles), len(titles) + 1}
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
