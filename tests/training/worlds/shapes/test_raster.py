"""Pictures: what is covered, against counting finer points; colors, sides and what cannot be drawn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.raster import BACKGROUND, RADIUS, strange_colors
from janus.training.worlds.shapes.scene import LATTICE, LOOKS, SIZES

EVERY = [*shapes.COLORS, *shapes.NEW_COLORS]


def test_every_color_of_the_world_has_a_pigment() -> None:
    assert list(shapes.PALETTE) == EVERY


@pytest.mark.parametrize("side", [64, 80, 96])
@pytest.mark.parametrize("color", EVERY)
def test_an_object_is_its_color_on_gray(side: int, color: str) -> None:
    picture = shapes.render((shapes.Object("square", color, "large", 5, 9),), side)
    assert picture.shape == (side, side, 3)
    assert picture.dtype == np.uint8
    x, y = 5 * side // LATTICE, 9 * side // LATTICE
    assert tuple(picture[y, x]) == shapes.PALETTE[color]
    half = SIZES["large"] * side // LATTICE
    outside = np.ones((side, side), bool)
    outside[y - half : y + half, x - half : x + half] = False
    assert (picture[outside] == BACKGROUND).all()


@given(st.integers(0, 2**32 - 1), st.integers(64, 96), st.sampled_from(shapes.CATEGORIES))
def test_objects_are_what_the_scene_says_at_any_side(seed: int, side: int, category: str) -> None:
    """Each is where it would be alone: nothing overlaps, nothing is cut off."""
    scene = shapes.sample(default_rng(seed), category).scene
    background = np.array(BACKGROUND, int)
    alone = [shapes.render((item,), side).astype(int) - background for item in scene]
    assert (sum(alone) + background == shapes.render(scene, side)).all()
    touched = np.stack([layer.any(axis=2) for layer in alone])
    assert touched.sum(axis=0).max() == 1
    for item, layer in zip(scene, touched, strict=True):
        half = SIZES[item.size] * side / LATTICE
        rows, columns = np.nonzero(layer)
        assert max(abs(rows + 0.5 - item.y * side / LATTICE)) < half
        assert max(abs(columns + 0.5 - item.x * side / LATTICE)) < half


def test_strange_colors_are_none_that_have_a_name() -> None:
    """A circle of any of them is no object to the verifier, and is there all the same."""
    assert len(strange_colors()) == LOOKS
    for look in range(LOOKS):
        picture = shapes.render((shapes.Object("circle", "strange", "large", 8, 8, look),))
        assert (picture[32, 32] == np.rint(strange_colors()[look])).all()
        reading = shapes.describe(picture)
        assert not reading.objects
        assert reading.spurious


def test_sizes_differ_clearly() -> None:
    areas = {
        size: (shapes.render((shapes.Object("circle", "red", size, 8, 8),))[:, :, 1] < 80).sum()
        for size in SIZES
    }
    expected = {size: np.pi * (RADIUS * half * 4) ** 2 for size, half in SIZES.items()}
    # Whole pixels on a circle's edge: within half a pixel of the radius.
    assert areas == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("scene", "side", "message"),
    [
        ((shapes.Object("star", "red", "large", 2, 8),), 64, r"a large star at \(2, 8\) leaves the picture"),
        ((shapes.Object("star", "red", "small", 8, 14.5),), 64, "leaves the picture"),
        ((), 63, "side must be a whole number of at least 64, not 63"),
        ((), 64.0, "side must be a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_named(scene: Any, side: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.render(scene, side)
