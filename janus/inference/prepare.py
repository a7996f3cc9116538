"""A model made ready for inference alone."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from janus.cpu import HALVES
from janus.kernels.decode_attention import compiled_for_cpu, decode_attention
from janus.models.llama import Attention, Block, JoinedLinear
from janus.models.multimodal import MultimodalModel
from janus.models.packed import PackedLinear, pack
from janus.progress import Progress

Model = TypeVar("Model", bound=MultimodalModel)


def prepare(model: Model, *, compile: bool = False) -> Model:
    """Pack the linear layers that gain by it, one by one in place, and return the model.

    On an x86 CPU in 16 bits these are all but very large ones; elsewhere there is nothing to do. Packed
    weights cannot be trained: for that, take the model of `janus.weights.load`.

    `compile` gives what lies between them in a step of the language model to torch.compile, once for all
    layers, when the first step is taken: all of it, or beside packed or quantized weights on a CPU, which
    compiled code cannot call without a detour, attention. It changes nothing beyond rounding.
    """
    if model.device.type == "cpu" and model.dtype in HALVES:
        _pack(model)
    if compile and model.device.type == "cpu" and model.dtype in HALVES:
        attend = compiled_for_cpu()
        for attention in _attentions(model):
            attention.step_attention = attend
    elif compile:
        model.language.fixed_step = _compiled_step()
    return model


def capacity_for(model: MultimodalModel, positions: int) -> int:
    """The capacity of a cache for so many positions.

    Of a compiled model it is one of few, powers of two: compiled code is of one, and after a handful of them
    torch would compile no more.
    """
    return 1 << max(8, (positions - 1).bit_length()) if is_compiled(model) else positions


def _compiled_step() -> Callable[..., tuple[Tensor, Tensor]]:
    compiled = torch.compile(Block.__call__, dynamic=False)

    def step(block: Block, x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        # What is added to nothing is what it is, and the first layer is compiled as the others are.
        return compiled(block, x, torch.zeros_like(x) if residual is None else residual, *rest)

    return step


def _pack(model: MultimodalModel) -> None:
    """What FBGEMM packs takes some 20 seconds a billion weights, so it is shown."""
    tied = model.language.head if model.config.language.tied_head else None
    # Of the layers themselves no list is held: each must go as soon as it is packed.
    parents = [module for module in model.modules() if not isinstance(module, nn.Linear)]
    places = [
        (module, name)
        for module in parents
        for name, layer in module.named_children()
        # A subclass of somebody else's may compute something else.
        if type(layer) in (nn.Linear, JoinedLinear) and layer is not tied
    ]
    with Progress(len(places), "layer", None) as bar:
        for module, name in places:
            layer = getattr(module, name)
            packed = pack(layer.weight.detach())
            if packed is not None:
                setattr(module, name, PackedLinear(layer, packed))
            bar.advance()


def is_compiled(model: MultimodalModel) -> bool:
    """Whether whole blocks go through torch.compile in steps of the language model."""
    return model.language.fixed_step is not Block.__call__


def compiles(model: MultimodalModel) -> bool:
    """Whether a first step compiles anything."""
    attentions = _attentions(model)
    return is_compiled(model) or any(each.step_attention is not decode_attention for each in attentions)


def _attentions(model: MultimodalModel) -> list[Attention]:
    return [module for module in model.language.modules() if isinstance(module, Attention)]
