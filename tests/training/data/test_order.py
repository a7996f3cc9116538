"""Orders: permutations that look random, shares that are met everywhere, ranks that never meet."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.training.data.mixture import Mixture, Part
from janus.training.data.order import LONGEST_PERIOD, Schedule, hashed, shuffled, whole_shares
from janus.training.data.rows import Row, Text

shares = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)
seeds = st.integers(-(2**70), 2**70)


class Numbers:
    """A source whose rows say their own numbers."""

    def __init__(self, name: str, size: int | None) -> None:
        self.name, self.size = name, size

    def row(self, index: int, seed: int) -> Row:
        return Text(f"{self.name} {index}")


@given(length=st.integers(1, 300), key=seeds)
def test_a_shuffle_has_every_number_once(length: int, key: int) -> None:
    assert sorted(shuffled(position, length, key) for position in range(length)) == list(range(length))


def test_shuffles_are_of_every_kind() -> None:
    orders = Counter(tuple(shuffled(position, 4, key) for position in range(4)) for key in range(2400))
    assert len(orders) == 24
    # Four standard deviations of a hundred throws each, and what a small network adds to them.
    assert max(orders.values()) < 160
    assert min(orders.values()) > 50
    long = [shuffled(position, 10_000, 0) for position in range(10_000)]
    assert sum(abs(value - position) for position, value in enumerate(long)) / 10_000 > 3000  # random: 3333


def test_order_is_the_same_everywhere() -> None:
    assert hashed("row", 1, "a") == 7996099850446701010
    assert [shuffled(position, 10, 7) for position in range(10)] == [1, 4, 9, 2, 5, 8, 6, 7, 0, 3]


@given(shares=shares, periods=st.integers(0, 3))
def test_every_share_is_met_to_within_a_turn(shares: list[int], periods: int) -> None:
    schedule = Schedule(shares)
    counts = [0] * len(shares)
    for turn in range(schedule.period * periods + 1):
        for share, count in enumerate(counts):
            assert schedule.count(turn, share) == count
            assert abs(count * schedule.period - shares[share] * turn) < schedule.period
        counts[schedule.turn(turn)] += 1
    assert schedule.count(schedule.period, 0) == shares[0]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([5, 1, 4], [5, 1, 4]),
        ([0.5, 0.1, 0.4], [5, 1, 4]),
        ([1, 0, 1], [1, 0, 1]),
        ([0.14, 0.06, 0.8], [7, 3, 40]),
        ([70], [1]),
        ([1e-9, 1.0], [1, LONGEST_PERIOD]),
    ],
)
def test_weights_become_whole_numbers(weights: list[float], expected: list[int]) -> None:
    assert whole_shares(weights) == expected


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
def test_any_weights_are_met_to_a_thousandth(weights: list[float]) -> None:
    shares = whole_shares(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share / sum(shares) - weight / sum(weights)) < 1e-3


def mixture(seed: int = 3, rank: int = 0, ranks: int = 1) -> Mixture:
    parts = [Part(Numbers("seen", 50), 5), Part(Numbers("text", 7), 1), Part(Numbers("world", None), 4)]
    return Mixture(parts, seed=seed, rank=rank, ranks=ranks)


@pytest.mark.parametrize("size", [8, 10, 24])
def test_a_thousand_steps_have_the_ratio(size: int) -> None:
    """5:1:4 within 1 % over 1,000 steps of any size, and to within a document in every single step."""
    mixed = mixture()
    whole = Counter[int]()
    for step in range(1000):
        counts = Counter(mixed.draw(step * size + document).part for document in range(size))
        for part, share in enumerate((0.5, 0.1, 0.4)):
            assert abs(counts[part] - share * size) < 2
        whole += counts
    for part, share in enumerate((0.5, 0.1, 0.4)):
        assert abs(whole[part] / whole.total() - share) < 0.01 * share


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_read_every_row_once_an_epoch(ranks: int) -> None:
    read: dict[int, list[int]] = {0: [], 1: []}
    worlds = []
    for rank in range(ranks):
        draws = [mixture(rank=rank, ranks=ranks).draw(place) for place in range(300)]
        for part, size in ((0, 50), (1, 7)):
            mine = [draw.index for draw in draws if draw.part == part]
            # Of each epoch, a rank is dealt every `ranks`-th row: read all that are whole by then.
            numbers = [number * ranks + rank for number in range(len(mine))]
            read[part] += [index for index, number in zip(mine, numbers, strict=True) if number < size]
        worlds += [draw.seed for draw in draws if draw.part == 2]
    assert sorted(read[0]) == list(range(50))
    assert sorted(read[1]) == list(range(7))
    assert len(set(worlds)) == len(worlds) == ranks * 120


def test_a_step_of_all_ranks_has_the_ratio() -> None:
    ranks = 10
    first = Counter(mixture(rank=rank, ranks=ranks).draw(0).part for rank in range(ranks))
    assert first == {0: 5, 1: 1, 2: 4}


def test_epochs_and_seeds_shuffle_anew() -> None:
    def epoch(number: int, seed: int = 3) -> list[int]:
        draws = [mixture(seed).draw(place) for place in range(number * 100, number * 100 + 100)]
        return [draw.index for draw in draws if draw.part == 0]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(50))
    assert epoch(0) != epoch(1) != epoch(0, seed=4)
    assert epoch(0) == epoch(0)


def test_a_part_of_weight_0_never_comes() -> None:
    mixed = Mixture([Part(Numbers("a", 3), 0), Part(Numbers("b", 3), 0.1)], seed=0)
    assert {mixed.draw(place).part for place in range(20)} == {1}


def test_what_stands_in_is_of_the_same_source() -> None:
    mixed = mixture()
    own = mixed.draw(0)
    others = [mixed.instead(own, attempt) for attempt in range(1, 1000)]
    assert {draw.part for draw in others} == {own.part}
    assert {draw.index for draw in others} == set(range(50))
    assert len({draw.seed for draw in [own, *others]}) == 1000


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "a mixture needs at least one source"),
        ([Part(Numbers("a", 0), 1)], {}, "a holds no rows"),
        ([Part(Numbers("a", 1), -1)], {}, "the weight of a must be a number of at least 0, not -1"),
        ([Part(Numbers("a", 1), float("nan"))], {}, "the weight of a must be"),
        ([Part(Numbers("a", 1), 0)], {}, "the weights of a are all 0"),
        ([Part(Numbers("a", 1), 1), Part(Numbers("a", 2), 1)], {}, "a is in the mixture twice"),
        ([Part(Numbers("a", 1), 1)], {"rank": 2, "ranks": 2}, "rank is 2: of 2 ranks, the numbers go"),
        ([Part(Numbers("a", 1), 1)], {"ranks": 0}, "the number of ranks must be"),
    ],
)
def test_mixtures_that_are_none(parts: list[Part], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(parts, seed=0, **options)
