"""What every test may ask for: the small checkpoint, the original's tensors, the full oracle if at hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

if not torch.cuda.is_available():
    # Kernels run in Triton's interpreter where there is no GPU. It must be told before their first import.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow

# A deadline would be a timing assert: the machine may be busy with anything. The same examples every time: of
# models with random weights one in many thousands has two codes that tie but for rounding.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The test data that travels with the repository."""
    return REPOSITORY / "tests" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the full oracle, beside the repository; tests that need it are skipped without it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the full oracle is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def golden(data: Path) -> dict[str, Tensor]:
    """What the original code computed, by the stages' names."""
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
def flow_golden(data: Path) -> dict[str, Tensor]:
    """As `golden`, of the small JanusFlow."""
    return load_file(data / "janusflow" / "golden.safetensors")


@pytest.fixture(scope="session")
def flow_facts(data: Path) -> dict[str, Any]:
    """As `facts`, of the small JanusFlow."""
    return json.loads((data / "janusflow" / "golden.json").read_text())


@pytest.fixture(scope="session")
def flow(data: Path) -> JanusFlow:
    """The small JanusFlow in float32, as the original's tensors were computed."""
    return JanusFlow.from_pretrained(data / "janusflow" / "checkpoint", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def close() -> Callable[[Tensor, Tensor], None]:
    def assert_close(actual: Tensor, expected: Tensor) -> None:
        """Integers exactly; floats within 2e-5 of the expected tensor's largest magnitude.

        The order of summation alone moves the original by up to 4e-6 between its own versions; of
        mistakes put into it on purpose, the smallest that can be seen at all moves a tensor by 7e-5.
        """
        assert actual.shape == expected.shape
        if not expected.is_floating_point():
            assert torch.equal(actual.long(), expected.long())
            return
        assert actual.isfinite().all()
        error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
        assert error <= 2e-5, f"off by {error:.2e} of the largest magnitude"

    return assert_close


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: the tests' tensors are small, and a test process runs on each core."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random tensors are the same whatever tests ran before."""
    torch.manual_seed(0)
