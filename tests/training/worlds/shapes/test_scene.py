"""What a specification says, and when it holds: against examples, and against trying every assignment."""

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.training.worlds.shapes.scene import (
    INVERSE,
    RELATIONS,
    Object,
    Spec,
    Thing,
    holds,
    relation,
)

# Few names, so that they coincide often.
SHAPES = st.sampled_from(["circle", "star"])
COLORS = st.sampled_from(["red", "blue"])
SIZES = st.sampled_from(["small", "large"])
PLACES = st.integers(2, 14)
OBJECTS = st.builds(Object, SHAPES, COLORS, SIZES, PLACES, PLACES)
THINGS = st.builds(
    Thing,
    st.none() | SHAPES,
    st.none() | COLORS,
    st.none() | SIZES,
    count=st.integers(1, 3),
    region=st.none() | st.sampled_from(["top left", "bottom"]),
)
SINGLES = st.builds(Thing, st.none() | SHAPES, st.none() | COLORS, st.none() | SIZES)
LISTS = st.builds(Spec, st.lists(THINGS, min_size=1, max_size=3).map(tuple))
PAIRS = st.builds(Spec, st.tuples(SINGLES, SINGLES), st.sampled_from(RELATIONS))


def at(x: float, y: float, shape: str = "circle", color: str = "red") -> Object:
    return Object(shape, color, "small", x, y)


def holds_by_trying(spec: Spec, objects: list[Object]) -> bool:
    wanted = [thing for thing in spec.things for _ in range(thing.count)]
    return len(wanted) == len(objects) and any(
        all(thing.fits(item) for thing, item in zip(wanted, order, strict=True))
        and (spec.relation is None or relation(order[0], order[1]) == spec.relation)
        for order in permutations(objects)
    )


@given(LISTS | PAIRS, st.lists(OBJECTS, max_size=5))
def test_holds_is_that_some_assignment_fits(spec: Spec, objects: list[Object]) -> None:
    assert holds(spec, objects) == holds_by_trying(spec, objects)


@given(LISTS | PAIRS, st.lists(OBJECTS, max_size=5))
def test_the_canonical_specification_says_the_same(spec: Spec, objects: list[Object]) -> None:
    assert holds(spec.canonical(), objects) == holds(spec, objects)
    assert spec.canonical().canonical() == spec.canonical()


@given(PAIRS)
def test_inverse_relations_are_one(spec: Spec) -> None:
    assert spec.relation is not None
    assert Spec(spec.things[::-1], INVERSE[spec.relation]).canonical() == spec.canonical()


def test_canonical_joins_and_orders() -> None:
    apart = Spec((Thing("star"), Thing("circle", "red"), Thing("star")))
    assert apart.canonical() == Spec((Thing("circle", "red"), Thing("star", count=2)))


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((9, 5), "left"),
        ((1, 5), "right"),
        ((5, 9), "above"),
        ((5, 1), "below"),
        ((9, 8), "left"),
        ((8, 9), "above"),
        ((9, 9), None),
        ((5, 5), None),
    ],
)
def test_relation_is_along_the_longer_axis(second: tuple[int, int], expected: str | None) -> None:
    first, other = at(5, 5), at(*second)
    assert relation(first, other) == expected
    assert relation(other, first) == (INVERSE[expected] if expected else None)


def test_relation_is_stated_where_it_is_clear() -> None:
    assert relation(at(0, 0), at(13, 10), 1.3) == "left"
    assert relation(at(0, 0), at(12.9, 10), 1.3) is None
    assert relation(at(0, 0), at(10, -13), 1.3) == "below"


def test_no_more_and_no_fewer() -> None:
    spec = Spec((Thing("circle", count=2),))
    assert holds(spec, [at(3, 3), at(9, 9, color="blue")])
    assert not holds(spec, [at(3, 3)])
    assert not holds(spec, [at(3, 3), at(9, 9), at(3, 9)])
    assert not holds(spec, [at(3, 3), at(9, 9, "star")])


def test_kinds_are_those_named_in_full() -> None:
    spec = Spec((Thing("circle", "red", count=2), Thing("star"), Thing(color="blue")))
    assert spec.kinds == (("red", "circle"), ("red", "circle"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Object("hexagon", "red", "small", 3, 3), "shape 'hexagon' is unknown: use one of circle,"),
        (lambda: Object("circle", "mauve", "small", 3, 3), "color 'mauve' is unknown"),
        (lambda: Object("circle", "red", "medium", 3, 3), "size 'medium' is unknown"),
        (lambda: Thing("oval"), "shape 'oval' is unknown"),
        (lambda: Thing("circle", count=0), "at least 1, not 0"),
        (lambda: Spec(()), "names nothing"),
        (lambda: Spec((Thing(), Thing()), "beside"), "'beside' is unknown: use one of left,"),
        (lambda: Spec((Thing(),), "left"), "exactly two single things"),
        (lambda: Spec((Thing(count=2), Thing()), "left"), "exactly two single things"),
        (lambda: Spec((Thing(region="top"), Thing()), "left"), "says where things are: leave their regions"),
        (lambda: Thing(region="upper"), "region 'upper' is unknown: use one of top left, top, "),
    ],
)
def test_mistakes_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
