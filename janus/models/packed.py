"""Linear layers whose weight lies in the order in which the CPU's bfloat16 matrix kernels read it.

oneDNN rearranges a plain weight anew at each call, which a step of one or two rows does not earn back (see
docs/performance.md). The numbers are the same bit for bit, save that a bias is added before rounding.
Only the packed copy is kept: `weight`, and what is saved, is unpacked when it is asked for.
"""

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.models.llama import JoinedLinear

ROWS = 2  # for which oneDNN chooses the order: those of a guided step; it serves hundreds as well
LARGEST = 256 << 20  # bytes of a weight that is packed: for a moment there are two of it
FEWEST = 4  # rows that are computed at least: without AMX, oneDNN takes longer for one or two


def packs(weight: Tensor) -> bool:
    """Whether a weight of this dtype, on this device and no larger than that, gains by packing."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and weight.nbytes <= LARGEST
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear(nn.Module):
    """Computes what the layer that it replaces computes, for inference: its weight is no parameter."""

    packed: Tensor | None
    plain: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.sizes: tuple[int, ...] | None = linear.sizes if isinstance(linear, JoinedLinear) else None
        self.bias = linear.bias
        self._forward_hooks.update(linear._forward_hooks)  # of a split layer: they join its shares
        self._hold(linear.weight.detach())

    def _hold(self, weight: Tensor) -> None:
        """Keep the weight, packed where that serves."""
        self.packed = self.plain = None
        if packs(weight):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
        else:
            self.plain = weight

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features): a copy where it is packed, into which writing changes nothing."""
        if self.packed is not None:
            return self.packed.to_dense()
        assert self.plain is not None
        return self.plain

    def forward(self, x: Tensor) -> Any:
        """(..., D) -> (..., out_features), or a tuple of parts as `JoinedLinear` gives."""
        gradients = x.requires_grad and torch.is_grad_enabled()  # of which oneDNN's kernel knows nothing
        if self.packed is None or x.dtype != torch.bfloat16 or gradients:
            result = F.linear(x, self.weight, self.bias)
        else:
            result = self._product(x)
        return result if self.sizes is None else result.split(self.sizes, dim=-1)

    @torch.compiler.disable  # Inductor means to pack weights itself, and refuses those that are
    def _product(self, x: Tensor) -> Tensor:
        assert self.packed is not None
        rows = x.reshape(-1, self.in_features)
        padded = F.pad(rows, (0, 0, 0, FEWEST - len(rows))) if 0 < len(rows) < FEWEST else rows
        result = torch.ops.mkldnn._linear_pointwise(padded, self.packed, self.bias, "none", [], "")
        return result[: len(rows)].view(*x.shape[:-1], self.out_features)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
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
