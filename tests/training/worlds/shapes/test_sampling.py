"""Scenes by category: what each contains, where objects lie, and the options."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.sampling import CATEGORIES
from janus.training.worlds.shapes.scene import LATTICE, REGIONS, SIZES, STATED_RATIO, holds

SEEDS = st.integers(0, 2**32 - 1)
HELD_OUT = st.sampled_from([False, True])


@given(SEEDS, st.sampled_from(CATEGORIES), HELD_OUT)
def test_the_specification_holds_and_is_of_its_category(seed: int, category: str, held_out: bool) -> None:
    drawn = shapes.sample(default_rng(seed), category, held_out=held_out)
    scene, spec = drawn.scene, drawn.spec
    assert drawn.category == category
    assert shapes.holds(spec, scene)
    assert all(thing.shape for thing in spec.things)
    assert (spec.relation is not None) == (category in ("position", "full"))
    colored = [thing.color is not None for thing in spec.things]
    if category == "counting":
        assert 2 <= len(scene) <= 4
        assert spec.things[0].count == len(scene)
        assert len({item.shape for item in scene}) == 1
    else:
        assert len(scene) == len(spec.things) == (1 if category in ("single_object", "colors") else 2)
        assert colored == [category in ("colors", "color_attribution", "full")] * len(scene)
    if category in ("two_object", "position"):
        assert scene[0].shape != scene[1].shape
    if category == "color_attribution":
        assert scene[0].color != scene[1].color
    if category == "full":
        assert scene[0].kind != scene[1].kind


@given(SEEDS, st.sampled_from(CATEGORIES), st.sampled_from(["grid", "lattice", "anywhere"]))
def test_objects_lie_in_cells_of_their_own(seed: int, category: str, places: shapes.Places) -> None:
    scene = shapes.sample(default_rng(seed), category, places=places).scene
    for number, item in enumerate(scene):
        room = SIZES[item.size]
        if places != "anywhere":
            assert item.x == int(item.x)
            assert item.y == int(item.y)
        assert room <= min(item.x, item.y)
        assert max(item.x, item.y) <= LATTICE - room
        for other in scene[:number]:
            assert max(abs(item.x - other.x), abs(item.y - other.y)) >= room + SIZES[other.size]


@pytest.mark.parametrize(("places", "step"), [("grid", 2), ("lattice", 1), ("anywhere", 0.25)])
def test_cells_begin_on_the_grid_or_between(places: shapes.Places, step: float) -> None:
    rng = default_rng(0)
    items = [item for _ in range(600) for item in shapes.sample(rng, "counting", places=places).scene]
    for size, room in SIZES.items():
        begins = {item.x - room for item in items if item.size == size}
        assert begins == {step * number for number in range(int((LATTICE - 2 * room) / step) + 1)}


@given(SEEDS, st.sampled_from(["position", "full"]))
def test_a_stated_relation_is_clear(seed: int, category: str) -> None:
    drawn = shapes.sample(default_rng(seed), category)
    assert shapes.relation(*drawn.scene, ratio=STATED_RATIO) == drawn.spec.relation


@given(SEEDS, st.sampled_from(CATEGORIES), st.sampled_from(["orange", "red"]))
def test_a_color_that_is_asked_for_is_there(seed: int, category: str, color: str) -> None:
    drawn = shapes.sample(default_rng(seed), category, color=color)
    assert color in [item.color for item in drawn.scene]
    assert drawn.held_out is None
    assert shapes.held_out_reason([item.kind for item in drawn.scene]) is None
    assert shapes.holds(drawn.spec, drawn.scene)


@given(SEEDS, st.sampled_from(CATEGORIES))
def test_what_is_nameless_is_so_by_its_shape_or_by_its_color(seed: int, category: str) -> None:
    drawn = shapes.sample(default_rng(seed), category, nameless=True)
    assert all(item.kind != ("strange", "blob") for item in drawn.scene)
    assert all(item.look == 0 for item in drawn.scene if item.shape != "blob" and item.color != "strange")
    assert shapes.holds(drawn.spec, drawn.scene)
    assert shapes.held_out_reason([item.kind for item in drawn.scene]) is None


def test_the_nameless_are_two_of_three_and_various() -> None:
    rng = default_rng(0)
    items = [shapes.sample(rng, "colors", nameless=True).scene[0] for _ in range(3000)]
    blobs = [item for item in items if item.shape == "blob"]
    strange = [item for item in items if item.color == "strange"]
    # A thousand each, by 26 or so, of a binomial distribution; all colors, all shapes, most looks.
    assert 880 < len(blobs) < 1120
    assert 880 < len(strange) < 1120
    assert {item.color for item in blobs} == set(shapes.COLORS)
    assert {item.shape for item in strange} == set(shapes.SHAPES)
    assert len({item.look for item in blobs}) > 500


def test_nothing_is_nameless_unless_asked_for() -> None:
    rng = default_rng(0)
    for category in CATEGORIES * 100:
        for item in shapes.sample(rng, category).scene:
            assert item.shape in shapes.SHAPES
            assert item.color in shapes.COLORS
            assert item.look == 0


def test_everything_occurs() -> None:
    rng = default_rng(0)
    drawn = [shapes.sample(rng, CATEGORIES[number % len(CATEGORIES)]) for number in range(2100)]
    items = [item for one in drawn for item in one.scene]
    assert {item.shape for item in items} == set(shapes.SHAPES)
    assert {item.color for item in items} == set(shapes.COLORS)  # and no new one
    assert {item.size for item in items} == set(SIZES)
    assert {len(one.scene) for one in drawn} == {1, 2, 3, 4}
    assert {one.spec.relation for one in drawn} == {None, "left", "right", "above", "below"}
    assert {one.spec.things[0].color is None for one in drawn if one.category == "counting"} == {True, False}
    assert {one.spec.things[0].size for one in drawn if one.category == "colors"} == {None, *SIZES}


@pytest.mark.parametrize(
    ("category", "options", "message"),
    [
        ("singles", {}, "category 'singles' is unknown: use one of single_object, two_object,"),
        ("colors", {"held_out": "shape"}, "held_out is 'shape': use False, True, 'kind' or 'pair'"),
        ("colors", {"held_out": "pair"}, "use 'kind'"),
        ("colors", {"color": "mauve"}, "color 'mauve' is unknown: use one of red,"),
        (
            "full",
            {"color": "orange", "held_out": True},
            "color 'orange' and held_out True exclude each other",
        ),
        ("full", {"nameless": True, "held_out": "pair"}, "nameless and held_out 'pair' exclude each other"),
    ],
)
def test_mistakes_are_named(category: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.sample(default_rng(0), category, **options)


@given(SEEDS, st.booleans())
def test_regions_are_where_things_are(seed: int, nameless: bool) -> None:
    sample = shapes.sample(default_rng(seed), "region", nameless=nameless)
    assert len(sample.scene) == len(sample.spec.things) in (1, 2)
    assert holds(sample.spec, sample.scene)
    for thing, item in zip(sample.spec.things, sample.scene, strict=True):
        column, row = (int(along // (LATTICE / 3)) for along in (item.x, item.y))
        assert thing.region == item.region == REGIONS[row][column]


def test_regions_are_for_training_alone() -> None:
    with pytest.raises(ValueError, match="category 'region' is for training alone: leave held_out True out"):
        shapes.sample(default_rng(0), "region", held_out=True)
