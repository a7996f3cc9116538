"""How kernels are launched, and Triton itself where it is installed.

Every launcher goes through `launch`, so that `janus.kernels.compile` can ask the launchers themselves what
they would launch (`recorded`), and compile it for chips that are not there.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from janus.checks import one_line

OLDEST_TRITON = (3, 3)  # the first with tuples in kernels

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

# Why there is no Triton to use, if so: then the ops run their references.
missing: str | None = None
if triton is None:
    missing = "triton is not installed"
elif tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST_TRITON:
    missing = f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    triton = tl = None

# Kernels run in Triton's interpreter, on the CPU and slowly: for tests.
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"

# The dtypes that kernels take; they compute in float32 inside.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def driver_problem() -> str | None:
    """Why Triton cannot launch anything on this machine's GPU, or None.

    It builds its driver at the first time, with a C compiler, which an image made for running may lack.
    """
    try:
        triton.runtime.driver.active.get_current_target()
    # Any class of exception: Triton's own, a compiler's, the system's.
    except Exception as error:
        return f"triton cannot launch kernels here ({one_line(error)})"
    return None


def kernel(function: Callable[..., Any], *, sizes: Sequence[str] = ()) -> Any:
    """`triton.jit`, or nothing where there is no Triton: such a kernel is never launched.

    It is not compiled anew where an argument among `sizes` happens to be 1 or a multiple of 16.
    """
    return function if triton is None else triton.jit(function, do_not_specialize=sizes)


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded instead of made."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]
    amd_options: dict[str, int]


_recording: list[Launch] | None = None


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it nothing is launched; -> the launches that would have been. For tensors on "meta"."""
    global _recording
    outer, _recording = _recording, []
    try:
        yield _recording
    finally:
        _recording = outer


def launch(
    function: Any,
    grid: tuple[int, ...],
    *,
    options: dict[str, int],
    amd_options: dict[str, int] | None = None,
    **arguments: Any,
) -> None:
    """Run a kernel over a grid on its tensors' device; `options` are Triton's num_warps and num_stages.

    `amd_options` are those for AMD's GPUs, where they are others.
    """
    amd_options = options if amd_options is None else amd_options
    if _recording is not None:
        _recording.append(Launch(function, arguments, options, amd_options))
        return
    if 0 in grid:
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    # Triton launches on the current device, whichever the tensors live on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        function[grid](**arguments, **(options if torch.version.hip is None else amd_options))


def blocks(total: int, block: int) -> int:
    """How many blocks cover `total`."""
    return -(-total // block)


def as_rows(tensor: Tensor) -> Tensor:
    """(..., D) -> (rows, D), elements of a row beside each other; copied only where strides demand it."""
    rows = tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`: Triton's blocks have such sides."""
    return 1 << max(0, number - 1).bit_length()
