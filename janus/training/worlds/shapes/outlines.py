"""The outlines of objects: of the shapes that have a name, and of blobs, which have none.

At radius 1 around the middle of their bounding box. H, W: height and width in pixels. V: an outline's
vertices.
"""

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from janus.training.worlds.shapes.scene import NAMELESS_SHAPE, SHAPES

Outline = NDArray[np.float64]

BLOBS = 256
# A blob that is as like a named shape as this, by intersection over union, might be taken for it.
MOST_LIKE = 0.7
REACH = 1.14  # of a blob from its middle, along an axis: as far as the diamond's


def _centered(vertices: list[tuple[float, float]]) -> Outline:
    """Vertices (V, 2) as x, y, moved so that the middle of their bounding box is the origin."""
    outline = np.array(vertices)
    return outline - (outline.min(axis=0) + outline.max(axis=0)) / 2


def _star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    return [
        (radius * math.sin(angle), -radius * math.cos(angle))
        for number in range(2 * points)
        for radius, angle in [((outer, inner)[number % 2], math.pi * number / points)]
    ]


def _cross(arm: float, half: float) -> list[tuple[float, float]]:
    corner = [(half, -arm), (half, -half), (arm, -half)]
    turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
    return [(a * x + b * y, c * x + d * y) for a, b, c, d in turns for x, y in corner]


# The circle, which has no vertices, is the one shape that is absent.
OUTLINES = {
    "square": _centered([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": _centered([(0, -1), (1.13, 0.95), (-1.13, 0.95)]),
    "diamond": _centered([(0, -1.14), (1.14, 0), (0, 1.14), (-1.14, 0)]),
    "star": _centered(_star(5, 1.2, 0.56)),
    "cross": _centered(_cross(1.08, 0.4)),
}


def signed_distance(shape: str, x: NDArray[Any], y: NDArray[Any], look: int = 0) -> NDArray[np.float64]:
    """The distance of points, (1, W) and (H, 1), from a shape of radius 1 at the origin; negative inside.

    `look`: which of the BLOBS a blob is.
    """
    if shape == "circle":
        return np.hypot(x, y) - 1
    return _distance(_blobs()[look] if shape == NAMELESS_SHAPE else OUTLINES[shape], x, y)


def _distance(outline: Outline, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    edge_x, edge_y = (np.roll(outline, -1, axis=0) - outline).T[..., None, None]
    from_x, from_y = x - outline[:, :1, None], y - outline[:, 1:, None]
    along = (from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2)
    along = along.clip(0, 1)
    squared = (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2
    # A point is inside if a ray to its right meets the outline an odd number of times.
    spans = (from_y < 0) != (from_y < edge_y)
    ahead = (from_x * edge_y < from_y * edge_x) == (edge_y > 0)
    inside = (spans & ahead).sum(axis=0) % 2 == 1
    return np.sqrt(squared.min(axis=0)) * np.where(inside, -1, 1)


def coverage(
    shape: str, radius: float, x: float, y: float, height: int, width: int, look: int = 0
) -> NDArray[np.float32]:
    """The share (H, W) of each pixel that a shape with its box's middle at (x, y) covers; all in pixels."""
    across = (np.arange(width) + 0.5 - x) / radius
    down = (np.arange(height) + 0.5 - y) / radius
    distance = signed_distance(shape, across[None], down[:, None], look) * radius
    return (0.5 - distance).clip(0, 1).astype(np.float32)


# On the lattice of a side that it divides, every object of one shape and size has the same pixels.
sprite = lru_cache(maxsize=8192)(coverage)


@cache
def moments(shape: str) -> tuple[float, tuple[float, float]]:
    """The area of a named shape of radius 1, and its center of mass from its box's middle."""
    return (math.pi, (0.0, 0.0)) if shape == "circle" else _moments(OUTLINES[shape])


def _moments(outline: Outline) -> tuple[float, tuple[float, float]]:
    """The shoelace formula."""
    end = np.roll(outline, -1, axis=0)
    cross = outline[:, 0] * end[:, 1] - end[:, 0] * outline[:, 1]
    area = cross.sum() / 2
    x, y = ((outline + end) * cross[:, None]).sum(axis=0) / (6 * area)
    return abs(float(area)), (float(x), float(y))


@cache
def _blobs() -> tuple[Outline, ...]:
    """Outlines of four to nine corners, none of them like a named shape; the same everywhere."""
    rng = default_rng(0)
    found: list[Outline] = []
    while len(found) < BLOBS:
        outline = _blob(rng)
        area, _ = _moments(outline)
        # Of the named shapes the cross has the least area, 2.8, and none is narrow.
        if area > 1.5 and all(_likeness(outline, shape) < MOST_LIKE for shape in SHAPES):
            found.append(outline)
    return tuple(found)


def _blob(rng: Generator) -> Outline:
    """Corners at growing angles and any distances, stretched to fill the box of an object."""
    corners = int(rng.integers(4, 10))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * math.pi / corners)
    radii = rng.uniform(0.35, 1, corners)
    angles += rng.uniform(0, 2 * math.pi)
    outline = _centered(list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)))
    return outline * (REACH / abs(outline).max())


def _likeness(outline: Outline, shape: str) -> float:
    """Intersection over union with a named shape of the same area and center of mass."""
    area, middle = _moments(outline)
    own_area, own_middle = moments(shape)
    scale = math.sqrt(area / own_area)
    axis = np.linspace(-1.6, 1.6, 48)
    blob = _distance(outline, (axis + middle[0])[None], (axis + middle[1])[:, None]) < 0
    named = signed_distance(
        shape, (axis / scale + own_middle[0])[None], (axis / scale + own_middle[1])[:, None]
    )
    return float((blob & (named < 0)).sum() / (blob | (named < 0)).sum())
