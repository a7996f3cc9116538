"""A tokenizer small enough to train in a test, and pictures for it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from janus.config import VQConfig
from janus.models.vq import VQ

BACKGROUND = (128, 128, 128)
COLORS = ((230, 40, 40), (40, 90, 230), (40, 180, 70), (240, 210, 50))


@pytest.fixture
def build() -> Callable[..., VQ]:
    """A VQ of `levels` levels, weights by seed 0."""

    def build(*, levels: int = 2, codes: int = 16, code_width: int = 4) -> VQ:
        torch.manual_seed(0)
        return VQ(
            VQConfig(
                codes=codes,
                code_width=code_width,
                channels=32,
                encoder_multipliers=(1,) * levels,
                decoder_multipliers=(1,) * levels,
                residual_blocks=1,
                latent_channels=32,
            )
        )

    return build


@pytest.fixture
def squares() -> Callable[..., Tensor]:
    """Pictures (count, 3, side, side) of squares, `tile` to a side, half of them gray."""

    def squares(*seed: int, count: int, side: int, tile: int) -> Tensor:
        generator = np.random.default_rng(seed)
        palette = np.array([*COLORS, *[BACKGROUND] * 4], np.float32)
        tiles = palette[generator.integers(0, len(palette), (count, side // tile, side // tile))]
        pictures = tiles.repeat(tile, axis=1).repeat(tile, axis=2).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(pictures / np.float32(127.5) - 1))

    return squares
