"""What every test may ask for: the data that travels with the repository, and the full oracle if at hand."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A deadline would be a timing assert: the machine may be busy with anything.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread: the tests' tensors are small, and a test process runs on each core."""
    torch.set_num_threads(1)
