"""Captions say what they are made from, in English that varies; what says nothing clear is refused."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.parsing import plain
from janus.training.worlds.shapes.scene import REGIONS, RELATIONS, SIZES, Spec, Thing
from janus.training.worlds.shapes.words import ANY_NOUNS, NOUNS, NUMBERS

SEEDS = st.integers(0, 2**32 - 1)
OPTIONAL_NAMES = (
    st.none() | st.sampled_from(shapes.SHAPES),
    st.none() | st.sampled_from([*shapes.COLORS, *shapes.NEW_COLORS]),
    st.none() | st.sampled_from(list(SIZES)),
)
SINGLES = st.builds(Thing, *OPTIONAL_NAMES)
WHERE = st.none() | st.sampled_from([name for row in REGIONS for name in row])
THINGS = st.builds(Thing, *OPTIONAL_NAMES, count=st.integers(1, 10), region=WHERE)
SPECS = st.builds(Spec, st.lists(THINGS, min_size=1, max_size=4).map(tuple)) | st.builds(
    Spec, st.tuples(SINGLES, SINGLES), st.sampled_from(RELATIONS)
)
RED_CIRCLE, BLUE_SQUARE = Thing("circle", "red"), Thing("square", "blue")


@given(SPECS, SEEDS)
def test_a_caption_is_read_as_what_it_was_written_from(spec: Spec, seed: int) -> None:
    text = shapes.caption(default_rng(seed), spec)
    assert shapes.parse(text).canonical() == spec.canonical(), text


@given(SPECS, SEEDS)
def test_grammar(spec: Spec, seed: int) -> None:
    words = plain(shapes.caption(default_rng(seed), spec)).split()
    nouns = [pair for pairs in [*NOUNS.values(), ANY_NOUNS] for pair in pairs]
    singular = {pair[0].split()[-1] for pair in nouns}
    plural = {pair[1].split()[-1] for pair in nouns}
    for word, following in pairwise(words):
        if word in ("a", "an"):
            assert (word == "an") == (following[0] in "aeiou"), words
    several = False
    for word in words:
        if word in NUMBERS or word.isdigit() or word in ("a", "an", "pair"):
            several = word not in ("a", "an", "one", "1")
        elif word in singular | plural:
            assert word in (plural if several else singular), words


@given(SPECS, SEEDS)
def test_a_caption_is_a_function_of_its_generator(spec: Spec, seed: int) -> None:
    assert shapes.caption(default_rng(seed), spec) == shapes.caption(default_rng(seed), spec)


@pytest.mark.parametrize(
    "spec",
    [Spec((RED_CIRCLE,)), Spec((Thing("star", count=3),)), Spec((RED_CIRCLE, BLUE_SQUARE), "left")],
    ids=["one", "three", "related"],
)
def test_captions_vary(spec: Spec) -> None:
    rng = default_rng(0)
    written = Counter(shapes.caption(rng, spec) for _ in range(500))
    assert len(written) > 60
    assert max(written.values()) < 200  # four in ten
    texts = " ".join(written)
    assert re.search("[A-Z]{9}", texts)
    assert re.search(r"\b[A-Z][a-z]", texts)


@pytest.mark.parametrize(
    ("text", "things", "relation"),
    [
        ("a red circle", [RED_CIRCLE], None),
        ("A photo of a red disc.", [RED_CIRCLE], None),
        ("the circle is red", [RED_CIRCLE], None),
        ("red circle", [RED_CIRCLE], None),
        ("one small circle that is red!", [Thing("circle", "red", "small")], None),
        ("4 big orange plus signs", [Thing("cross", "orange", "large", 4)], None),
        ("a pair of objects", [Thing(count=2)], None),
        ("a red circle left of a blue square", [RED_CIRCLE, BLUE_SQUARE], "left"),
        ("the blue box is on the right side of the red disc", [RED_CIRCLE, BLUE_SQUARE], "left"),
        ("left of a blue square there is a red circle", [RED_CIRCLE, BLUE_SQUARE], "left"),
        ("a blue square with a red circle to its left", [RED_CIRCLE, BLUE_SQUARE], "left"),
        ("a square in blue, and on its left a circle in red", [RED_CIRCLE, BLUE_SQUARE], "left"),
        ("two red circles and a blue square", [Thing("circle", "red", count=2), BLUE_SQUARE], None),
    ],
)
def test_examples(text: str, things: list[Thing], relation: str | None) -> None:
    assert shapes.parse(text).canonical() == Spec(tuple(things), relation).canonical()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it names no thing"),
        ("a picture of", "it names no thing"),
        ("a purplish circle", "the world has no word 'purplish'"),
        ("a circle near a square", "no word 'near'"),
        ("circles", "it does not say how many"),
        ("zero circles", "at least 1, not 0"),
        ("a red", "it has no noun for 'a|it has no noun for '1 red'"),
        ("red", "it has no noun for 'red'"),
        ("a red blue circle", "two words of color for one thing"),
        ("a circle that is red in blue", "two words of color"),
        ("two three circles", "it has no noun for '2'"),
        ("a circle left of a square above a star", "two relations"),
        ("a circle left of", "two single things|stand with two things"),
        ("two circles left of a square", "exactly two single things"),
        ("a circle and a square left of", "does not stand with two things"),
        ("to its left a circle and a square", "does not stand with two things"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as error:
        shapes.parse(text)
    assert str(error.value).startswith(f"the caption {text!r} cannot be read: ")


def parse_or_none(text: str) -> Spec | None:
    """None where the text is refused in the one way that texts are."""
    try:
        return shapes.parse(text)
    except ValueError as error:
        if "cannot be read" in str(error):
            return None
        raise


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    spec = parse_or_none(text)
    assert spec is None or spec.things


PHRASES = st.sampled_from(
    (
        *("a", "an", "two", "3", "zero", "red", "blue", "small", "circle", "squares", "plus sign", "object"),
        *("left of", "left", "above", "over", "over it", "to its left", "its", "and", "that is", "in", "is"),
    )
)


@given(st.lists(PHRASES, max_size=9).map(" ".join))
def test_any_phrases_are_read_or_refused(text: str) -> None:
    spec = parse_or_none(text)
    if spec is not None:
        assert shapes.parse(shapes.caption(default_rng(0), spec)).canonical() == spec.canonical()


def test_a_scene_is_described_in_the_order_of_reading() -> None:
    scene = (
        shapes.Object("square", "blue", "small", 12, 4),
        shapes.Object("circle", "red", "small", 9, 9),
        shapes.Object("star", "orange", "large", 5, 12),
        shapes.Object("circle", "red", "large", 3, 5),
    )
    assert shapes.describe_scene(scene) == "a blue square, two red circles and an orange star"
    assert shapes.describe_scene(scene[:1]) == "a blue square"
