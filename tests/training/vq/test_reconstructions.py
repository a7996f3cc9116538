"""The grid for the log: where each picture stands, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from janus.models.vq import VQ
from janus.processing.image import to_pictures
from janus.training.vq import reconstruction_grid
from janus.training.vq.reconstructions import MARGIN

SIDE = 8


@pytest.mark.parametrize(("count", "columns"), [(1, 8), (3, 3), (5, 2)])
def test_originals_stand_above_their_reconstructions(
    build: Callable[..., VQ], squares: Callable[..., Tensor], count: int, columns: int
) -> None:
    vq, pixels = build(), squares(0, count=count, side=SIDE, tile=4)
    grid = reconstruction_grid(vq, pixels, columns=columns)
    rows, step = -(-count // columns), SIDE + MARGIN
    assert grid.size == (min(count, columns) * step + MARGIN, 2 * rows * step + MARGIN)
    with torch.no_grad():
        reconstructed = vq.decode(vq.encode(pixels))
    for below, pictures in enumerate((to_pictures(pixels), to_pictures(reconstructed))):
        for number, picture in enumerate(pictures):
            left = MARGIN + number % columns * step
            top = MARGIN + (2 * (number // columns) + below) * step
            cut = np.asarray(grid.crop((left, top, left + SIDE, top + SIDE)))
            # The straight-through sum rounds once more than looking up does: a level may go over its edge.
            assert np.abs(cut.astype(int) - np.asarray(picture)).max() <= below


def test_without_the_codebook(build: Callable[..., VQ], squares: Callable[..., Tensor]) -> None:
    vq, pixels = build(), squares(0, count=2, side=SIDE, tile=4)
    before = reconstruction_grid(vq, pixels, quantized=False)
    assert before.tobytes() != reconstruction_grid(vq, pixels).tobytes()
    with torch.no_grad():
        vq.codebook.zero_()
    assert reconstruction_grid(vq, pixels, quantized=False).tobytes() == before.tobytes()


def test_nothing_to_show_raises(build: Callable[..., VQ]) -> None:
    with pytest.raises(ValueError, match="needs a picture: pixels are empty"):
        reconstruction_grid(build(), torch.zeros(0, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="columns must be a whole number of at least 1, not 0"):
        reconstruction_grid(build(), torch.zeros(1, 3, SIDE, SIDE), columns=0)
