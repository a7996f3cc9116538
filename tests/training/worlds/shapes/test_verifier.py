"""The verifier reads pictures: true ones pass, also blurred and noisy; wrong ones never do."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.random import Generator, default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.raster import BACKGROUND, Picture
from janus.training.worlds.shapes.sampling import CATEGORIES, Sample
from janus.training.worlds.shapes.scene import SIZES, Scene
from janus.training.worlds.shapes.verifier import label_blobs

COUNT = 28  # pictures of each kind, in every category alike


def as_it_is(picture: Picture) -> Picture:
    return picture


def blurred(picture: Picture) -> Picture:
    """The mean of 3 x 3 pixels."""
    height, width = picture.shape[:2]
    wide = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = sum(wide[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.rint(total / 9).astype(np.uint8)


def noisy(picture: Picture) -> Picture:
    """Gaussian noise of standard deviation 8."""
    noise = default_rng(picture.sum()).normal(0, 8, picture.shape)
    return np.rint(picture + noise).clip(0, 255).astype(np.uint8)


def both(picture: Picture) -> Picture:
    return noisy(blurred(picture))


DISTORTIONS: list[Callable[[Picture], Picture]] = [as_it_is, blurred, noisy, both]


def samples(count: int, seed: int) -> list[Sample]:
    rng = default_rng(seed)
    return [
        shapes.sample(rng, CATEGORIES[number % len(CATEGORIES)], held_out=number % 3 == 0)
        for number in range(count)
    ]


def wrong_scenes(rng: Generator, drawn: Sample) -> dict[str, Scene]:
    """A scene with one thing changed, as far as the specification forbids the change."""
    scene = list(drawn.scene)
    number = int(rng.integers(len(scene)))
    item, rest = scene[number], scene[:number] + scene[number + 1 :]
    other = {
        name: str(rng.choice([value for value in values if value != getattr(item, name)]))
        for name, values in (("color", shapes.COLORS), ("shape", shapes.SHAPES))
    }
    changed = {
        "color": [*rest, replace(item, color=other["color"])],
        "shape": [*rest, replace(item, shape=other["shape"])],
        "fewer": rest,
    }
    corners = [(x, y) for x in (2, 14) for y in (2, 8, 14)]
    free = [
        (x, y)
        for x, y in corners
        if all(max(abs(x - one.x), abs(y - one.y)) >= 2 + SIZES[one.size] for one in scene)
    ]
    if free:
        changed["more"] = [*scene, replace(item, size="small", x=free[0][0], y=free[0][1])]
    if drawn.spec.relation:
        one, two = scene
        changed["swapped"] = [
            replace(one, x=two.x, y=two.y, size=two.size),
            replace(two, x=one.x, y=one.y, size=one.size),
        ]
    return {what: tuple(new) for what, new in changed.items() if not shapes.holds(drawn.spec, new)}


@pytest.mark.parametrize("distort", DISTORTIONS)
@pytest.mark.parametrize("side", [64, 96])
def test_true_pictures_pass(side: int, distort: Callable[[Picture], Picture]) -> None:
    for drawn in samples(COUNT, side):
        assert shapes.verify(distort(shapes.render(drawn.scene, side)), drawn.spec), drawn


@pytest.mark.parametrize("distort", DISTORTIONS)
@pytest.mark.parametrize("side", [64, 96])
def test_wrong_pictures_fail(side: int, distort: Callable[[Picture], Picture]) -> None:
    rng = default_rng(side)
    changes: set[str] = set()
    for drawn in samples(COUNT // 2, side + 1):
        for change, scene in wrong_scenes(rng, drawn).items():
            changes.add(change)
            assert not shapes.verify(distort(shapes.render(scene, side)), drawn.spec), (change, drawn)
    assert changes == {"color", "shape", "fewer", "more", "swapped"}


@pytest.mark.parametrize("distort", DISTORTIONS)
@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_sizes_are_told_apart(shape: str, distort: Callable[[Picture], Picture]) -> None:
    for size, other in (("small", "large"), ("large", "small")):
        picture = distort(shapes.render((shapes.Object(shape, "green", size, 7, 9),)))
        assert shapes.verify(picture, f"a {size} green {shape}")
        assert not shapes.verify(picture, f"a {other} green {shape}")


def with_block(side: int, width: int, color: tuple[int, int, int]) -> Picture:
    """A red star and a square block of a width given for side 64."""
    picture = shapes.render((shapes.Object("star", "red", "large", 5, 5),), side)
    width = -(-width * side // 64)
    picture[-width - 5 : -5, -width - 9 : -9] = color
    return picture


@pytest.mark.parametrize(("distort", "width"), [(as_it_is, 3), (noisy, 3), (blurred, 4)])
@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("color", shapes.PALETTE)
def test_a_spurious_blob_fails(
    side: int, distort: Callable[[Picture], Picture], width: int, color: str
) -> None:
    picture = distort(with_block(side, width, shapes.PALETTE[color]))
    assert not shapes.verify(picture, "a red star")
    assert shapes.describe(picture).spurious == 1


@pytest.mark.parametrize("distort", DISTORTIONS)
@pytest.mark.parametrize("color", [(90, 50, 10), (255, 105, 180), (128, 50, 128)])
def test_a_blob_of_a_color_that_the_world_does_not_have_fails(
    distort: Callable[[Picture], Picture], color: tuple[int, int, int]
) -> None:
    assert shapes.describe(distort(with_block(64, 7, color))).spurious > 0


def test_many_specks_fail() -> None:
    picture = shapes.render((shapes.Object("star", "red", "large", 5, 5),))
    picture[40, 40:44] = shapes.PALETTE["blue"]
    assert shapes.verify(picture, "a red star")
    picture[44:60:4, 40:44] = shapes.PALETTE["blue"]
    assert not shapes.verify(picture, "a red star")


SHAPELESS: dict[str, Callable[[Any, Any], Any]] = {
    "half a circle": lambda x, y: (np.hypot(x, y) < 9) & (x < 0),
    "ring": lambda x, y: (np.hypot(x, y) < 9) & (np.hypot(x, y) > 4),
    "wide box": lambda x, y: (abs(x) < 10) & (abs(y) < 5),
    "bar": lambda x, y: (abs(x) < 12) & (abs(y) < 2.5),
    "three quarters": lambda x, y: (np.hypot(x, y) < 9) & ~((x > 0) & (y < 0)),
    "triangle upside down": lambda x, y: (abs(y) < 8) & (2 * abs(x) < 8 - y),
    "tilted cross": lambda x, y: ((abs(x + y) < 4) | (abs(x - y) < 4)) & (abs(x) < 8) & (abs(y) < 8),
    "tiny circle": lambda x, y: np.hypot(x, y) < 4,
    "huge circle": lambda x, y: np.hypot(x, y) < 15,
}


# Blurred by 3 x 3 these are as like a circle as a blurred circle is.
NEARLY_A_CIRCLE: dict[str, Callable[[Any, Any], Any]] = {
    "turned square": lambda x, y: (abs(0.93 * x + 0.37 * y) < 7.5) & (abs(0.93 * y - 0.37 * x) < 7.5),
    "ellipse": lambda x, y: np.hypot(x / 10.4, y / 8) < 1,
}


def filled(inside: Callable[[Any, Any], Any]) -> Picture:
    """What is inside in blue, of points from the middle in pixels."""
    fine = 8
    axis = (np.arange(64 * fine) + 0.5) / fine - 32
    share = inside(axis[None], axis[:, None]).reshape(64, fine, 64, fine).mean(axis=(1, 3))
    color = np.array(shapes.PALETTE["blue"]) - BACKGROUND
    return np.rint(BACKGROUND + share[:, :, None] * color).astype(np.uint8)


@pytest.mark.parametrize("name", SHAPELESS)
@pytest.mark.parametrize("distort", [as_it_is, blurred])
def test_what_is_no_shape_is_spurious(name: str, distort: Callable[[Picture], Picture]) -> None:
    assert shapes.describe(distort(filled(SHAPELESS[name]))) == shapes.Reading((), 1)


@pytest.mark.parametrize("name", NEARLY_A_CIRCLE)
def test_what_is_nearly_a_circle_is_spurious(name: str) -> None:
    assert shapes.describe(filled(NEARLY_A_CIRCLE[name])) == shapes.Reading((), 1)


@pytest.mark.parametrize("share", [0.25, 0.45])
@pytest.mark.parametrize("color", shapes.COLORS)
@pytest.mark.parametrize("side", [64, 96])
def test_ghosts_are_spurious(color: str, share: float, side: int) -> None:
    """An object mixed less than half into the background, beside one that is as it should be."""
    star = shapes.Object("star", "red", "large", 4, 4)
    faint = shapes.render((shapes.Object("circle", color, "large", 12, 12),), side).astype(float)
    picture = shapes.render((star,), side).copy()
    there = (faint != BACKGROUND).any(axis=2)
    picture[there] = np.rint(BACKGROUND + share * (faint - BACKGROUND))[there].astype(np.uint8)
    lengths = np.linalg.norm(np.array(shapes.PALETTE[color]) - np.array(BACKGROUND, float))
    # What is nearer to the background than 40 of 255 is taken for it, of any color.
    assert shapes.verify(picture, "a red star") == (share * lengths < 40)


def test_a_background_that_is_not_gray_is_spurious() -> None:
    picture = shapes.render((shapes.Object("star", "red", "large", 5, 5),)).copy()
    picture[(picture == BACKGROUND).all(axis=2)] = np.rint(np.array(BACKGROUND) * 0.6).astype(np.uint8)
    assert shapes.describe(picture).spurious == 1


def test_a_blob_within_its_opposite_is_spurious() -> None:
    picture = shapes.render(())
    picture[28:36, 28:36] = shapes.PALETTE["white"]
    picture[30:33, 30:33] = shapes.PALETTE["black"]
    assert shapes.describe(picture) == shapes.Reading((), 2)


def test_an_object_off_its_color_is_spurious() -> None:
    picture = shapes.render((shapes.Object("square", "red", "large", 8, 8),))
    dull = picture.copy()
    dull[(picture == picture[32, 32]).all(axis=2)] = (150, 60, 60)
    assert shapes.verify(picture, "a red square")
    assert shapes.describe(dull) == shapes.Reading((), 1)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(CATEGORIES),
    st.integers(64, 96),
    st.sampled_from([None, "orange"]),
)
def test_what_is_read_is_what_was_drawn(seed: int, category: str, side: int, color: str | None) -> None:
    scene = shapes.sample(default_rng(seed), category, color=color).scene
    reading = shapes.describe(shapes.render(scene, side))
    assert reading.spurious == 0
    # What has one x in the scene may be read in either order.
    read = sorted(reading.objects, key=lambda item: (round(item.x), round(item.y)))
    for item, found in zip(sorted(scene, key=lambda item: (item.x, item.y)), read, strict=True):
        assert (found.kind, found.size) == (item.kind, item.size)
        # Whole levels of color and one distance per pixel: a twentieth of a step is a fifth of a pixel.
        assert (found.x, found.y) == pytest.approx((item.x, item.y), abs=0.05)


def test_an_empty_picture_has_nothing() -> None:
    empty = shapes.render(())
    assert shapes.describe(empty) == shapes.Reading((), 0)
    assert not shapes.verify(empty, "a circle")


def test_a_caption_is_as_good_as_its_specification() -> None:
    left, right = (
        shapes.Object("circle", "red", "small", 4, 8),
        shapes.Object("square", "blue", "large", 11, 9),
    )
    picture = shapes.render((left, right))
    assert shapes.verify(picture, "A red circle to the left of a blue square.")
    assert shapes.verify(picture, "a square and a circle")
    assert shapes.verify(picture, "a large square with a small circle on its left")
    assert not shapes.verify(picture, "a red circle to the right of a blue square")
    assert not shapes.verify(picture, "a red square and a blue circle")
    assert not shapes.verify(picture, "a small square and a circle")
    assert not shapes.verify(picture, "a red circle")
    with pytest.raises(ValueError, match="the world has no word 'cat'"):
        shapes.verify(picture, "a cat")


@given(arrays.arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_blobs_are_what_a_flood_fills(colors: np.ndarray) -> None:
    height, width = colors.shape
    expected = np.zeros_like(colors)
    for start in range(height * width):
        row, column = divmod(start, width)
        waiting = [(row, column)] if colors[row, column] and not expected[row, column] else []
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < height and 0 <= x < width and not expected[y, x]:
                if colors[y, x] != colors[row, column]:
                    continue
                expected[y, x] = start + 1
                waiting += [(y + down, x + across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    assert (label_blobs(colors) == expected).all()


@settings(max_examples=30)
@given(arrays.arrays(np.uint8, (64, 64, 3), elements=st.integers(0, 255), fill=st.integers(0, 255)))
def test_any_picture_is_read(picture: Picture) -> None:
    assert shapes.describe(picture) == shapes.describe(picture.copy())
    assert not shapes.verify(picture, "four small purple stars"), "of which noise has none"


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64, 3)), r"uint8 array \(S, S, 3\) with S at least 64, not float64 \(64, 64, 3\)"),
        (np.zeros((64, 64), np.uint8), r"not uint8 \(64, 64\)"),
        (np.zeros((64, 96, 3), np.uint8), r"not uint8 \(64, 96, 3\)"),
        (np.zeros((64, 64, 4), np.uint8), r"not uint8 \(64, 64, 4\)"),
        (np.zeros((32, 32, 3), np.uint8), r"not uint8 \(32, 32, 3\)"),
        ([[0]], "not None None"),
    ],
)
def test_what_is_no_picture_is_named(picture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.describe(picture)
