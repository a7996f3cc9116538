"""The original's tensors, the small model that must reproduce them, and what of it a test makes run."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from janus.models.janus import Janus


@pytest.fixture(scope="session")
def golden(data: Path) -> dict[str, Tensor]:
    """What the original code computed, by the names of the oracle's README."""
    return load_file(data / "januspro" / "golden.safetensors")


@pytest.fixture(scope="session")
def facts(data: Path) -> dict[str, Any]:
    """What accompanies the tensors: prompts, ids and seeds."""
    return json.loads((data / "januspro" / "golden.json").read_text())


@pytest.fixture(scope="session")
def model(data: Path) -> Janus:
    """The small checkpoint in float32, as the original's tensors were computed."""
    return Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def close() -> Callable[[Tensor, Tensor], None]:
    def assert_close(actual: Tensor, expected: Tensor) -> None:
        """Integers exactly; floats within 2e-5 of the expected tensor's largest magnitude.

        The order of summation alone moves the original by up to 4e-6 between its own versions; the smallest
        mistake of the oracle's mutations.txt that can be seen at all moves a tensor by 7e-5.
        """
        assert actual.shape == expected.shape
        if not expected.is_floating_point():
            assert torch.equal(actual.long(), expected.long())
            return
        assert actual.isfinite().all()
        error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error <= 2e-5, f"off by {error:.2e} of the largest magnitude"

    return assert_close


@pytest.fixture(scope="session")
def counted() -> Callable[[Janus], AbstractContextManager[list[tuple[int, int]]]]:
    @contextmanager
    def count(model: Janus) -> Iterator[list[tuple[int, int]]]:
        """The (rows, positions) of every run of the language model while the block runs."""
        runs: list[tuple[int, int]] = []
        handle = model.language.register_forward_pre_hook(
            lambda module, given: runs.append((given[0].shape[0], given[0].shape[1]))
        )
        try:
            yield runs
        finally:
            handle.remove()

    return count
