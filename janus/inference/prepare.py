"""A model made ready for inference alone."""

import torch
from torch import nn

from janus.cpu import HALVES
from janus.kernels.decode_attention import compiled_for_cpu, decode_attention
from janus.models.janus import Janus
from janus.models.llama import Attention, Block, JoinedLinear
from janus.models.packed import PackedLinear, pack


def prepare(model: Janus, *, compile: bool = False) -> Janus:
    """Pack the linear layers that gain by it, one by one in place, and return the model.

    On an x86 CPU in 16 bits these are all but very large ones; elsewhere there is nothing to do. Packed
    weights cannot be trained: for that, take the model of `janus.weights.load`.

    `compile` gives what lies between them in a step of the language model to torch.compile, once for all
    layers, when the first step is taken: all of it, or beside packed or quantised weights on a CPU, which
    compiled code cannot call without a detour, attention. It changes nothing beyond rounding.
    """
    tied = model.language.head if model.config.language.tied_head else None
    # Of the layers themselves no list is held: each must go as soon as it is packed.
    parents = [module for module in model.modules() if not isinstance(module, nn.Linear)]
    for module in parents:
        for name, layer in list(module.named_children()):
            if not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, JoinedLinear):
                continue  # a subclass of somebody else's may compute something else
            if layer is not tied and (packed := pack(layer.weight.detach())) is not None:
                setattr(module, name, PackedLinear(layer, packed))
    if compile and model.device.type == "cpu" and model.dtype in HALVES:
        attend = compiled_for_cpu()
        for attention in _attentions(model):
            attention.step_attention = attend
    elif compile:
        model.language.fixed_step = torch.compile(Block.__call__, dynamic=False)
    return model


def is_compiled(model: Janus) -> bool:
    """Whether whole blocks go through torch.compile in steps of the language model."""
    return model.language.fixed_step is not Block.__call__


def compiles(model: Janus) -> bool:
    """Whether a first step compiles anything."""
    attentions = _attentions(model)
    return is_compiled(model) or any(each.step_attention is not decode_attention for each in attentions)


def _attentions(model: Janus) -> list[Attention]:
    return [module for module in model.language.modules() if isinstance(module, Attention)]
