"""What of the language model a test makes run."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from janus.models.janus import Janus


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
