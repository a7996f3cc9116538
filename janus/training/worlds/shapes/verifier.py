"""Reading a picture, not the scene behind it: which objects there are, and whether a caption holds.

Each pixel goes to the palette's color whose mixture with the background it is nearest to, and is that
color's if it has at least half of it: an object's edge does not look like other colors. Connected pixels
of a color form a blob. Each shape is drawn with the blob's area and center of mass, by the renderer, and
the blob is the shape that it is most like. One that is not much like any, that is off the palette or of no
size of the world, is spurious, and so is what is too faint for any color and no object's edge: no caption
holds for a picture with something spurious.

H, W: height and width in pixels. S: a picture's side. P: the pixels that are not the background's. C: the
palette's colors.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from janus.training.worlds.shapes.outlines import coverage, moments
from janus.training.worlds.shapes.parsing import parse
from janus.training.worlds.shapes.raster import (
    BACKGROUND,
    LEAST_SIDE,
    PALETTE,
    RADIUS,
    SIDE,
    Picture,
)
from janus.training.worlds.shapes.scene import LATTICE, SHAPES, SIZES, Object, Spec, holds

# Intersection over union of a blob and a shape as drawn, but differences of up to SOFT of a pixel count for
# nothing, so that a blurred edge does not. Ground truth has more than .99 with its own shape and less than
# .92 with any other; blurred by 3 x 3 and with noise of 8 of 255 it has more than .91 with its own. A large
# square turned by 22 degrees and a large ellipse 1.3 times as wide as high have less than .89 with all.
SOFT = 0.2
LEAST_LIKENESS = 0.89
# How far (of 255, Euclidean) the mean of a blob's pixels may be from its palette color. The nearest two
# palette colors, red and orange, are 104 apart.
COLOR_TOLERANCE = 48.0
# How far a pixel that has less than half of a color may be from the mixtures, to be the background's.
OFF_PALETTE = 40.0
# How far a blob's radius may be beyond the smaller or the larger one.
SIZE_TOLERANCE = 1.3
# In pixels of side 64: a blob of fewer is a speck, such as a lossy tokenizer leaves at an edge, and is let
# pass where specks are few in all.
SPECK = 8
MOST_SPECKS = 16
# In pixels of side 64, how far an edge reaches: what has less than half of a color further off from all that
# has more is a ghost, spurious where it is more than specks are.
EDGE = 2
FAINT = -1  # in the place of a color's number
COLOR_NAMES = tuple(PALETTE)


@dataclass(frozen=True)
class Reading:
    """What is in a picture: its objects, in lattice steps, and the number of things that are none."""

    objects: tuple[Object, ...]
    spurious: int


def verify(picture: Picture, wanted: Spec | str) -> bool:
    """Whether a specification, or a caption, holds for a picture (S, S, 3) uint8.

    The picture must contain exactly the objects named and nothing else, as `holds` says. ValueError for a
    picture that is no such array or below 64 pixels, and for a caption that `parse` cannot read.
    """
    spec = parse(wanted) if isinstance(wanted, str) else wanted
    reading = describe(picture)
    return not reading.spurious and holds(spec, reading.objects)


def describe(picture: Picture) -> Reading:
    """What is in a picture (S, S, 3) uint8, from left to right. ValueError for any other array."""
    _require_picture(picture)
    pixels = (picture.shape[0] / SIDE) ** 2
    offset = picture.astype(np.float32) - np.array(BACKGROUND, np.float32)
    colors = label_colors(offset)
    blobs = label_blobs(colors)
    areas = np.bincount(blobs.ravel())
    areas[0] = 0
    specks = areas[areas < SPECK * pixels].sum()
    read = []
    for number in np.flatnonzero(areas >= SPECK * pixels):
        color = int(colors.flat[number - 1]) - 1  # of the blob's first pixel, which its number gives
        known = color < len(COLOR_NAMES)
        read.append(_read_blob(offset, blobs == number, color) if known else None)
    objects = sorted((item for item in read if item), key=lambda item: (item.x, item.y))
    crowds = sum(int(count > MOST_SPECKS * pixels) for count in (specks, _ghosts(colors)))
    return Reading(tuple(objects), read.count(None) + crowds)


def _ghosts(colors: NDArray[np.int64]) -> int:
    """How many pixels (H, W) are faint, and not at the edge of what has a color."""
    near = colors > 0
    for _ in range(round(EDGE * len(colors) / SIDE)):
        near = _grow(near)
    return int(((colors == FAINT) & ~near).sum())


def label_colors(offset: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each pixel's color (H, W) from its offset to the background (H, W, 3).

    0 for the background, FAINT for less than half of a color, else 1 + the color's number; the last number
    + 1 off the palette.
    """
    rays = _palette_rays()
    lengths = np.linalg.norm(rays, axis=1)
    squared = (offset**2).sum(axis=2)
    # Half of the shortest ray is longer than OFF_PALETTE: what is nearer is the background's.
    visible = squared > OFF_PALETTE**2
    along = offset[visible] @ (rays.T / lengths)  # (P, C)
    # Of the points between background and color, the one nearest to the pixel is `nearest` away from the
    # background. Its squared distance to the pixel is the pixel's own to the background less `saved`.
    nearest = along.clip(0, lengths)
    saved = nearest * (2 * along - nearest)
    color = saved.argmax(axis=1)
    chosen = np.arange(len(color)), color
    off = squared[visible] - saved[chosen] > OFF_PALETTE**2
    colors = np.zeros(offset.shape[:2], np.int64)
    colors[visible] = np.where(
        along[chosen] >= lengths[color] / 2, color + 1, np.where(off, len(rays) + 1, FAINT)
    )
    return colors


def label_blobs(colors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Connected pixels (H, W) of one color by a number of their own: 1 + the flat index of the first one.

    0 for the background. Corners connect. All pixels point to a lesser one of their blob until none is left.
    """
    height, width = colors.shape
    index = np.arange(height * width).reshape(height, width)
    pairs = []
    for one, other in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        same = (colors[one] == colors[other]) & (colors[one] > 0)
        pairs.append((index[one][same], index[other][same]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    root = index.ravel().copy()
    while True:
        a, b = root[first], root[second]
        if (a == b).all():
            break
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while ((further := root[root]) != root).any():
            root = further
    return np.where(colors > 0, root.reshape(height, width) + 1, 0)


def _read_blob(offset: NDArray[np.float32], blob: NDArray[np.bool_], color: int) -> Object | None:
    """The object that a blob (H, W) of a color is, or None where it is spurious."""
    rows, columns = np.nonzero(blob)
    # A pixel around for the edge, and one for what a shape covers and the blob does not.
    top, left = max(rows.min() - 2, 0), max(columns.min() - 2, 0)
    part = np.s_[top : rows.max() + 3, left : columns.max() + 3]
    ray, side = _palette_rays()[color], len(offset)
    share = np.where(_grow(blob[part]), offset[part] @ (ray / (ray @ ray)), 0).clip(0)
    fits = [fit for shape in SHAPES if (fit := _fit(shape, share, side))]
    best = max(fits, key=lambda fit: fit.likeness, default=None)
    if best is None or best.likeness < LEAST_LIKENESS:
        return None
    inside = best.drawn == 1 if (best.drawn == 1).any() else blob[part]
    if np.linalg.norm(offset[part][inside].mean(axis=0) - ray) > COLOR_TOLERANCE:
        return None
    x, y = (left + best.x) * LATTICE / side, (top + best.y) * LATTICE / side
    return Object(best.shape, COLOR_NAMES[color], best.size, float(x), float(y))


@dataclass(frozen=True)
class _Fit:
    """A shape as drawn (H, W) in a blob's place, its box's middle at (x, y), and how like the blob it is."""

    likeness: float
    shape: str
    size: str
    x: float
    y: float
    drawn: NDArray[np.float32]


def _fit(shape: str, share: NDArray[np.float32], side: int) -> _Fit | None:
    """A shape of a blob's area and center of mass, or None where its size is none of the world's.

    The sums of shares give both to a fraction of a pixel, and blur does not change them.
    """
    area = float(share.sum())
    unit_area, middle = moments(shape)
    radius = math.sqrt(area / unit_area)
    size = _size(radius * SIDE / side)
    if size is None:
        return None
    x = float(share.sum(axis=0) @ (np.arange(share.shape[1]) + 0.5)) / area - radius * middle[0]
    y = float(share.sum(axis=1) @ (np.arange(share.shape[0]) + 0.5)) / area - radius * middle[1]
    drawn, seen = coverage(shape, radius, x, y, *share.shape), share.clip(0, 1)
    difference = (abs(drawn - seen) - SOFT).clip(0).sum() / (1 - SOFT)
    return _Fit(1 - float(difference / np.maximum(drawn, seen).sum()), shape, size, x, y, drawn)


def _grow(blob: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A blob (H, W) and the pixels next to it, at corners too."""
    wide = np.pad(blob, 1)
    wide = wide[:-2] | wide[1:-1] | wide[2:]
    return wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]


def _size(radius: float) -> str | None:
    """The size that a radius in pixels of side 64 is nearer to by ratio, or None where it is of neither."""
    radii = {size: RADIUS * half * SIDE / LATTICE for size, half in SIZES.items()}
    if not min(radii.values()) / SIZE_TOLERANCE <= radius <= max(radii.values()) * SIZE_TOLERANCE:
        return None
    return min(radii, key=lambda size: abs(math.log(radius / radii[size])))


@cache
def _palette_rays() -> NDArray[np.float32]:
    """From the background to each color (C, 3)."""
    return np.array(list(PALETTE.values()), np.float32) - np.array(BACKGROUND, np.float32)


def _require_picture(picture: Picture) -> None:
    shape, dtype = getattr(picture, "shape", None), getattr(picture, "dtype", None)
    square = shape is not None and len(shape) == 3 and shape[0] == shape[1] >= LEAST_SIDE and shape[2] == 3
    if not square or dtype != np.uint8:
        raise ValueError(
            f"a picture must be a uint8 array (S, S, 3) with S at least {LEAST_SIDE}, not {dtype} {shape}"
        )
