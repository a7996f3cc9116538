"""Which implementation of an op runs: "triton", the kernel, or "torch", plain PyTorch. Decided here alone.

Whoever knows better forces one: `with use(attention="torch")`, `use("torch")` for all ops, or the
environment variable JANUS_KERNELS, read at import: `JANUS_KERNELS=attention=torch,codebook=triton`, or
`JANUS_KERNELS=torch`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from janus.kernels import launch
from janus.kernels.launch import DTYPES, INTERPRETED

Answer = TypeVar("Answer")

IMPLEMENTATIONS = ("triton", "torch")
OPS = (
    "add_rms_norm",
    "attention",
    "codebook",
    "decode_attention",
    "quantized_linear",
    "rotary",
    "sample",
    "swiglu",
)
OLDEST_CAPABILITY = (8, 0)  # the oldest NVIDIA chip that the kernels are compiled for in the tests


def _attention(*, head_width: int, dense_mask: bool, ragged: bool, past: bool) -> str:
    """Published figures for an H100 (docs/kernels.md): at d 64 a Triton kernel equals cuDNN, at d 128 cuDNN
    is half again as fast. With padding, documents or a past, where the triangle does not begin at the first
    key, PyTorch's fused kernels do not run at all."""
    if dense_mask:
        return "torch"
    return "triton" if ragged or past or head_width <= 64 else "torch"


def _quantized_linear(*, rows: int) -> str:
    """With more rows a matrix product of floats, which are then made of the weights once, does more a second
    than the kernel (not measured)."""
    return "triton" if rows <= 64 else "torch"


# What is faster on a GPU where both can run; an op without a rule has nothing fused to lose to.
RULES: dict[str, Callable[..., str]] = {"attention": _attention, "quantized_linear": _quantized_linear}


def _checked(choices: dict[str, str]) -> dict[str, str]:
    for op, implementation in choices.items():
        if op not in OPS:
            raise ValueError(f"no op is called {op!r}; there are {', '.join(OPS)}")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"{op} has the implementations {', '.join(IMPLEMENTATIONS)}, not {implementation!r}"
            )
    return choices


def parse(text: str) -> dict[str, str]:
    """What JANUS_KERNELS says: "torch", or "attention=torch,codebook=triton"."""
    if not text.strip():
        return {}
    if "=" not in text:
        return _checked(dict.fromkeys(OPS, text.strip()))
    pairs = [pair.partition("=") for pair in text.split(",")]
    return _checked({op.strip(): implementation.strip() for op, _, implementation in pairs})


_lock = threading.Lock()
_demands = [parse(os.environ.get("JANUS_KERNELS", ""))]
# A plain dict, so that torch.compile guards on it and compiles again after a change.
_forced: dict[str, str] = _demands[0]


@contextlib.contextmanager
def use(everything: str | None = None, /, **ops: str) -> Iterator[None]:
    """Force implementations within a `with`: of all ops, of those named, or of all with exceptions.

    Holds for all threads. A call that the forced kernel cannot serve raises RuntimeError.
    """
    wanted = {} if everything is None else dict.fromkeys(OPS, everything)
    demand = _checked({**wanted, **ops})
    with _lock:
        _demands.append(demand)
        _settle()
    try:
        yield
    finally:
        with _lock:
            # By identity: another thread may have come later, and stay longer, with one that is equal.
            _demands[:] = [other for other in _demands if other is not demand]
            _settle()


def _settle() -> None:
    """Let the newest demand on each op hold."""
    global _forced
    _forced = {op: choice for demand in _demands for op, choice in demand.items()}


def _constant(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """As `torch.compiler.assume_constant_result` does, which would import the compiler at every start."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _new_enough(index: int | None) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= OLDEST_CAPABILITY


@_constant
def _driver_problem() -> str | None:
    return launch.driver_problem()


def obstacle(tensor: Tensor) -> str | None:
    """Why no kernel can take this tensor, or None."""
    if launch.missing:
        return launch.missing
    if tensor.dtype not in DTYPES:
        return f"kernels take bfloat16, float16 and float32, not {tensor.dtype}"
    if tensor.device.type == "cuda":
        if not _new_enough(tensor.device.index):
            return "this GPU is older than compute capability 8.0"
        return _driver_problem()
    if tensor.device.type == "cpu" and INTERPRETED:
        return None
    return f"kernels run on a GPU, not on {tensor.device}"


def implementation(op: str, tensor: Tensor, *, unable: str | None = None, **facts: bool | int) -> str:
    """ "triton" or "torch", for a call of `op` on `tensor`'s device and dtype.

    `unable` says why the op's kernel cannot serve this call, if it cannot; `facts` are what the op's rule
    asks for. Raises RuntimeError where the kernel is forced and cannot.
    """
    forced = _forced.get(op)
    if forced == "torch":
        return "torch"
    problem = unable or obstacle(tensor)
    if forced == "triton":
        if problem:
            raise RuntimeError(f"the Triton kernel of {op} was asked for, but {problem}")
        return "triton"
    if problem or tensor.device.type != "cuda":  # the interpreter is slow: only when asked for
        return "torch"
    rule = RULES.get(op)
    return "triton" if rule is None else rule(**facts)
