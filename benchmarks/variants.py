"""The usual ways to make an implementation out of a function of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from janus.kernels import choice
from timer import Call

Prepare = Callable[..., Call]


def plain(function: Callable[..., Any]) -> Prepare:
    """The function as it is, on the inputs as they are."""
    return lambda *inputs: partial(function, *inputs)


def compiled(function: Callable[..., Any]) -> Prepare:
    """The function under torch.compile, for exactly these shapes."""
    return plain(torch.compile(function, dynamic=False))


def eager_and_compiled(function: Callable[..., Any], name: str = "") -> dict[str, Prepare]:
    """`eager` and `compiled`, or `NAME` and `NAME-compiled`."""
    eager, fast = (name, f"{name}-compiled") if name else ("eager", "compiled")
    return {eager: plain(function), fast: compiled(function)}


def ours(function: Callable[..., Any], device: torch.device) -> dict[str, Prepare]:
    """`janus`, whatever `janus.kernels.choice` picks, and on a GPU each implementation forced.

    On a CPU there is nothing to choose: the kernels run there only for tests.
    """

    def forced(implementation: str) -> Prepare:
        def run(*inputs: Any) -> Any:
            with choice.use(implementation):
                return function(*inputs)

        return plain(run)

    found = {"janus": plain(function)}
    if device.type == "cuda":
        found |= {f"janus-{name}": forced(name) for name in choice.IMPLEMENTATIONS}
    return found
