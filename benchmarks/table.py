"""Write README's table of performance from benchmarks/results/*.csv; it is never typed.

    python benchmarks/table.py            write it between the marks in README.md
    python benchmarks/table.py --check    only say whether it is current; status 1 if not

The marks are <!-- performance --> and <!-- /performance -->, each on a line of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cases import Case, ModelCase
from machine import REPOSITORY
from rows import OWN, RESULTS, Row, best_peer, by_case, latest, number, peer_name, read
from run import Mistake, benchmarks

BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
COMMAND = "python benchmarks/run.py"
# Ours that have lines of their own, and what is said of them.
OURS = {OWN: "", f"{OWN}-int8": ", weights of 8 bits", f"{OWN}-int4": ", weights of 4 bits"}


def line(label: str, group: Sequence[Row], name: str = OWN) -> str | None:
    """One case: one of ours, its floor, and the best other; nothing where ours did not run."""
    ours = next((row for row in group if row.implementation == name), None)
    if ours is None:
        return None
    peer = best_peer(group)
    other = (
        ("–", "–")
        if peer is None
        else (
            f"{number(peer.median)} ({peer_name(peer, ours)})",
            f"{peer.median / ours.median:.2f}×",
        )
    )
    cells = (label, number(ours.median), number(ours.floor), f"{1 / ours.floor_fraction:.1f}×", *other)
    return f"| {' | '.join(cells)} |"


def section(machine: Sequence[Row], labels: dict[str, str]) -> list[str]:
    """One machine's table: a row for each headline case, in their order. Quick runs are none to quote."""
    rows = latest(row for row in machine if not row.quick)
    groups = {case: group for (_, case), group in by_case(rows).items() if case in labels}
    lines = [
        line(label + remark, groups[case], name)
        for case, label in labels.items()
        if case in groups
        for name, remark in OURS.items()
    ]
    found = [text for text in lines if text is not None]
    if not found:
        return []
    shown = [row for group in groups.values() for row in group]

    def each(values: Iterable[str], before: str = "", between: str = ", ") -> list[str]:
        different = sorted(set(values) - {"none"})
        return [before + between.join(different)] if different else []

    days = sorted({row.date[:10] for row in shown})
    of = [
        *each((row.torch for row in shown), "torch "),
        *each((row.triton for row in shown), "triton "),
        *each((days[0], days[-1]), between=" to "),
        *each((row.commit for row in shown), "commit "),
    ]
    threads = f", {shown[0].threads} threads" if shown[0].machine.endswith(("thread", "threads")) else ""
    return [
        f"**{shown[0].device}**{threads}: {', '.join(of)}",
        "",
        "| what | ours, ms | floor, ms | ours / floor | best other, ms | other / ours |",
        "| --- | --- | --- | --- | --- | --- |",
        *found,
        "",
    ]


def generate(folder: Path, cases: Sequence[Case]) -> str:
    """What stands between the marks, from all files of a folder of results: whole models first."""
    ordered = sorted(cases, key=lambda case: not isinstance(case, ModelCase))
    labels = {case.name: case.headline for case in ordered if case.headline}
    sections: list[str] = []
    for file in sorted(folder.glob("*.csv")):
        sections += section(read(file), labels)
    if not sections:
        return f"\nNothing has been measured yet: `{COMMAND}` does.\n\n"
    explained = (
        f"Medians of `{COMMAND}`, but for a whole picture, which on a CPU is one call; each beside the best "
        "other in the\nsame run. All rows, with quantiles and versions, are in "
        "[benchmarks/results](benchmarks/results). The floor is the larger of bytes\nover bandwidth and FLOP "
        "over the rate of a matrix product, both measured in that run."
    )
    return "\n".join(["", *sections, explained, "", ""])


def put(text: str, table: str) -> str:
    """The text with the table between its marks. Raises Mistake where there are none."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise Mistake(f"README.md needs the lines {BEGIN} and {END}, in this order, where the table belongs")
    return before + begin + table + end + after


def main(arguments: Sequence[str] | None = None) -> int:
    usage = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if the table is not current"
    )
    usage.add_argument("--readme", metavar="FILE", type=Path, default=REPOSITORY / "README.md")
    usage.add_argument("--results", metavar="FOLDER", type=Path, default=RESULTS)
    options = usage.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    cases = [case for benchmark in benchmarks() for case in benchmark.CASES]
    try:
        current = put(text, generate(options.results, cases))
    except (Mistake, ValueError) as mistake:
        print(f"table.py: {mistake}", file=sys.stderr)
        return 2
    if options.check:
        if current != text:
            print("table.py: the table is not current: run python benchmarks/table.py", file=sys.stderr)
        return int(current != text)
    options.readme.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
