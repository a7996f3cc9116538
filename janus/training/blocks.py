"""How blocks run while they learn: computed twice instead of kept, or by torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from janus.models.llama import Attention, Block
from janus.models.siglip import Block as VisionBlock


def checkpoint_blocks(model: nn.Module) -> None:
    """Have every block of the language model and of the vision tower computed anew on the way back."""
    for block in _blocks(model):
        # Adapters may drop out numbers, and are to drop the same ones twice.
        drops = any(isinstance(part, nn.Dropout) and part.p > 0 for part in block.modules())
        block.forward = _recomputed(block.forward, drops)  # type: ignore[method-assign]


def compile_blocks(model: nn.Module) -> None:
    """Give these blocks to torch.compile, those of a kind as one, for rows of any length.

    Only where gradients are wanted: what is drawn meanwhile has a cache, of another size at every step. On a
    CPU the language model's attention stays as it is, which there goes from document to document.
    """
    compiled = {kind: torch.compile(kind.forward, dynamic=True) for kind in (Block, VisionBlock)}
    for block in _blocks(model):
        block.forward = _compiled(block.forward, partial(compiled[type(block)], block))  # type: ignore[method-assign]
    for attention in model.modules():
        if isinstance(attention, Attention) and attention.o_proj.weight.device.type == "cpu":
            attention.whole_attention = torch.compiler.disable(attention.whole_attention)


def _blocks(model: nn.Module) -> Iterator[Block | VisionBlock]:
    return (module for module in model.modules() if isinstance(module, Block | VisionBlock))


def _compiled(plain: Callable[..., Any], compiled: Callable[..., Any]) -> Callable[..., Any]:
    def either(*inputs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else plain)(*inputs)

    return either


def _recomputed(forward: Callable[..., Any], is_random: bool) -> Callable[..., Any]:
    def again(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=is_random)

    return again
