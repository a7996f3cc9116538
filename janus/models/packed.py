"""Linear layers whose weight lies in the order in which the CPU's matrix kernels read it.

A step of one or two rows does little but read weights, so it should read them once, as they lie. Two
libraries that PyTorch brings do so with weights of 16 bits:

- oneDNN, in bfloat16, where the CPU has instructions for it. Called with a plain weight it rearranges that
  anew each time. The numbers are the same bit for bit, save that a bias is added before rounding.
- FBGEMM, on other x86 CPUs: weights in float16, all else in float32. Scaled by a power of two, float16 holds
  bfloat16 weights to the bit.

Only the packed copy is kept: `weight`, and what is saved, is unpacked when it is asked for. The figures are
in docs/performance.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus import cpu

LARGEST = 256 << 20  # bytes of a weight that is packed: for a moment there are two of it


class Packed(Protocol):
    """A weight (N, K) in a library's own order."""

    dtype: torch.dtype  # of the weight, and of the inputs that its product takes

    def dense(self) -> Tensor:
        """The weight itself, to the bit: a copy."""

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """(R, K) -> (R, N)."""


class OneDNNWeight:
    """bfloat16 in oneDNN's order."""

    ROWS = 2  # for which oneDNN chooses the order: those of a guided step; it serves hundreds as well
    FEWEST = 4  # rows that are computed at least: without AMX, oneDNN takes longer for one or two
    dtype = torch.bfloat16

    def __init__(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.ROWS)

    @classmethod
    def of(cls, weight: Tensor) -> OneDNNWeight | None:
        """The weight packed, or None where that would not gain."""
        gains = weight.dtype == torch.bfloat16 and cpu.is_x86() and cpu.has_onednn(torch.bfloat16)
        return cls(weight) if gains and weight.nbytes <= LARGEST else None

    def dense(self) -> Tensor:
        return self.packed.to_dense()

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        few = 0 < len(rows) < self.FEWEST
        padded = F.pad(rows, (0, 0, 0, self.FEWEST - len(rows))) if few else rows
        return torch.ops.mkldnn._linear_pointwise(padded, self.packed, bias, "none", [], "")[: len(rows)]


class FBGEMMWeight:
    """float16 in FBGEMM's order, times a power of two that the inputs are divided by.

    The largest weight comes to lie just below float16's largest, so that one 2^29 times smaller still has all
    bits of a bfloat16. The few that are lost beyond are kept beside for `dense`; in products they are less
    than a rounding of float32.
    """

    CHUNK = 1 << 23  # weights of a block: they are float32 for a moment, and blocks are packed side by side
    MOST_LOST = 2**-10  # the share of a weight's numbers that may be kept beside
    TOP = 15  # the largest number is brought below 2^15; float16 reaches nearly 2^16

    def __init__(self, weight: Tensor) -> None:
        self.dtype = weight.dtype
        largest = float(weight.abs().max())
        exponent = self.TOP - math.frexp(largest)[1] if largest else 0
        self.scale = 2.0 ** max(-100, min(100, exponent))
        rows = max(1, self.CHUNK // weight.shape[1] // 64 * 64)
        lost = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            packing = []
            for first in range(0, len(weight), rows):
                scaled = weight[first : first + rows].float() * self.scale
                lost.append((scaled.half() != scaled).nonzero() + torch.tensor([first, 0]))
                packing.append(pool.submit(torch.ops.quantized.linear_prepack_fp16, scaled, None))
                if len(packing) > torch.get_num_threads():
                    packing[-torch.get_num_threads() - 1].result()  # or all would be float32 at once
            self.blocks = [block.result() for block in packing]
        self.lost = tuple(torch.cat(lost).t())
        self.values = weight[self.lost]

    @classmethod
    def of(cls, weight: Tensor) -> FBGEMMWeight | None:
        """The weight packed, or None where that would not gain, or float16 cannot hold it."""
        if weight.dtype not in cpu.HALVES or not 0 < weight.nbytes <= LARGEST:
            return None
        # Where a CPU has instructions for bfloat16, nothing was measured of float16.
        if not cpu.has_fbgemm() or cpu.has_onednn(torch.bfloat16) or not bool(weight.isfinite().all()):
            return None
        packed = cls(weight)
        return packed if len(packed.values) <= cls.MOST_LOST * weight.numel() else None

    def dense(self) -> Tensor:
        blocks = [torch.ops.quantized.linear_unpack_fp16(block)[0] for block in self.blocks]
        weight = torch.cat([block.div_(self.scale).to(self.dtype) for block in blocks])
        weight[self.lost] = self.values
        return weight

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        wide = rows.float() / self.scale
        parts = [torch.ops.quantized.linear_dynamic_fp16(wide, block) for block in self.blocks]
        result = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return (result if bias is None else result.add_(bias)).to(self.dtype)


def pack(weight: Tensor) -> Packed | None:
    """A weight (N, K) packed, or None where it would gain nothing: on this device, by its dtype or size."""
    return (OneDNNWeight.of(weight) or FBGEMMWeight.of(weight)) if weight.device.type == "cpu" else None


_versions = itertools.count()


class PackedLinear(nn.Module):
    """Computes what the layer that it replaces computes, for inference: its weight is no parameter."""

    packed: Packed | None
    plain: Tensor | None
    version: int  # no other weight, of this layer or of any, has it

    def __init__(self, linear: nn.Linear, packed: Packed | None = None) -> None:
        """`packed` is the layer's weight, if the caller has packed it already."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._forward_hooks.update(linear._forward_hooks)  # of a split layer: they join its shares
        self._hold(linear.weight.detach(), packed)

    def _hold(self, weight: Tensor, packed: Packed | None = None) -> None:
        """Keep the weight, packed where that serves."""
        self.version = next(_versions)
        self.packed = packed or pack(weight)
        if self.packed is not None:
            _keep_from_compiler()
        self.plain = weight if self.packed is None else None

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features): a copy where it is packed, into which writing changes nothing."""
        if self.packed is not None:
            return self.packed.dense()
        assert self.plain is not None
        return self.plain

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out_features)."""
        return self._product(x) if self._serves(x) else F.linear(x, self.weight, self.bias)

    def _serves(self, x: Tensor) -> bool:
        """Whether the packed kernel computes what torch would: it knows no gradients and no casts."""
        if self.packed is None or (x.requires_grad and torch.is_grad_enabled()):
            return False
        wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return x.dtype == wanted == self.packed.dtype

    def _product(self, x: Tensor) -> Tensor:
        assert self.packed is not None
        result = self.packed.product(x.reshape(-1, self.in_features), self.bias)
        return result.view(*x.shape[:-1], self.out_features)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """A cast or a move (`to`, `float`, `cuda`, …) is made of the plain weight."""
        super()._apply(function, recurse)
        self._hold(function(self.weight))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self,
        state: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        name = f"{prefix}weight"
        others = {key: value for key, value in state.items() if key != name}
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)
        shape = self.out_features, self.in_features
        if name not in state:
            missing.append(name)
        elif state[name].shape != shape:
            errors.append(f"size mismatch for {name}: {tuple(state[name].shape)} given, {shape} wanted")
        else:
            self._hold(state[name].detach().to(self.weight))

    def __getstate__(self) -> dict[str, Any]:
        """As a copy or a pickle wants it: packed weights have no storage of their own."""
        return {**self.__dict__, "packed": None, "plain": self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        assert self.plain is not None
        self._hold(self.plain)

    def extra_repr(self) -> str:
        state = "plain" if self.packed is None else "packed"
        return f"in_features={self.in_features}, out_features={self.out_features}, {state}"


@functools.cache
def _keep_from_compiler() -> None:
    """Inductor means to pack weights itself, and refuses those that are.

    A decorator would say so at every start, and import the compiler: a second that many need not wait.
    """
    setattr(PackedLinear, "_product", torch.compiler.disable(PackedLinear._product))  # noqa: B010
