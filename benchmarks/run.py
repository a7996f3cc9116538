"""Measure what this library does, beside others that do the same, on this machine.

    python benchmarks/run.py                          everything that this machine can run
    python benchmarks/run.py --only attention,swiglu  some benchmarks, or cases, or beginnings of their names
    python benchmarks/run.py --list                   what there is; nothing is run

Every implementation is first compared with the benchmark's first one, selected or not, and timed only if it
computes the same. Rows are printed, and kept in benchmarks/results/<machine>.csv with pictures beside it;
`--quick` keeps nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # Read when torch is imported. Threads that wait for others sleep: where spinning ones share their cores
    # with other processes, a call of 60 microseconds can take 20 milliseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import models
import plot
import rows
from cases import Case, dtype_name
from janus.checks import require_whole
from janus.files import require_folder, require_place
from machine import identify, measure_ceilings
from measure import Session, measure, title
from peers import FAMILIES, family
from timer import FULL, QUICK

FOLDER = Path(__file__).resolve().parent


class Mistake(Exception):
    """What the user can mend, in one line."""


@dataclass(frozen=True)
class Selected:
    """A case, the names of the implementations to measure it with, and whether it is measured.

    One that is too large, for a CPU or for --quick, is measured only if it is named in full.
    """

    benchmark: ModuleType
    case: Case
    names: tuple[str, ...]
    runs: bool


def benchmarks() -> list[ModuleType]:
    """Every bench_<name>.py beside this file."""
    return [importlib.import_module(file.stem) for file in sorted(FOLDER.glob("bench_*.py"))]


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def implementations(
    benchmark: ModuleType, case: Case, device: torch.device, peers: Sequence[str] | None
) -> tuple[str, ...]:
    """Ours, and those peers that are wanted, all if none is named; `measure` has ONLY_IF_ASKED_ON_CPU."""
    unwanted = getattr(benchmark, "ONLY_IF_ASKED_ON_CPU", ()) if device.type == "cpu" else ()

    def wanted(name: str) -> bool:
        if peers is not None and (name in peers or family(name) in peers):
            return True
        return (peers is None or family(name) == rows.OWN) and name not in unwanted

    return tuple(name for name in benchmark.setup(case, device) if wanted(name))


def select(
    found: Iterable[ModuleType],
    device: torch.device,
    *,
    only: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    quick: bool = False,
) -> list[Selected]:
    """The cases that `only` names or begins to name, all if it is None. Raises Mistake for unknown names."""
    everything = [(benchmark, case) for benchmark in found for case in benchmark.CASES]
    for word in only or ():
        if not any(
            title(benchmark).startswith(word) or case.name.startswith(word) for benchmark, case in everything
        ):
            known = ", ".join(dict.fromkeys(title(benchmark) for benchmark, _ in everything))
            raise Mistake(
                f"no benchmark or case is called {word!r}; the benchmarks are {known} (--list: all)"
            )
    for word in peers or ():
        if family(word) not in FAMILIES:
            raise Mistake(f"no peer is called {word!r}; there are {', '.join(FAMILIES)}")

    def runs(case: Case) -> bool:
        fits = (case.quick or not quick) and (case.cpu or device.type != "cpu")
        return fits or case.name in (only or ())

    return [
        Selected(benchmark, case, implementations(benchmark, case, device, peers), runs(case))
        for benchmark, case in everything
        if only is None
        or any(title(benchmark).startswith(word) or case.name.startswith(word) for word in only)
    ]


def absent(peers: Sequence[str] | None, names: Iterable[str]) -> list[str]:
    """The peers asked for that none of the names is of."""
    found = {known for name in names for known in (name, family(name))}
    return [peer for peer in peers or () if peer not in found]


def parser() -> argparse.ArgumentParser:
    usage = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument("--list", action="store_true", help="print what there is to measure, and stop")
    usage.add_argument("--only", metavar="A,B", help="benchmarks or cases by name, or how their names begin")
    usage.add_argument("--peers", metavar="P,...", help=f"only these beside ours, of {', '.join(FAMILIES)}")
    usage.add_argument("--quick", action="store_true", help="small cases, few repeats; nothing is kept")
    usage.add_argument("--json", metavar="FILE", type=Path, help="write the rows there")
    usage.add_argument(
        "--threads", metavar="N", type=int, help="of the CPU; as many as torch takes if left out"
    )
    usage.add_argument("--device", choices=("cpu", "cuda"), help="the GPU if there is one")
    usage.add_argument("--commit", metavar="NAME", help="what the rows call the code where there is no git")
    usage.add_argument(
        "--cache", metavar="FOLDER", type=Path, help="where checkpoints to load are kept for the next run"
    )
    usage.add_argument(
        "--results", metavar="FOLDER", type=Path, help="where rows and pictures are kept, --quick or not"
    )
    return usage


def show(found: Sequence[Selected]) -> None:
    width = max(len(one.case.name) for one in found)
    for one in found:
        remark = "" if one.runs else "  (only if named in full)"
        print(f"{title(one.benchmark):<17} {one.case.name:<{width}}  {' '.join(one.names)}{remark}")


def require_places(json: Path | None, cache: Path | None, results: Path | None, machine: str) -> None:
    """ValueError or OSError, before the work, where its results could not be kept."""
    if json is not None:
        require_place(json, "--json")
    if cache is not None:
        require_folder(cache, "name another with --cache")
    if results is not None:
        require_folder(results, "name another with --results")
        rows.read(results / f"{machine}.csv")  # new rows go beside those in it


def run(
    selected: Sequence[Selected], session: Session, folder: Path | None
) -> tuple[list[rows.Row], list[str]]:
    """Measure all; after each case its rows are kept, so that little is lost when a later one is stopped."""
    measured, notes = [], []
    for number, one in enumerate(selected, 1):
        print(f"[{number}/{len(selected)}] {one.case.name}: {', '.join(one.names)}", flush=True)
        new, remarks = measure(one.benchmark, one.case, one.names, session)
        for remark in remarks:
            print(f"  {remark}", flush=True)
        measured += new
        notes += remarks
        if folder is not None:
            rows.merge(folder, new)
        if number == len(selected) or selected[number].benchmark is not one.benchmark:
            models.forget()
    return measured, notes


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    models.cache = options.cache
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    peers = _words(options.peers)
    folder = options.results or (None if options.quick else rows.RESULTS)
    try:
        if options.threads is not None:
            torch.set_num_threads(require_whole("--threads", options.threads, least=1))
        found = select(benchmarks(), device, only=_words(options.only), peers=peers, quick=options.quick)
        if options.list:
            show(found)
            return 0
        if device.type == "cuda" and not torch.cuda.is_available():
            raise Mistake(
                "torch finds no GPU for --device cuda: take --device cpu, or a torch built for CUDA"
            )
        selected = [one for one in found if one.runs]
        if not selected:
            raise Mistake(
                "the cases named are too large for this device or --quick: name one in full, or see --list"
            )
        if unknown := absent(peers, [name for one in selected for name in one.names]):
            raise Mistake(
                f"{', '.join(unknown)} of --peers is not installed or serves none of these cases: "
                "leave it out, or see --list"
            )
        machine = identify(device, options.commit)
        require_places(options.json, options.cache, folder, machine.name)
    except (Mistake, ValueError, OSError) as mistake:
        print(f"run.py: {mistake}", file=sys.stderr)
        return 2
    print(f"{machine.device}, {machine.threads} threads, torch {machine.torch}, commit {machine.commit}")
    arithmetics = dict.fromkeys(one.benchmark.cost(one.case).arithmetic for one in selected)
    ceilings = measure_ceilings(device, arithmetics)
    rates = [f"{rate / 1e12:.3g} TFLOP/s in {dtype_name(dtype)}" for dtype, rate in ceilings.rates.items()]
    print(", ".join([f"{ceilings.bandwidth / 1e9:.4g} GB/s", *rates]))
    session = Session(
        device=device,
        machine=machine,
        ceilings=ceilings,
        budget=QUICK if options.quick else FULL,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=options.quick,
    )
    measured, notes = run(selected, session, folder)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in measured], indent=1) + "\n")
    print()
    print(rows.table(measured))
    for note in notes:
        print(note)
    if folder is not None:
        for message in plot.draw(
            folder, machine.name, list(dict.fromkeys(row.benchmark for row in measured))
        ):
            print(message)
    # Ours must run, and be right; what others cannot do here is theirs.
    done = {(row.case, row.implementation) for row in measured}
    ours = [(one.case.name, name) for one in selected for name in one.names if family(name) == rows.OWN]
    if not done.issuperset(ours):
        return 1
    idle = absent(peers, [row.implementation for row in measured])
    if idle:
        print(f"run.py: {', '.join(idle)} of --peers never ran: the notes above say why", file=sys.stderr)
    return 2 if idle else 0


if __name__ == "__main__":
    sys.exit(main())
