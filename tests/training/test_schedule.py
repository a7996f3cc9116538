"""The share of the rate at every step: exact where it is a fraction, and what holds for all schedules."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.training.recipe.sections import Schedule
from janus.training.schedule import factor


def test_constant_rises_and_stays() -> None:
    schedule = Schedule(warmup=4)
    assert [factor(step, schedule, 8) for step in range(9)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    assert [factor(step, Schedule(), 3) for step in range(3)] == [1, 1, 1]


def test_cosine_falls_by_the_cosine() -> None:
    schedule = Schedule(kind="cosine", warmup=2, final=0.1)
    found = [factor(step, schedule, 6) for step in range(8)]
    heights = [(1 + math.cos(math.pi * share)) / 2 for share in (0, 0.25, 0.5, 0.75)]
    assert found == [0.5, 1.0, *(height + 0.1 * (1 - height) for height in heights), 0.1, 0.1]
    assert found[4] == pytest.approx(0.55)  # half way, to the rounding of the cosine


def test_cosine_ends_at_nothing_if_nothing_is_said() -> None:
    schedule = Schedule(kind="cosine")
    assert factor(0, schedule, 2) == 1
    assert factor(1, schedule, 2) == pytest.approx(0.5)  # the cosine of a half of pi is 6e-17
    assert factor(2, schedule, 2) == 0


def test_wsd_is_stable_and_falls_in_a_line() -> None:
    schedule = Schedule(kind="wsd", warmup=2, decay=4, final=0.5)
    found = [factor(step, schedule, 10) for step in range(11)]
    assert found == [0.5, 1, 1, 1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5]


def test_wsd_may_be_warm_up_and_decay_alone() -> None:
    schedule = Schedule(kind="wsd", warmup=2, decay=2)
    assert [factor(step, schedule, 4) for step in range(5)] == [0.5, 1, 1, 0.5, 0]


def test_a_run_may_end_in_its_warm_up() -> None:
    schedule = Schedule(kind="cosine", warmup=3)
    assert [factor(step, schedule, 3) for step in range(4)] == [1 / 3, 2 / 3, 1, 0]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    steps = draw(st.integers(1, 200))
    kind = draw(st.sampled_from(["constant", "cosine", "wsd"]))
    warmup = draw(st.integers(0, steps - 1))
    decay = draw(st.integers(1, steps - warmup)) if kind == "wsd" else None
    final = None if kind == "constant" else draw(st.floats(0, 1))
    return Schedule(kind=kind, warmup=warmup, decay=decay, final=final), steps


@given(schedules())
def test_what_holds_for_all(case: tuple[Schedule, int]) -> None:
    schedule, steps = case
    found = [factor(step, schedule, steps) for step in range(steps)]
    assert all(0 < share <= 1 for share in found)  # no step is spent at rate 0
    rising, rest = found[: schedule.warmup], found[schedule.warmup :]
    assert rising == sorted(rising)
    # Falling, but for the rounding of shares that are nearly 1.
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(rest))
    assert found[schedule.warmup] == 1
    assert factor(steps, schedule, steps) == (1 if schedule.kind == "constant" else schedule.final or 0)
