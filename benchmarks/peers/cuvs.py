"""RAPIDS cuVS: exact nearest neighbors.

Sources: its `cuvs.neighbors.brute_force` and `cuvs.common.Resources`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peers import installed
from timer import Call
from variants import Prepare

LEGACY = 1  # CUDA's name of its default stream; 0, torch's, is taken by cuVS for none


@functools.cache
def _resources(stream: int) -> Any:
    """Its handles on a stream. With resources that are given it does not wait for the device."""
    from cuvs.common import Resources

    return Resources(stream=stream)


def nearest_code(
    device: torch.device, units: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Prepare]:
    """Its index of the codebook is built beforehand, which favors it: ours normalizes in every call."""
    if device.type != "cuda" or not installed("cuvs"):
        return {}

    def prepare(latents: Tensor, codebook: Tensor) -> Call:
        from cuvs.neighbors import brute_force

        def resources() -> Any:
            return _resources(torch.cuda.current_stream(latents.device).cuda_stream or LEGACY)

        queries, entries = (part.contiguous() for part in units(latents, codebook))
        # The index may only point to its entries: they are held beside it.
        held = brute_force.build(entries, metric="sqeuclidean", resources=resources()), entries
        neighbors = torch.empty(len(queries), 1, dtype=torch.int64, device=latents.device)
        distances = torch.empty(len(queries), 1, dtype=torch.float32, device=latents.device)

        def call() -> Tensor:
            queries = units(latents, codebook)[0].contiguous()
            brute_force.search(held[0], queries, 1, neighbors, distances, resources=resources())
            return neighbors.view(latents.shape[0], *latents.shape[2:])

        return call

    return {"cuvs": prepare}
