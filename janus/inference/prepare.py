"""A model made ready for inference alone."""

from torch import nn

from janus.models.janus import Janus
from janus.models.llama import JoinedLinear
from janus.models.packed import PackedLinear, packs


def prepare(model: Janus) -> Janus:
    """Pack the linear layers that gain by it, one by one in place, and return the model.

    On a CPU in bfloat16 these are all of them; elsewhere there is nothing to do. Packed weights cannot be
    trained: for that, take the model of `janus.weights.load`.
    """
    tied = model.language.head if model.config.language.tied_head else None
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, JoinedLinear):
                continue  # a subclass of somebody else's may compute something else
            if layer is not tied and packs(layer.weight):
                setattr(module, name, PackedLinear(layer))
    return model
