"""Outlines: what they cover, against counting finer points; distances; blobs, which are like no other."""

import numpy as np
import pytest
from numpy.typing import NDArray

from janus.training.worlds import shapes
from janus.training.worlds.shapes.outlines import BLOBS, coverage, moments, signed_distance
from janus.training.worlds.shapes.raster import RADIUS
from janus.training.worlds.shapes.scene import LATTICE, SIZES

Picture = NDArray[np.uint8]


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


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_moments_are_those_of_the_points_inside(shape: str) -> None:
    axis = np.linspace(-1.3, 1.3, 521)
    inside = signed_distance(shape, axis[None], axis[:, None]) < 0
    area, (x, y) = moments(shape)
    # Points are a two-hundredth of a radius apart: along an edge half of one is undecided.
    assert area == pytest.approx(inside.sum() * (axis[1] - axis[0]) ** 2, rel=0.01)
    rows, columns = np.nonzero(inside)
    assert (x, y) == pytest.approx((axis[columns].mean(), axis[rows].mean()), abs=0.01)


def blob(look: int, size: str) -> Picture:
    return shapes.render((shapes.Object("blob", "red", size, 8, 8, look),))


@pytest.mark.parametrize("size", SIZES)
def test_blobs_are_like_no_shape_that_has_a_name(size: str) -> None:
    for look in range(BLOBS):
        assert shapes.describe(blob(look, size)) == shapes.Reading((), 1), look


def test_blobs_differ_and_keep_to_their_cells() -> None:
    pictures = [blob(look, "large") for look in range(BLOBS)]
    assert len({picture.tobytes() for picture in pictures}) == BLOBS
    assert (blob(BLOBS, "large") == pictures[0]).all()  # there are no more
    half = SIZES["large"] * 64 // LATTICE
    inside = np.zeros((64, 64), bool)
    inside[32 - half + 1 : 32 + half - 1, 32 - half + 1 : 32 + half - 1] = True
    for picture in pictures:
        drawn = (picture != 128).any(axis=2)
        assert not (drawn & ~inside).any()
        assert drawn.sum() > 0.25 * (2 * RADIUS * half) ** 2
