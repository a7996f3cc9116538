"""One case: what is wrong is not timed, and a row says what was measured and what could be."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import compare
import measure as measuring
from machine import Ceilings
from measure import (
    MOST_COPIES,
    Cost,
    Judge,
    Session,
    copies,
    input_sets,
    measure,
    peak_around,
    peak_bytes,
    ready,
)
from timer import Budget, Timing

CPU = torch.device("cpu")


@pytest.mark.usefixtures("hasty")
def test_only_what_is_right_is_timed(fake: Any, session: Session) -> None:
    case = fake.module.CASES[0]
    names = list(fake.module.setup(case, CPU))
    rows, notes = measure(fake.module, case, names, session)
    assert [row.implementation for row in rows] == ["eager", "janus", "transformers"]
    reasons = dict(note.removeprefix(f"{case.name}: ").split(" ", 1) for note in notes)
    assert set(reasons) == {"einsum-wrong", "sdpa-failing", "cdist-nan", "flex-shape"}
    assert "off by 5.0e-03 of the largest magnitude" in reasons["einsum-wrong"]
    assert reasons["sdpa-failing"] == "did not run: RuntimeError: no kernel"
    assert "off by nan" in reasons["cdist-nan"]
    assert "shape (1023,) instead of (1024,)" in reasons["flex-shape"]
    for wrong in ("einsum-wrong", "cdist-nan", "flex-shape", "sdpa-failing"):
        assert fake.counts[wrong] == 1
    assert fake.counts["janus"] > 3


@pytest.mark.usefixtures("hasty")
def test_a_row_beside_its_floor(fake: Any, session: Session) -> None:
    rows, _ = measure(fake.module, fake.module.CASES[0], ["eager", "janus"], session)
    for row in rows:
        # 8 KiB at 8 MiB a second take a thousandth of it, 1024 FLOP at 102,400 a second ten.
        assert row.floor == 10.0
        assert row.floor_fraction == pytest.approx(10.0 / row.median, rel=1e-4)
        assert (row.bytes, row.flop, row.arithmetic, row.repeats) == (8192, 1024, "fp32", 3)
        assert (row.benchmark, row.case, row.dtype, row.unit) == ("fake", "double_1024_fp32", "fp32", "ms")
        assert row.quantile_20 <= row.median <= row.quantile_80
        assert 4096 <= row.peak_bytes < 4200  # its result, and a few scalars
        assert row.commit == "abc"


def test_the_larger_term_is_the_floor(fake: Any, session: Session) -> None:
    fake.module.cost = lambda case: Cost(bytes=8192 * 50, flop=1024, arithmetic=torch.float32)
    rows, _ = measure(fake.module, fake.module.CASES[0], ["janus"], session)
    assert rows[0].floor == 50.0


def test_an_implementation_may_have_a_floor_and_a_peak_of_its_own(fake: Any, session: Session) -> None:
    fake.module.cost_of = lambda case, name: Cost(8192 * (100 if name == "janus" else 50), 1, torch.float32)
    fake.module.peak = lambda case, inputs, name, device: len(name) * len(inputs)
    rows, _ = measure(fake.module, fake.module.CASES[0], ["eager", "janus"], session)
    assert [(row.floor, row.peak_bytes) for row in rows] == [(50.0, 5), (100.0, 5)]
    fake.module.peak = lambda case, inputs, name, device: len(name) + 1
    rows, _ = measure(fake.module, fake.module.CASES[0], ["transformers"], session)
    assert rows[0].peak_bytes == 13


@pytest.mark.usefixtures("hasty")
def test_a_budget_of_its_own_but_for_a_quick_run(fake: Any, session: Session) -> None:
    fake.module.BUDGET = Budget(0, 5, 5)
    for quick, repeats in ((True, 3), (False, 5)):
        rows, _ = measure(fake.module, fake.module.CASES[0], ["janus"], replace(session, quick=quick))
        assert rows[0].repeats == repeats


def test_the_first_is_what_others_are_compared_with_even_if_it_is_not_asked_for(
    fake: Any, session: Session
) -> None:
    case = fake.module.CASES[0]
    rows, notes = measure(fake.module, case, ["einsum-wrong", "janus"], session)
    assert [row.implementation for row in rows] == ["janus"]
    assert "compared" not in rows[0].note
    assert fake.counts["eager"] == 1
    assert "einsum-wrong is wrong" in notes[0]


def test_what_was_compared_with_nothing_says_so(fake: Any, session: Session) -> None:
    setup = fake.module.setup
    for first in ("sdpa-failing", "cdist-nan"):
        fake.module.setup = lambda case, device, first=first: {
            first: setup(case, device)[first],
            **setup(case, device),
        }
        rows, notes = measure(fake.module, fake.module.CASES[0], ["janus"], session)
        assert rows[0].note.startswith("compared with nothing")
        assert f"{first} could not be compared with: " in notes[0]
    rows, _ = measure(fake.module, fake.module.CASES[0], ["janus", "transformers"], session)
    assert not any("compared" in row.note for row in rows)


def test_what_did_not_run_or_is_wrong_is_freed_before_the_next(fake: Any) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def wasteful(x: torch.Tensor, scale: float, last: bool = False) -> Callable[[], torch.Tensor]:
        assert all(tensor() is None for tensor in held)
        workspace = torch.ones(8)
        held.append(weakref.ref(workspace))

        def call() -> torch.Tensor:
            result = x * scale * workspace[0]
            held.append(weakref.ref(result))
            if scale == 0:
                raise RuntimeError("out of memory")
            return result

        return call

    case, given = fake.module.CASES[0], (torch.ones(8),)
    implementations = {"eager": lambda x: lambda: 2 * x}
    implementations |= {str(scale): partial(wasteful, scale=scale) for scale in (0, 3, 0, 2)}
    notes: list[str] = []
    judge = Judge(fake.module, case, given)
    calls, _ = ready(
        fake.module, case, implementations, [given], CPU, judge, lambda name, _: notes.append(name)
    )
    assert list(calls) == ["eager", "2"]
    assert notes == ["0", "3"]


@pytest.mark.usefixtures("hasty")
def test_what_is_too_large_side_by_side_is_measured_one_after_the_other(
    fake: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[list[str]] = []
    timed = measuring.timed

    def noted(calls: Any, *rest: Any) -> Any:
        groups.append(list(calls))
        return timed(calls, *rest)

    monkeypatch.setattr(measuring, "timed", noted)
    case = replace(fake.module.CASES[0], alone=True)
    rows, _ = measure(fake.module, case, ["eager", "einsum-wrong", "janus"], session)
    assert groups == [["eager"], [], ["janus"]]
    assert [row.implementation for row in rows] == ["eager", "janus"]
    assert all(row.note.startswith("one after the other, not in turns") for row in rows)


def test_on_a_gpu_even_minutes_are_warmed_up_and_repeated(
    fake: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Timing(2.0, 1.0, 3.0, math.nan, 5, 1, "events")
    seen: list[Any] = []

    def timed(calls: Any, session: Session, note: Any, uncaptured: Any) -> dict[str, Timing]:
        seen.append(list(uncaptured))
        return dict.fromkeys(calls, kept)

    monkeypatch.setattr(measuring, "timed", timed)
    fake.module.inputs = lambda case, device: (torch.ones(1024),)
    fake.module.peak = lambda case, inputs, name, device: 1
    session = replace(session, device=torch.device("cuda"))
    case = replace(fake.module.CASES[0], once=True)
    rows, _ = measure(fake.module, case, ["eager", "janus"], session)
    assert [(row.repeats, row.clock, row.cpu) for row in rows] == [(5, "events", None)] * 2
    fake.module.UNCAPTURED = ("eager",)
    measure(fake.module, case, ["eager", "janus"], session)
    fake.module.CAPTURE = False
    measure(fake.module, case, ["eager", "janus"], session)
    assert seen == [[], ["eager"], ["eager", "janus"]]


def test_a_row_says_what_to_know_of_it(fake: Any, session: Session) -> None:
    case = fake.module.CASES[0]
    slow = Ceilings(bandwidth=1e-9, rates={torch.float32: 1e9}, upload=1e-3, busy=0.5)
    (row,), _ = measure(fake.module, case, ["eager"], replace(session, ceilings=slow))
    assert row.note == "compared with nothing; faster than its floor; other work ran beside it"
    assert row.bandwidth == 1e-9
    fake.module.cost = lambda case: Cost(1, 1, torch.float32, uploads=True)
    (row,), _ = measure(fake.module, case, ["eager"], replace(session, ceilings=slow))
    assert (row.bandwidth, row.floor) == (1e-3, 1e6)


def test_what_takes_minutes_is_called_once(fake: Any, session: Session) -> None:
    case = replace(fake.module.CASES[0], once=True)
    rows, notes = measure(fake.module, case, ["eager", "einsum-wrong", "sdpa-failing", "janus"], session)
    assert [row.implementation for row in rows] == ["eager", "janus"]
    assert fake.counts == {"eager": 1, "einsum-wrong": 1, "sdpa-failing": 1, "janus": 1}
    assert [note.split(" ", 2)[1] for note in notes] == ["einsum-wrong", "sdpa-failing"]
    for row in rows:
        assert (row.repeats, row.calls, row.clock) == (1, 1, "wall")
        assert row.quantile_20 == row.median == row.quantile_80 > 0


def test_one_model_is_enough(fake: Any) -> None:
    assert len(input_sets(fake.module, fake.module.CASES[0], ["eager"], CPU, 1 << 20)) > 1
    fake.module.inputs = lambda case, device: (torch.nn.Linear(2, 2), torch.ones(2))
    assert len(input_sets(fake.module, fake.module.CASES[0], ["eager"], CPU, 1 << 20)) == 1


def test_copies_outgrow_the_cache_for_whoever_moves_least(fake: Any) -> None:
    case = fake.module.CASES[0]
    cache = 2 * fake.module.cost(case).bytes
    often = len(input_sets(fake.module, case, ["eager", "few-bits"], CPU, cache))
    moved = fake.module.cost(case).bytes
    fake.module.cost_of = lambda case, name: Cost(moved // (4 if name == "few-bits" else 1), 1, torch.float32)
    assert len(input_sets(fake.module, case, ["eager"], CPU, cache)) == often
    sets = input_sets(fake.module, case, ["eager", "few-bits"], CPU, cache)
    assert len(sets) == min(4 * often, MOST_COPIES) > often


def test_peak_around_what_runs_undisturbed() -> None:
    with peak_around() as peak:
        large = torch.ones(1 << 24)  # 64 MiB
        del large
        kept = torch.ones(1 << 12)
    assert kept.sum() == 1 << 12
    if sys.platform == "linux":
        assert 60 << 20 < peak() < 90 << 20


def test_inputs_that_cannot_be_made_are_noted(fake: Any, session: Session) -> None:
    def fails(case: object, device: object) -> None:
        raise RuntimeError("out of memory")

    fake.module.inputs = fails
    rows, notes = measure(fake.module, fake.module.CASES[0], ["janus"], session)
    assert rows == []
    assert notes == ["double_1024_fp32: inputs could not be made: RuntimeError: out of memory"]


def test_each_copy_of_the_inputs_has_other_numbers_and_each_run_the_same(
    fake: Any, session: Session, hasty: None
) -> None:
    seen: list[float] = []
    made = fake.module.inputs

    def inputs(case: Any, device: torch.device) -> Any:
        found = made(case, device)
        seen.append(found[0][0].item())
        return found

    fake.module.inputs = inputs
    measure(fake.module, fake.module.CASES[0], ["janus"], session)
    first = list(seen)
    assert len(set(first)) == len(first) == MOST_COPIES
    measure(fake.module, fake.module.CASES[0], ["janus"], session)
    assert seen == first * 2


def test_copies_outgrow_the_cache_but_not_the_memory() -> None:
    def number(moved: int, held: int, cache: int) -> int:
        return copies(moved, [torch.empty(held, dtype=torch.int8, device="meta")], cache)

    assert number(1 << 20, 1 << 20, 4 << 20) == 12
    assert number(1 << 30, 1 << 30, 4 << 20) == 1
    assert number(1 << 10, 1 << 10, 1 << 30) == MOST_COPIES
    assert number(1 << 10, 1 << 28, 1 << 30) == 4
    assert number(1 << 10, 1 << 32, 1 << 30) == 1


def test_peak_memory_is_what_is_held_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def call() -> torch.Tensor:
        large = torch.zeros(1 << 20)  # 4 MiB
        second = large + 1  # and as much again
        del large
        third = second * 2
        return third[:1].clone()

    assert 8 << 20 <= peak_bytes(call, CPU) < 9 << 20
    assert capfd.readouterr().err == ""  # torch's profiler would announce itself


@pytest.mark.parametrize(
    ("dtype", "allowed", "refused"),
    [(torch.float32, 5e-5, 2e-4), (torch.float16, 4e-3, 1e-2), (torch.bfloat16, 2e-2, 5e-2)],
)
def test_tolerance_is_the_dtypes(dtype: torch.dtype, allowed: float, refused: float) -> None:
    expected = torch.linspace(-1, 1, 101)
    for error, right in ((allowed, True), (refused, False)):
        result = expected.clone()
        result[50] += error
        assert (compare.problem(result, expected, dtype) is None) == right


def test_comparison_of_several_tensors_and_of_integers() -> None:
    floats, codes = torch.ones(3), torch.arange(3)
    assert compare.problem((floats, codes), (floats, codes), torch.float32) is None
    assert compare.problem((floats, codes + 1), (floats, codes), torch.float32) == (
        "3 of 3 numbers differ in tensor 2"
    )
    assert compare.problem([floats], (floats, codes), torch.float32) == "1 tensors instead of 2"


def test_near_ties_may_differ() -> None:
    score = torch.tensor([[1.0, 1.001, 3.0], [2.0, 5.0, 5.0]])
    best = torch.tensor([0, 1])
    assert compare.near_tie(torch.tensor([1, 2]), best, score, 0.01) is None
    assert compare.near_tie(torch.tensor([2, 1]), best, score, 0.01) == (
        "1 of 2 choices are wrong, by up to 2.0e+00"
    )
