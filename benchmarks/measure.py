"""One case of one benchmark: its implementations made ready, compared, and timed side by side.

A benchmark is a module `bench_<name>.py` that says what to measure and never how:

    CASES                   the shapes, from cases.py
    cost(case)              -> Cost: the bytes and FLOP that nothing can do without
    inputs(case, device)    -> a tuple of random tensors (or models), anew each time
    setup(case, device)     -> {implementation: prepare}, made without touching the device. prepare(*inputs)
                            -> a call without arguments, which computes and returns tensors: only that is
                            timed. The first is what the others are compared with. variants.py has the usual.
    problem(case, inputs, name, result, expected)   if need be, in place of compare.problem
    cost_of(case, name)     if need be, in place of cost: for one implementation
    peak(case, inputs, name, device)    if need be, in place of peak_bytes
    CAPTURE = False         if calls record graphs of their own, or keep state on the host
    UNCAPTURED              if need be, the implementations of which alone that holds
    BUDGET                  if need be, in place of the run's, unless that is --quick
    ONLY_IF_ASKED_ON_CPU    if need be, implementations that run on a CPU only when --peers names them
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import compare
from cases import Case, dtype_name
from machine import Ceilings, Machine, resident
from peers import versions
from rows import Row
from timer import Budget, Call, Region, Timing, cpu_region, cuda_region, interleaved, single

MOST_COPIES = 32
ROOM = 1 << 30  # bytes for all copies of a case's inputs
BUSY = 0.8  # of the threads' time: what a large product takes where it has the cores to itself

Note = Callable[[str, str], None]  # hears of an implementation that has no row: its name, and why


@dataclass(frozen=True)
class Cost:
    """What any implementation must move and compute; `arithmetic` is the dtype whose rate bounds it.

    `uploads` says that what is moved goes from the host to the device.
    """

    bytes: int
    flop: int
    arithmetic: torch.dtype
    uploads: bool = False


def title(benchmark: ModuleType) -> str:
    """The name of a benchmark: its file's, without what all have in common."""
    return benchmark.__name__.removeprefix("bench_")


@dataclass(frozen=True)
class Session:
    """What all cases of a run share."""

    device: torch.device
    machine: Machine
    ceilings: Ceilings
    budget: Budget
    date: str
    quick: bool


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Nothing reaches standard error, not even from C++: torch's profiler announces itself there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most that torch has allocated at once during a call, the result included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    # The profiler's own summary keeps sums for each op; the peak needs every event in its order.
    recorded = profiler.profiler.kineto_results.events()
    events = [event for event in recorded if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@contextlib.contextmanager
def peak_around() -> Iterator[Callable[[], int]]:
    """-> a function for the end: by how much the process's memory grew at most. Known on Linux only.

    Costs the calls in between nothing, unlike `peak_bytes`.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    yield lambda: max(0, resident("VmHWM") - before)


def copies(moved: int, inputs: Sequence[Any], cache: int) -> int:
    """How many sets of inputs take turns, where each moves so many bytes.

    Enough that none stays in the cache till its next turn, within reason: where even MOST_COPIES fit, the op
    finds them there, as it does in a model, where they have just been written.
    """
    wanted = math.ceil(3 * cache / max(1, moved))
    return max(1, min(wanted, MOST_COPIES, ROOM // max(1, compare.nbytes(inputs))))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:200]


def differs(case: Case, inputs: Sequence[Any], name: str, result: Any, expected: Any) -> str | None:
    """What most benchmarks ask of a result."""
    return compare.problem(result, expected, case.dtype)


def cost_of(benchmark: ModuleType, case: Case, name: str) -> Cost:
    """What the implementation `name` moves and computes."""
    return benchmark.cost_of(case, name) if hasattr(benchmark, "cost_of") else benchmark.cost(case)


def input_sets(
    benchmark: ModuleType, case: Case, names: Sequence[str], device: torch.device, cache: int
) -> list[Sequence[Any]]:
    """As many sets of inputs as take turns, each with other numbers.

    Enough for the implementation that moves least: fewer bits of weights must not stay in the cache either.
    """
    least = min(cost_of(benchmark, case, name).bytes for name in names)
    sets: list[Sequence[Any]] = []
    while len(sets) < (copies(least, sets[0], cache) if sets else 1):
        torch.manual_seed(len(sets))
        sets.append(benchmark.inputs(case, device))
        if any(isinstance(value, torch.nn.Module) for value in sets[0]):
            break  # models outgrow every cache
    return sets


class Judge:
    """Compares results of a case with the truth, the first that there is."""

    def __init__(self, benchmark: ModuleType, case: Case, inputs: Sequence[Any]) -> None:
        self.check = partial(getattr(benchmark, "problem", differs), case, inputs)
        self.truth: Any = None
        self.compared = 0

    def problem(self, name: str, result: Any) -> str | None:
        if self.truth is not None:
            self.compared += 1
            return self.check(name, result, self.truth)
        wrong = self.check(name, result, result)  # not even equal to itself: NaN
        if not wrong:
            self.truth = result
        return wrong


def refer(judge: Judge, name: str, prepare: Callable[..., Call], inputs: Sequence[Any], note: Note) -> None:
    """Make the result of an implementation the truth, without timing it."""
    try:
        wrong = judge.problem(name, prepare(*inputs)())
    except Exception as error:
        wrong = _first_line(error)
    if wrong:
        note(name, f"could not be compared with: {wrong}")


def ready(
    benchmark: ModuleType,
    case: Case,
    implementations: Mapping[str, Callable[..., Call]],
    sets: Sequence[Sequence[Any]],
    device: torch.device,
    judge: Judge,
    note: Note,
) -> tuple[dict[str, list[Call]], dict[str, int]]:
    """The calls, one for each set of inputs, and the peak memory, of those that run and are right."""
    calls: dict[str, list[Call]] = {}
    peaks: dict[str, int] = {}

    def attempt(name: str, prepare: Callable[..., Call]) -> None:
        first = prepare(*sets[0])
        if wrong := judge.problem(name, first()):
            note(name, f"is wrong, so it was not timed: {wrong}")
            return
        peaks[name] = (
            benchmark.peak(case, sets[0], name, device)
            if hasattr(benchmark, "peak")
            else peak_bytes(first, device)
        )
        calls[name] = [first, *(prepare(*inputs) for inputs in sets[1:])]

    for name, prepare in implementations.items():
        try:
            attempt(name, prepare)
        except Exception as error:  # unsupported here, or out of memory: the others go on
            note(name, f"did not run: {_first_line(error)}")
        if name not in calls:
            free(device)  # the next one may need what this one held
    return calls, peaks


def ready_once(
    implementations: Mapping[str, Callable[..., Call]],
    inputs: Sequence[Any],
    device: torch.device,
    judge: Judge,
    note: Note,
) -> tuple[dict[str, Timing], dict[str, int]]:
    """Timings and peak memory of calls that are made only once, one after the other; else as `ready`."""
    timings: dict[str, Timing] = {}
    peaks: dict[str, int] = {}

    def attempt(name: str, prepare: Callable[..., Call]) -> None:
        call = prepare(*inputs)
        with peak_around() as peak:
            timing, result = single(call)
            most = peak()
        if wrong := judge.problem(name, result):
            note(name, f"is wrong, so its time does not count: {wrong}")
            return
        timings[name], peaks[name] = timing, most

    for name, prepare in implementations.items():
        try:
            attempt(name, prepare)
        except Exception as error:
            note(name, f"did not run: {_first_line(error)}")
        free(device)
    return timings, peaks


def timed(
    calls: Mapping[str, Sequence[Call]], session: Session, note: Note, uncaptured: Collection[str] = ()
) -> dict[str, Timing]:
    spoiler = None
    if session.device.type == "cuda":
        room = max(4 * session.machine.cache, 1 << 28)
        spoiler = torch.empty(room, dtype=torch.int8, device=session.device)
    regions: dict[str, Region] = {}
    for name, its_calls in calls.items():
        try:
            regions[name] = (
                cpu_region(its_calls)
                if spoiler is None
                else cuda_region(its_calls, spoiler, capture=name not in uncaptured)
            )
        except Exception as error:
            note(name, f"could not be timed: {_first_line(error)}")
    timings, failures = interleaved(regions, session.budget)
    for name, failure in failures.items():
        note(name, f"stopped working: {_first_line(failure)}")
    return timings


def measure(
    benchmark: ModuleType, case: Case, names: Sequence[str], session: Session
) -> tuple[list[Row], list[str]]:
    """Time the implementations `names`; -> their rows, and a line on each that has none.

    The benchmark's first one is what they are compared with, whether it is among them or not.
    """
    notes: list[str] = []

    def note(name: str, text: str) -> None:
        notes.append(f"{case.name}: {name} {text}")

    device, machine = session.device, session.machine
    if hasattr(benchmark, "BUDGET") and not session.quick:
        session = replace(session, budget=benchmark.BUDGET)
    timings: dict[str, Timing] = {}
    peaks: dict[str, int] = {}
    with torch.no_grad():
        try:
            sets = input_sets(benchmark, case, names, device, machine.cache)
        except Exception as error:
            note("inputs", f"could not be made: {_first_line(error)}")
            return [], notes
        everything = benchmark.setup(case, device)
        judge = Judge(benchmark, case, sets[0])
        reference = next(iter(everything))
        if reference not in names:
            refer(judge, reference, everything[reference], sets[0], note)
            free(device)
        for group in [[name] for name in names] if case.alone else [names]:
            its = {name: everything[name] for name in group}
            if case.once and device.type == "cpu":
                new, most = ready_once(its, sets[0], device, judge, note)
            else:
                calls, most = ready(benchmark, case, its, sets, device, judge, note)
                captures = getattr(benchmark, "CAPTURE", True)
                new = timed(calls, session, note, getattr(benchmark, "UNCAPTURED", ()) if captures else calls)
                del calls
            timings |= new
            peaks |= most
            free(device)
    remark = "" if judge.compared else "compared with nothing"
    del sets, everything, judge
    release(device)

    return [
        row(
            title(benchmark), case, name, timing, cost_of(benchmark, case, name), peaks[name], session, remark
        )
        for name, timing in timings.items()
    ], notes


def row(
    benchmark: str,
    case: Case,
    name: str,
    timing: Timing,
    cost: Cost,
    peak: int,
    session: Session,
    remark: str = "",
) -> Row:
    """What was measured beside what it could be. Six digits are more than a clock is good for."""
    machine, ceilings = session.machine, session.ceilings
    rate = ceilings.rates[cost.arithmetic]
    bandwidth = ceilings.upload if cost.uploads and ceilings.upload else ceilings.bandwidth
    floor = 1000 * max(cost.bytes / bandwidth, cost.flop / rate)
    remarks = {
        remark: bool(remark),
        "one after the other, not in turns": case.alone,
        "faster than its floor": floor > timing.median,
        "other work ran beside it": ceilings.busy < BUSY,
    }

    def rounded(number: float) -> float:
        return float(f"{number:.6g}")

    return Row(
        date=session.date,
        machine=machine.name,
        device=machine.device,
        threads=machine.threads,
        torch=machine.torch,
        triton=machine.triton,
        commit=machine.commit,
        quick=session.quick,
        benchmark=benchmark,
        case=case.name,
        dtype=dtype_name(case.dtype),
        implementation=name,
        unit="ms",
        median=rounded(timing.median),
        quantile_20=rounded(timing.quantile_20),
        quantile_80=rounded(timing.quantile_80),
        cpu=None if math.isnan(timing.cpu) else rounded(timing.cpu),
        repeats=timing.repeats,
        calls=timing.calls,
        clock=timing.clock,
        floor=rounded(floor),
        floor_fraction=rounded(floor / timing.median),
        bytes=cost.bytes,
        flop=cost.flop,
        arithmetic=dtype_name(cost.arithmetic),
        bandwidth=rounded(bandwidth),
        rate=rounded(rate),
        peak_bytes=peak,
        versions=versions(name),
        note="; ".join(text for text, holds in remarks.items() if holds),
    )


def free(device: torch.device) -> None:
    """Give back the memory of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def release(device: torch.device) -> None:
    """Forget what the last case compiled and allocated: torch.compile keeps eight variants of a function."""
    torch.compiler.reset()
    free(device)
