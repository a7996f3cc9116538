"""Pictures: what is covered, against counting finer points; colours, sides and what cannot be drawn."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from janus.training.worlds import shapes
from janus.training.worlds.shapes.raster import BACKGROUND, RADIUS, coverage, signed_distance
from janus.training.worlds.shapes.scene import LATTICE, SIZES

EVERY = [*shapes.COLORS, *shapes.NEW_COLORS]


def test_every_colour_of_the_world_has_a_pigment() -> None:
    assert list(shapes.PALETTE) == EVERY


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("radius", [6.0, 9.0, 13.5])
def test_coverage_is_the_share_of_finer_points_inside(shape: str, radius: float) -> None:
    side, fine = 36, 16
    x, y = 17.3, 18.6
    points = (np.arange(side * fine) + 0.5) / fine
    inside = signed_distance(shape, (points[None] - x) / radius, (points[:, None] - y) / radius) < 0
    expected = inside.reshape(side, fine, side, fine).mean(axis=(1, 3))
    share = coverage(shape, radius, x, y, side, side)
    # One distance per pixel stands for one straight edge through it: in a pixel where two meet, such as the
    # triangle's tip, up to .3 is amiss.
    assert abs(share - expected).max() < 0.35
    assert share.sum() == pytest.approx(expected.sum(), rel=0.01)
    assert np.isin(share, (0, 1)).mean() > 0.7


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_signed_distance_is_to_the_nearest_point_of_the_outline(shape: str) -> None:
    """It grows by at most the way walked, changes sign at the outline, and no outline leaves its box."""
    axis = np.linspace(-1.6, 1.6, 65)
    distance = signed_distance(shape, axis[None], axis[:, None])
    step = axis[1] - axis[0]
    for along in (0, 1):
        assert abs(np.diff(distance, axis=along)).max() <= step * (1 + 1e-9)
    assert distance[32, 32] < 0
    reach = np.abs(np.stack(np.meshgrid(axis, axis)))[:, distance <= 0].max()
    assert reach < 1.15
    assert (distance[[0, -1]] > 0).all()
    assert (distance[:, [0, -1]] > 0).all()


@pytest.mark.parametrize("side", [64, 80, 96])
@pytest.mark.parametrize("color", EVERY)
def test_an_object_is_its_colour_on_grey(side: int, color: str) -> None:
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
