"""Scenes as pictures: outlines drawn by signed distance, so that an edge pixel has the share that is covered.

S: a picture's side.
"""

import math
from functools import cache

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from janus.checks import require_whole
from janus.training.worlds.shapes.outlines import BLOBS, sprite
from janus.training.worlds.shapes.scene import (
    LATTICE,
    LOOKS,
    NAMELESS_COLOR,
    NAMELESS_SHAPE,
    SIZES,
    Object,
    Scene,
)

SIDE = 64
LEAST_SIDE = 64  # a small star on fewer pixels is hard to tell from a cross
BACKGROUND = (128, 128, 128)
# Eight directions from gray, one for each corner of the color cube, and orange between two of them.
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


# How far (of 255, Euclidean) a strange color is at least from those that have a name and from the
# background, from which half of white or black is 102 away.
APART = 70.0
APART_FROM_BACKGROUND = 110.0


@cache
def strange_colors() -> NDArray[np.float32]:
    """Colors (LOOKS, 3) from all of the cube, none of them near one with a name."""
    proposed = default_rng(0).uniform(0, 255, (16 * LOOKS, 3))
    named = np.array(list(PALETTE.values()), np.float64)
    apart = np.linalg.norm(proposed[:, None] - named, axis=-1).min(axis=1) >= APART
    apart &= np.linalg.norm(proposed - BACKGROUND, axis=-1) >= APART_FROM_BACKGROUND
    return proposed[apart][:LOOKS].astype(np.float32)


def _shown_color(item: Object) -> NDArray[np.float32]:
    """An object's color (3,) as it is drawn."""
    if item.color == NAMELESS_COLOR:
        return strange_colors()[item.look % LOOKS]
    return np.array(PALETTE[item.color], np.float32)


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
        look = item.look % BLOBS if item.shape == NAMELESS_SHAPE else 0
        share = sprite(item.shape, RADIUS * half, x - left, y - top, bottom - top, right - left, look)
        region = canvas[top:bottom, left:right]
        region += share[:, :, None] * (_shown_color(item) - region)
    return np.rint(canvas).astype(np.uint8)
