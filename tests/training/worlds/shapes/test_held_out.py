"""What is held out stays out of every stream of training, and is in every item that is asked for with it."""

from collections import Counter
from itertools import combinations_with_replacement, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.parsing import tokens
from janus.training.worlds.shapes.questions import ask
from janus.training.worlds.shapes.sampling import CATEGORIES, NAMING, SINGLE, sample
from janus.training.worlds.shapes.scene import COLORS, SHAPES, Kind

SEEDS = st.integers(0, 2**32 - 1)
KINDS = tuple(product(COLORS, SHAPES))


def kinds_in(text: str) -> list[Kind]:
    """The colors with a noun behind them: "a red disc", and "a disc that is red" or "in red"."""
    kinds: list[Kind] = []
    color, shape, before = None, None, ""
    for word, (what, value) in tokens(text):
        if what == "color":
            color = str(value)
            if shape and before in ("that is", "that are", "in"):
                kinds.append((color, shape))
        elif what in ("noun", "nouns"):
            if color and value and before == color:
                kinds.append((color, str(value)))
            shape = str(value)
        before = word
    return kinds


def test_the_rule_is_fixed() -> None:
    """A change of these would make the shipped model's scores on what it never saw meaningless."""
    assert shapes.HELD_OUT_KINDS == (
        ("purple", "diamond"),
        ("white", "cross"),
        ("green", "square"),
        ("cyan", "star"),
    )
    pairs = [pair for pair in combinations_with_replacement(KINDS, 2) if shapes.is_held_out_pair(*pair)]
    assert len(pairs) == 120  # of 1,176
    assert [a for a, b in pairs if a == b] == [
        ("red", "diamond"),
        ("red", "cross"),
        ("yellow", "square"),
        ("purple", "triangle"),
        ("purple", "star"),
        ("black", "triangle"),
    ]


def test_each_held_out_kind_has_a_color_and_a_shape_of_its_own() -> None:
    for part in (0, 1):
        assert len({kind[part] for kind in shapes.HELD_OUT_KINDS}) == 4


@given(st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_a_pair_has_no_order(first: Kind, second: Kind) -> None:
    assert shapes.is_held_out_pair(first, second) == shapes.is_held_out_pair(second, first)


def test_a_kind_goes_before_a_pair() -> None:
    assert shapes.held_out_reason([("red", "circle"), ("green", "square")]) == "kind"
    assert shapes.held_out_reason([("red", "cross")]) is None
    assert shapes.held_out_reason([("red", "cross"), ("red", "cross")]) == "pair"


@settings(max_examples=70)
@given(SEEDS, st.sampled_from(CATEGORIES))
def test_training_never_draws_what_is_held_out(seed: int, category: str) -> None:
    drawn = shapes.drawing(default_rng(seed), category=category)
    scene = sample(default_rng(seed), category).scene
    assert shapes.verify(drawn.picture, drawn.spec)
    assert drawn.held_out is None
    assert shapes.held_out_reason([item.kind for item in scene]) is None
    assert shapes.held_out_reason(drawn.spec.kinds) is None
    assert shapes.held_out_reason(shapes.parse(drawn.caption).kinds) is None


@given(SEEDS, st.sampled_from(shapes.QUESTION_CATEGORIES))
def test_training_never_asks_about_what_is_held_out(seed: int, category: str) -> None:
    asked = ask(default_rng(seed), category)
    assert shapes.held_out_reason([item.kind for item in asked.scene]) is None
    assert shapes.held_out_reason(kinds_in(asked.question)) is None
    assert shapes.held_out_reason(kinds_in(asked.answer)) is None


@given(SEEDS)
def test_conversations_never_name_what_is_held_out(seed: int) -> None:
    question, answer = shapes.text(default_rng(seed))
    # What is asked repeats what is stated: as a set, a kind is not two of itself.
    assert shapes.held_out_reason(sorted({*kinds_in(question), *kinds_in(answer)})) is None


@given(SEEDS, st.sampled_from(CATEGORIES), st.sampled_from([True, "kind", "pair"]))
def test_held_out_samples_are_held_out(seed: int, category: str, held_out: shapes.HeldOut) -> None:
    if held_out == "pair" and category in SINGLE:
        with pytest.raises(ValueError, match="'pair' for a single object: use 'kind'"):
            sample(default_rng(seed), category, held_out=held_out)
        return
    drawn = sample(default_rng(seed), category, held_out=held_out)
    assert drawn.held_out == shapes.held_out_reason([item.kind for item in drawn.scene])
    assert drawn.held_out in (("kind", "pair") if held_out is True else (held_out,))
    if category in NAMING[drawn.held_out]:
        assert shapes.held_out_reason(drawn.spec.kinds) == drawn.held_out


@given(SEEDS, st.sampled_from(shapes.QUESTION_CATEGORIES), st.sampled_from(["kind", "pair"]))
def test_held_out_questions_are_about_what_is_held_out(
    seed: int, category: str, held_out: shapes.HeldOut
) -> None:
    asked = ask(default_rng(seed), category, held_out=held_out)
    kinds = [item.kind for item in asked.scene]
    assert asked.held_out == held_out == shapes.held_out_reason(kinds)
    if not asked.about or asked.answer == "no":
        return
    subjects = [item for item in asked.scene if asked.about[0].fits(item)]
    assert any(
        item.kind in shapes.HELD_OUT_KINDS
        if held_out == "kind"
        else any(
            other is not item and shapes.is_held_out_pair(item.kind, other.kind) for other in asked.scene
        )
        for item in subjects
    )


def test_training_sees_every_other_kind() -> None:
    rng = default_rng(0)
    seen = Counter(item.kind for _ in range(3000) for item in sample(rng, "two_object").scene)
    assert set(seen) == set(KINDS) - set(shapes.HELD_OUT_KINDS)
