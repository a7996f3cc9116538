"""Kernels write all that they return."""

from collections.abc import Iterator

import pytest
import torch

from helpers.kernels import DEVICE


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` gives is NaN, so that what a kernel forgets to write cannot be right by chance."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1, device=DEVICE).isnan()
    yield
    torch.use_deterministic_algorithms(False)
