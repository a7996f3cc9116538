"""Modules on the meta device: shapes, and no memory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

DRAWS = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_)


class _Undrawn(TorchFunctionMode):
    """Leaves out random numbers: there is nothing to write them to, and to find that out, torch imports its
    compiler, which takes more time than all else of loading a small model."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Within it, tensors and modules are made on the meta device."""
    with torch.device("meta"), _Undrawn():
        yield
