"""How calls are timed, one beside the other.

A region is some calls of one implementation, long enough for the clock. The regions of a case take turns,
round after round in an order that is drawn anew, so that whatever drifts (clocks, neighbors, heat) meets
all of them alike.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]

CPU_REGION = 20.0  # ms: far above the clock's grain and one switch of tasks
GPU_REGION = 0.2  # ms: events are good to about 1 us
MOST_CALLS = 200  # in one CUDA graph
# Above it a call is timed as it is made, its launches included, for a graph of it would take much memory.
LAUNCH_BOUND = 1.0  # ms


@dataclass(frozen=True)
class Sample:
    """Milliseconds per call in one region: elapsed, and spent by all threads of this process."""

    elapsed: float
    cpu: float


@dataclass(frozen=True)
class Region:
    """`run` makes `calls` calls and says what one took; `clock` is how it knows."""

    run: Callable[[], Sample]
    calls: int
    clock: str


@dataclass(frozen=True)
class Budget:
    """Seconds to spend on all regions of a case together, within a least and a largest number of rounds."""

    seconds: float
    least: int
    most: int

    def rounds(self, seconds_per_round: float) -> int:
        return max(self.least, min(self.most, int(self.seconds / max(seconds_per_round, 1e-9))))


FULL = Budget(3.0, 5, 100)
QUICK = Budget(0.5, 3, 20)


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: the median and two quantiles of the rounds, and the median of CPU time."""

    median: float
    quantile_20: float
    quantile_80: float
    cpu: float
    repeats: int
    calls: int
    clock: str


def _cycled(calls: Sequence[Call], number: int) -> list[Call]:
    return [calls[index % len(calls)] for index in range(number)]


def cpu_region(calls: Sequence[Call]) -> Region:
    """Calls that do the same to different inputs, one after the other, for at least CPU_REGION."""

    def elapsed(sequence: list[Call]) -> Sample:
        cpu, start = time.process_time(), time.perf_counter()
        for call in sequence:
            call()
        end = time.perf_counter()
        milliseconds = 1000 / len(sequence)
        return Sample((end - start) * milliseconds, (time.process_time() - cpu) * milliseconds)

    number = 1
    while (taken := number * elapsed(_cycled(calls, number)).elapsed) < CPU_REGION:
        number = max(number + 1, math.ceil(1.1 * number * min(10, CPU_REGION / max(taken, 1e-6))))
    sequence = _cycled(calls, number)
    return Region(lambda: elapsed(sequence), number, "wall")


def _waits(call: Call) -> bool:
    """Whether a call waits for the device, and so cannot be captured."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _captured(sequence: list[Call]) -> torch.cuda.CUDAGraph | None:
    """The calls as one CUDA graph, or None where they cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in sequence:
                call()
    except Exception:  # whatever a library raises when it synchronizes or allocates
        torch.cuda.synchronize()
        # The default generator still takes itself to be captured, and would refuse to draw.
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(torch.Generator("cuda").graphsafe_get_state())
        return None
    return graph


def cuda_region(calls: Sequence[Call], spoiler: torch.Tensor, *, capture: bool = True) -> Region:
    """Calls between two events, replayed from a CUDA graph where launching would cost more than running.

    `spoiler`, larger than the cache, is written before each region, so that the first calls find nothing of
    an earlier region; rotating inputs see to the others. Without `capture` calls are made as they are.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def elapsed(run: Call, number: int) -> Sample:
        spoiler.zero_()  # keeps the device busy, too, while this side enqueues what follows
        start.record()
        run()
        end.record()
        end.synchronize()
        return Sample(start.elapsed_time(end) / number, math.nan)

    def in_turn(number: int) -> Region:
        sequence = _cycled(calls, number)

        def run() -> None:
            for call in sequence:
                call()

        return Region(lambda: elapsed(run, number), number, "events")

    side = torch.cuda.Stream()  # libraries make their handles on a stream's first use, not within a capture
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    once = min(elapsed(calls[0], 1).elapsed for _ in range(3))
    if once > LAUNCH_BOUND:
        return in_turn(1)
    number = max(1, min(MOST_CALLS, math.ceil(GPU_REGION / once)))
    if not capture or _waits(calls[0]):
        return in_turn(number)
    for _ in range(3):  # launching hides how short a call is: the first graph tells
        graph = _captured(_cycled(calls, number))
        if graph is None:
            return in_turn(number)
        region = Region(lambda graph=graph, number=number: elapsed(graph.replay, number), number, "graph")
        region.run()
        taken = number * region.run().elapsed
        if taken > GPU_REGION / 2 or number == MOST_CALLS:
            break
        number = min(MOST_CALLS, math.ceil(number * GPU_REGION / taken))
    return region


def interleaved(
    regions: Mapping[str, Region], budget: Budget, seed: int = 0
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Run all regions in turns; -> their timings, and what those raised that stopped working."""
    start = time.perf_counter()
    failures: dict[str, Exception] = {}
    samples: dict[str, list[Sample]] = {name: [] for name in regions}

    def sample(name: str) -> Sample | None:
        try:
            return regions[name].run()
        except Exception as error:  # out of memory, say: the others go on
            failures[name] = error.with_traceback(None)  # whose frames hold what it allocated
            return None

    for name in regions:  # one round to warm up, and to see how many there is time for
        sample(name)
    rounds = budget.rounds(time.perf_counter() - start)
    order = random.Random(seed)
    names = list(regions)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            if name not in failures and (taken := sample(name)) is not None:
                samples[name].append(taken)
    return {
        name: timing(samples[name], region) for name, region in regions.items() if name not in failures
    }, failures


def single(call: Call) -> tuple[Timing, Any]:
    """A call that takes minutes on a CPU, timed the only time it is made; -> its timing and its result."""
    cpu, start = time.process_time(), time.perf_counter()
    result = call()
    sample = Sample(1000 * (time.perf_counter() - start), 1000 * (time.process_time() - cpu))
    return timing([sample], Region(lambda: sample, 1, "wall")), result


def timing(samples: Sequence[Sample], region: Region) -> Timing:
    """What the samples of a region say."""
    elapsed = torch.tensor([sample.elapsed for sample in samples], dtype=torch.float64)
    cpu = torch.tensor([sample.cpu for sample in samples], dtype=torch.float64)
    low, median, high = elapsed.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Timing(median, low, high, cpu.quantile(0.5).item(), len(samples), region.calls, region.clock)
