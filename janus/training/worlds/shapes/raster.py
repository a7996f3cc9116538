"""Scenes as pictures: outlines drawn by signed distance, so that an edge pixel has the share that is covered.

H, W: height and width in pixels. S: a picture's side. V: an outline's vertices.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from janus.checks import require_whole
from janus.training.worlds.shapes.scene import LATTICE, SIZES, Scene

SIDE = 64
LEAST_SIDE = 64  # a small star on fewer pixels is hard to tell from a cross
BACKGROUND = (128, 128, 128)
# Eight directions from grey, one for each corner of the colour cube, and orange between two of them.
PALETTE = {
    "red": (222, 42, 42),
    "green": (36, 168, 56),
    "blue": (44, 76, 226),
    "yellow": (244, 222, 44),
    "purple": (170, 42, 206),
    "cyan": (52, 214, 224),
    "white": (246, 246, 246),
    "black": (16, 16, 16),
    "orange": (250, 140, 20),
}
# The radius of an object, in halves of its cell: no outline's box reaches beyond 1.15 radii, and what is left
# keeps two objects two pixels apart.
RADIUS = 0.75

Picture = NDArray[np.uint8]


def _centred(vertices: list[tuple[float, float]]) -> NDArray[np.float64]:
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


# At radius 1. The circle, which has no vertices, is the one shape that is absent.
OUTLINES = {
    "square": _centred([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": _centred([(0, -1), (1.13, 0.95), (-1.13, 0.95)]),
    "diamond": _centred([(0, -1.14), (1.14, 0), (0, 1.14), (-1.14, 0)]),
    "star": _centred(_star(5, 1.2, 0.56)),
    "cross": _centred(_cross(1.08, 0.4)),
}


def signed_distance(shape: str, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """The distance of points, (1, W) and (H, 1), from a shape of radius 1 at the origin; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    start = OUTLINES[shape]
    edge_x, edge_y = (np.roll(start, -1, axis=0) - start).T[..., None, None]
    from_x, from_y = x - start[:, :1, None], y - start[:, 1:, None]
    along = (from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2)
    along = along.clip(0, 1)
    squared = (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2
    # A point is inside if a ray to its right meets the outline an odd number of times.
    spans = (from_y < 0) != (from_y < edge_y)
    ahead = (from_x * edge_y < from_y * edge_x) == (edge_y > 0)
    inside = (spans & ahead).sum(axis=0) % 2 == 1
    return np.sqrt(squared.min(axis=0)) * np.where(inside, -1, 1)


def coverage(shape: str, radius: float, x: float, y: float, height: int, width: int) -> NDArray[np.float32]:
    """The share (H, W) of each pixel that a shape with its box's middle at (x, y) covers; all in pixels."""
    across = (np.arange(width) + 0.5 - x) / radius
    down = (np.arange(height) + 0.5 - y) / radius
    distance = signed_distance(shape, across[None], down[:, None]) * radius
    return (0.5 - distance).clip(0, 1).astype(np.float32)


# On the lattice of a side that it divides, every object of one shape and size has the same pixels.
_sprite = lru_cache(maxsize=4096)(coverage)


def render(scene: Scene, side: int = SIDE) -> Picture:
    """A scene as (S, S, 3) uint8. ValueError for a side below 64 or an object that leaves the picture."""
    require_whole("side", side, least=LEAST_SIDE)
    step = side / LATTICE
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = BACKGROUND
    for item in scene:
        x, y, half = item.x * step, item.y * step, SIZES[item.size] * step
        left, top = math.floor(x - half), math.floor(y - half)
        right, bottom = math.ceil(x + half), math.ceil(y + half)
        if min(left, top) < 0 or max(right, bottom) > side:
            raise ValueError(f"a {item.size} {item.shape} at ({item.x}, {item.y}) leaves the picture")
        share = _sprite(item.shape, RADIUS * half, x - left, y - top, bottom - top, right - left)
        region = canvas[top:bottom, left:right]
        region += share[:, :, None] * (np.array(PALETTE[item.color], np.float32) - region)
    return np.rint(canvas).astype(np.uint8)
