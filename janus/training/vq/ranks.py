"""What the processes of a data-parallel run tell each other. Without a group there is one process.

Each holds as many pictures as the others, and the whole model. Decisions on the codebook are made by each
of them from what all of them have seen, so that codebooks stay alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn


def gathered(tensor: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """The tensors (N, ...) of all processes one after another, in the order of ranks."""
    if group is None:
        return tensor
    sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
    parts = [torch.empty_like(sent) for _ in range(group.size())]
    distributed.all_gather(parts, sent, group=group)
    return torch.cat(parts).to(tensor.dtype)


def averaged(tensor: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """The mean of a tensor over all processes."""
    if group is None:
        return tensor
    tensor = tensor.clone()
    distributed.all_reduce(tensor, group=group)
    return tensor / group.size()


def average_gradients(module: nn.Module, group: distributed.ProcessGroup | None) -> None:
    """Set each gradient to its mean over all processes, in float32, by one exchange of all of them."""
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    if group is None or not gradients:
        return
    together = torch.cat([gradient.float().flatten() for gradient in gradients])
    distributed.all_reduce(together, group=group)
    together /= group.size()
    for gradient, mean in zip(gradients, together.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def share_first(tensor: Tensor, group: distributed.ProcessGroup | None) -> None:
    """Overwrite a tensor with that of the first process: sums on a GPU differ in their last bits."""
    if group is not None:
        distributed.broadcast(tensor, distributed.get_global_rank(group, 0), group=group)
