"""Wilson's interval against its definition, against published figures, and at its ends."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.evaluation.intervals import Tally, Z, wilson

TALLIES = st.integers(1, 10**9).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_figures(right: int, total: int, low: float, high: float) -> None:
    """Newcombe (1998, Statistics in Medicine 17, 857-872), table I, method 3; printed with four digits."""
    assert tuple(round(end, 4) for end in wilson(right, total)) == (low, high)


@given(TALLIES)
def test_the_ends_are_where_the_score_test_turns(tally: tuple[int, int]) -> None:
    """(p - p0)^2 = z^2 p0 (1 - p0) / n at both ends, in exact arithmetic."""
    right, total = tally
    z = Fraction(Z)
    for end in map(Fraction, wilson(right, total)):
        score = (Fraction(right, total) - end) ** 2 - z**2 * end * (1 - end) / total
        # An end is a double, off by a few units of 2^-53; the score changes at most 2 + z^2 times as much.
        assert abs(score) < 64 * Fraction(1, 2**53)


@given(TALLIES)
def test_an_interval_is_around_its_share_and_within_bounds(tally: tuple[int, int]) -> None:
    right, total = tally
    low, high = wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    assert low < high
    assert (low == 0) == (right == 0)
    assert (high == 1) == (right == total)


@given(TALLIES)
def test_wrong_is_the_mirror_of_right(tally: tuple[int, int]) -> None:
    right, total = tally
    low, high = wilson(right, total)
    mirrored = wilson(total - right, total)
    # 1 - x is rounded once more than x.
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-15)


@given(TALLIES, st.integers(2, 1000))
def test_more_of_the_same_narrows(tally: tuple[int, int], times: int) -> None:
    right, total = tally
    low, high = wilson(right, total)
    narrow_low, narrow_high = wilson(right * times, total * times)
    assert narrow_high - narrow_low < high - low


def test_nothing_counted_says_nothing() -> None:
    assert wilson(0, 0) == (0, 1)
    assert Tally().share is None
    assert Tally().interval == (0, 1)


@pytest.mark.parametrize("total", [1, 20, 1000])
def test_all_and_none(total: int) -> None:
    """There the formula is z^2 / (n + z^2), from the one end or from the other."""
    reach = Z**2 / (total + Z**2)
    # In float64 the two formulas round a few times.
    assert wilson(0, total) == (0, pytest.approx(reach, rel=1e-15))
    assert wilson(total, total) == (pytest.approx(1 - reach, rel=1e-15), 1)


@given(TALLIES, TALLIES)
def test_tallies_add_up(one: tuple[int, int], other: tuple[int, int]) -> None:
    total = Tally(*one) + Tally(*other)
    assert total == Tally(one[0] + other[0], one[1] + other[1])
    assert total.share == (one[0] + other[0]) / (one[1] + other[1])


@pytest.mark.parametrize(
    ("right", "total", "message"),
    [
        (3, 2, "right must be at most total, and 3 is more than 2"),
        (-1, 2, "right must be a whole number of at least 0, not -1"),
        (0, -1, "total must be a whole number of at least 0, not -1"),
        (0.5, 2, "right must be a whole number of at least 0, not 0.5"),
        (True, 2, "right must be a whole number of at least 0, not True"),
    ],
)
def test_counts_that_cannot_be(right: Any, total: Any, message: str) -> None:
    for make in (wilson, Tally):
        with pytest.raises(ValueError, match=message):
            make(right, total)
