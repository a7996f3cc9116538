"""Tensor parallelism: a language model too large for one device, its layers split over the ranks of a mesh.

Each rank computes some of the attention heads and a part of each MLP's width for all positions, and the ranks
add up what the two give: two sums (all-reduce) in each layer. The heads to words and codes are split by their
outputs, which every rank then gathers. All else is whole on every rank: embeddings, norms, SigLIP, the VQ
tokenizer, adapters.

Every rank makes the same calls and gets the same results. It is for inference: no gradient passes the sums.

The styles below are handed to torch's `parallelize_module` in place of its own `ColwiseParallel` and
`RowwiseParallel`: those know nothing of joined projections, and compute on DTensors, whose handling takes the
CPU many times as long as starting the layer does, which a step of one token feels. Here parameters and
activations are plain local tensors, as the kernels want them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from janus.models.janus import Janus
from janus.models.llama import JoinedLinear


class ColumnParallel(ParallelStyle):
    """A linear layer of which each rank computes some of the outputs; of joined projections, some of each.

    With `gather` every rank gets the outputs of all: (..., N / ranks) -> (..., N).
    """

    def __init__(self, *, gather: bool = False) -> None:
        self.gather = gather

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        sizes = module.sizes if isinstance(module, JoinedLinear) else (module.out_features,)
        module.weight = _own(module.weight, 0, sizes, device_mesh)
        if module.bias is not None:
            module.bias = _own(module.bias, 0, sizes, device_mesh)
        module.out_features = len(module.weight)
        if isinstance(module, JoinedLinear):
            module.sizes = tuple(size // device_mesh.size() for size in sizes)
        if self.gather:
            group, ranks = device_mesh.get_group(), device_mesh.size()

            def gathered(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
                _refuse_gradient(output)
                output = output.contiguous()
                parts = [torch.empty_like(output) for _ in range(ranks)]
                distributed.all_gather(parts, output, group=group)
                return torch.cat(parts, dim=-1)

            module.register_forward_hook(gathered)
        return module


class RowParallel(ParallelStyle):
    """A linear layer of which each rank has some of the inputs: its outputs are the sum over the ranks."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        assert module.bias is None  # each rank would add it
        module.weight = _own(module.weight, 1, (module.in_features,), device_mesh)
        module.in_features = module.weight.shape[1]
        group = device_mesh.get_group()

        def summed(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            _refuse_gradient(output)
            distributed.all_reduce(output, group=group)
            return output

        module.register_forward_hook(summed)
        return module


PLAN: dict[str, ParallelStyle] = {
    "language.layers.*.attention.qkv": ColumnParallel(),
    "language.layers.*.attention.o_proj": RowParallel(),
    "language.layers.*.mlp.gate_up": ColumnParallel(),
    "language.layers.*.mlp.down_proj": RowParallel(),
    "language.head": ColumnParallel(gather=True),
    "image_head.out": ColumnParallel(gather=True),
}


def tensor_parallel(model: Janus, mesh: DeviceMesh | None = None) -> Janus:
    """Keep of the language model what this rank computes, in place; -> the model.

    `model.config` stays that of the whole, `model.language.config` becomes that of the rank's share: fewer
    heads, a narrower MLP. A head that is the word table itself stays whole. The mesh has one dimension;
    without one it is of all processes of the process group. A model without memory (on the meta device) may
    be split first and filled later. Raises ValueError where the mesh has more dimensions, a size is no
    multiple of the number of ranks, or the model is split or quantized already.
    """
    if mesh is None:
        if not distributed.is_initialized():
            raise ValueError("there is no process group: call torch.distributed.init_process_group first")
        mesh = init_device_mesh(model.device.type, (distributed.get_world_size(),))
    plan = {name: style for name, style in PLAN.items() if not _is_tied(model, name)}
    _check(model, plan, mesh)
    parallelize_module(model, mesh, plan)
    whole, ranks = model.language.config, mesh.size()
    model.language.config = replace(
        whole,
        heads=whole.heads // ranks,
        kv_heads=whole.kv_heads // ranks,
        mlp_width=whole.mlp_width // ranks,
    )
    model.language.mesh = mesh
    return model


def _is_tied(model: Janus, name: str) -> bool:
    return name == "language.head" and model.config.language.tied_head


def _check(model: Janus, plan: dict[str, ParallelStyle], mesh: DeviceMesh) -> None:
    if mesh.ndim != 1:
        raise ValueError(f"tensor parallelism needs a mesh of one dimension, not {tuple(mesh.shape)}")
    if model.language.mesh is not None:
        raise ValueError(f"the model is split over {model.language.mesh.size()} ranks already")
    config, ranks = model.config.language, mesh.size()
    sizes = {
        "heads": config.heads,
        "key-value heads": config.kv_heads,
        "MLP width": config.mlp_width,
        "codes": model.config.vq.codes,
        **({} if config.tied_head else {"words": config.vocabulary}),
    }
    uneven = [f"{size} {name}" for name, size in sizes.items() if size % ranks]
    if uneven:
        raise ValueError(
            f"{ranks} ranks cannot share {', '.join(uneven)} evenly: start a number that divides them"
        )
    patterns = [name.split(".") for name in plan]
    for name, module in model.named_modules():
        if _matches(name.split("."), patterns) and type(module) not in (nn.Linear, JoinedLinear):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which cannot be split: load the model for tensor "
                "parallelism without quantizing or packing it"
            )


def _matches(path: list[str], patterns: list[list[str]]) -> bool:
    return any(
        len(path) == len(pattern) and all(b in ("*", a) for a, b in zip(path, pattern, strict=True))
        for pattern in patterns
    )


def _own(whole: Tensor, dim: int, sizes: Sequence[int], mesh: DeviceMesh) -> nn.Parameter:
    """This rank's share of each of the parts that `sizes` divide a tensor into, in memory of its own."""
    shares = [
        part.chunk(mesh.size(), dim)[mesh.get_local_rank()] for part in whole.detach().split(sizes, dim)
    ]
    return nn.Parameter(torch.cat(shares, dim), requires_grad=whole.requires_grad)


def _refuse_gradient(output: Tensor) -> None:
    if output.requires_grad:
        raise RuntimeError(
            "tensor parallelism here is for inference, and passes no gradient: call under torch.no_grad()"
        )
