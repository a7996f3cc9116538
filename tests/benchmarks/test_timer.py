"""The timer: whose turn it is, what the samples say, and what happens to those that fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

import timer
from timer import Budget, Region, Sample, cpu_region, cuda_region, interleaved

ROUNDS = 12
BUDGET = Budget(0, ROUNDS, ROUNDS)


def recorded(names: str, log: list[str]) -> dict[str, Region]:
    def region(name: str) -> Region:
        def run() -> Sample:
            log.append(name)
            return Sample(1.0, 1.0)

        return Region(run, 1, "fake")

    return {name: region(name) for name in names}


def test_all_take_one_turn_a_round_in_an_order_drawn_anew() -> None:
    log: list[str] = []
    timings, failures = interleaved(recorded("abcd", log), BUDGET)
    assert not failures
    assert {timing.repeats for timing in timings.values()} == {ROUNDS}
    rounds = ["".join(log[index : index + 4]) for index in range(4, len(log), 4)]  # after one to warm up
    assert len(rounds) == ROUNDS
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > ROUNDS / 2


def test_the_order_is_seeded() -> None:
    logs: list[list[str]] = [[], [], []]
    for log, seed in zip(logs, (1, 1, 2), strict=True):
        interleaved(recorded("abcd", log), BUDGET, seed)
    assert logs[0] == logs[1] != logs[2]


def test_median_and_quantiles() -> None:
    def region(samples: Iterator[tuple[float, float]]) -> Region:
        return Region(lambda: Sample(*next(samples)), 5, "fake")

    elapsed = [999.0, 5.0, 1.0, 3.0, 2.0, 4.0, 6.0]  # the first warms up
    timings, _ = interleaved(
        {"a": region(iter(zip(elapsed, itertools.count(), strict=False)))}, Budget(0, 6, 6)
    )
    timing = timings["a"]
    assert (timing.median, timing.quantile_20, timing.quantile_80) == (3.5, 2.0, 5.0)
    assert timing.cpu == 3.5  # of 1 to 6
    assert (timing.repeats, timing.calls, timing.clock) == (6, 5, "fake")


def test_what_stops_working_does_not_stop_the_others() -> None:
    log: list[str] = []
    regions = recorded("ab", log)
    turns = itertools.count()

    def breaks() -> Sample:
        if next(turns) == 2:
            raise RuntimeError("out of memory")
        return Sample(1.0, 1.0)

    timings, failures = interleaved({**regions, "c": Region(breaks, 1, "fake")}, BUDGET)
    assert set(timings) == {"a", "b"}
    assert str(failures["c"]) == "out of memory"
    assert next(turns) == 3  # not asked again
    assert timings["a"].repeats == ROUNDS


def test_rounds_fill_the_budget_within_its_bounds() -> None:
    budget = Budget(10.0, 3, 50)
    assert [budget.rounds(seconds) for seconds in (1.0, 100.0, 0.001, 0.0)] == [10, 3, 50, 50]


def test_inputs_take_turns_within_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    log: list[int] = []

    def call(number: int) -> Callable[[], None]:
        def takes_a_millisecond() -> None:
            nonlocal now
            now += 0.001
            log.append(number)

        return takes_a_millisecond

    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: 2 * now)
    monkeypatch.setattr(timer, "time", clock)
    region = cpu_region([call(0), call(1), call(2)])
    log.clear()
    sample = region.run()
    assert 20 <= region.calls <= 25  # CPU_REGION, and hardly more
    assert log == [index % 3 for index in range(region.calls)]
    assert sample.elapsed == pytest.approx(1.0)
    assert sample.cpu == pytest.approx(2.0)
    assert region.clock == "wall"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times a GPU")
def test_gpu_regions() -> None:
    inputs = [torch.randn(1024, 1024, device="cuda") for _ in range(3)]
    spoiler = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    short = cuda_region([lambda x=x: x + 1 for x in inputs], spoiler)
    assert short.clock == "graph"
    assert short.calls > 1
    assert short.run().elapsed > 0
    waiting = cuda_region([lambda x=x: x.sum().item() for x in inputs], spoiler)  # cannot be captured
    assert waiting.clock == "events"
    assert waiting.run().elapsed > 0
