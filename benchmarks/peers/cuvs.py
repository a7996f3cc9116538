"""RAPIDS cuVS: exact nearest neighbors. Source: its `cuvs.neighbors.brute_force`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peers import installed
from timer import Call
from variants import Prepare


def nearest_code(
    device: torch.device, units: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Prepare]:
    """Its index of the codebook is built beforehand, which favors it: ours normalizes in every call."""
    if device.type != "cuda" or not installed("cuvs"):
        return {}

    def prepare(latents: Tensor, codebook: Tensor) -> Call:
        from cuvs.neighbors import brute_force

        index = brute_force.build(units(latents, codebook)[1].contiguous(), metric="sqeuclidean")

        def call() -> Tensor:
            queries = units(latents, codebook)[0].contiguous()
            _, neighbors = brute_force.search(index, queries, 1)
            codes = torch.as_tensor(neighbors, device=device)
            return codes.long().view(latents.shape[0], *latents.shape[2:])

        return call

    return {"cuvs": prepare}
