"""Mistakes: of the very words of what they are of, wrong of its picture, and of nothing that is held out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.training.worlds import shapes
from janus.training.worlds.shapes.held_out import held_out_reason
from janus.training.worlds.shapes.mistakes import MISTAKABLE, mistake
from janus.training.worlds.shapes.scene import INVERSE, Meaning, Object, Spec, Thing


@given(st.integers(0, 2**32), st.sampled_from(MISTAKABLE))
def test_what_is_named_is_there_and_what_is_said_is_not_so(seed: int, category: str) -> None:
    random = np.random.default_rng(seed)
    drawing = shapes.drawing(random, category=category)
    found = mistake(random, drawing.meaning)
    if found is None:  # an exchange would name what is held out
        assert category != "position"
        return
    own = drawing.spec
    assert not shapes.verify(drawing.picture, found)
    assert shapes.verify(drawing.picture, own)
    assert Counter(thing.shape for thing in found.things) == Counter(thing.shape for thing in own.things)
    assert Counter(thing.color for thing in found.things) == Counter(thing.color for thing in own.things)
    assert found.relation in (own.relation, INVERSE.get(own.relation or ""))
    assert held_out_reason(found.kinds) is None
    said = shapes.parse(shapes.caption(random, found))
    assert said is not None
    assert said.canonical() == found.canonical()


def test_both_ways_to_be_mistaken_come() -> None:
    random = np.random.default_rng(0)
    ways: Counter[str] = Counter()
    for _ in range(200):
        drawing = shapes.drawing(random, category="full")
        found = mistake(random, drawing.meaning)
        if found is not None:
            ways["relation" if found.things == drawing.spec.things else "colors"] += 1
    assert min(ways.values()) > 60


@pytest.mark.parametrize("category", sorted(set(shapes.CATEGORIES) - set(MISTAKABLE)))
def test_other_categories_cannot_be_mistaken(category: str) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        assert mistake(random, shapes.drawing(random, category=category).meaning) is None


def test_an_exchange_that_would_name_what_is_held_out_is_none() -> None:
    (color, shape), *_ = shapes.HELD_OUT_KINDS
    other_color = next(each for each in shapes.COLORS if each != color)
    other_shape = next(
        each
        for each in shapes.SHAPES
        if each != shape and held_out_reason([(other_color, shape), (color, each)]) is None
    )
    scene = (Object(shape, other_color, "small", 4, 4), Object(other_shape, color, "small", 12, 12))
    spec = Spec(tuple(Thing(item.shape, item.color) for item in scene))
    assert mistake(np.random.default_rng(0), Meaning(spec, scene)) is None
