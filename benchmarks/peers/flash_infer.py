"""FlashInfer's batch kernels, where `flashinfer` is installed. What they plan is planned beforehand.

Source: https://docs.flashinfer.ai, `BatchPrefillWithRaggedKVCacheWrapper` and
`BatchDecodeWithPagedKVCacheWrapper`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from peers import installed
from peers.sdpa import Documents
from peers.varlen import boundaries, packed
from timer import Call
from variants import Prepare

PAGE = 16  # positions
WORKSPACE = 128 << 20  # bytes, as its documentation advises


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)


def _usable(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype is not torch.float32 and installed("flashinfer")


def attention(
    documents: Documents, length: int, causal: bool, device: torch.device, dtype: torch.dtype
) -> dict[str, Prepare]:
    if not _usable(device, dtype):
        return {}

    def prepare(query: Tensor, key: Tensor, value: Tensor) -> Call:
        from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

        wrapper = BatchPrefillWithRaggedKVCacheWrapper(_workspace(device), "NHD")
        ends, _ = boundaries(documents, length, device)
        wrapper.plan(
            ends,
            ends,
            num_qo_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            head_dim_qk=query.shape[3],
            causal=causal,
            q_data_type=dtype,
        )
        return functools.partial(wrapper.run, *(packed(x, documents) for x in (query, key, value)))

    return {"flashinfer": prepare}


def decode(starts: Sequence[int], device: torch.device, dtype: torch.dtype) -> dict[str, Prepare]:
    """Keys and values (B, G, K, d) become pages that hold each row's own, without its padding."""
    if not _usable(device, dtype):
        return {}

    def prepare(query: Tensor, keys: Tensor, values: Tensor) -> Call:
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        lengths = [keys.shape[2] - start for start in starts]
        counts = [-(-length // PAGE) for length in lengths]
        # (pages, 2, PAGE, G, d)
        pages = keys.new_zeros(sum(counts), 2, PAGE, keys.shape[1], keys.shape[3])
        first = 0
        for row, (start, count, length) in enumerate(zip(starts, counts, lengths, strict=True)):
            for which, cache in enumerate((keys, values)):
                its = pages.new_zeros(count * PAGE, *pages.shape[3:])
                its[:length] = cache[row, :, start:].transpose(0, 1)
                pages[first : first + count, which] = its.unflatten(0, (count, PAGE))
            first += count
        wrapper = BatchDecodeWithPagedKVCacheWrapper(_workspace(device), "NHD")
        wrapper.plan(
            torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32),
            torch.arange(sum(counts), dtype=torch.int32, device=device),
            torch.tensor([(length - 1) % PAGE + 1 for length in lengths], dtype=torch.int32, device=device),
            query.shape[1],
            keys.shape[1],
            keys.shape[3],
            PAGE,
            q_data_type=dtype,
            kv_data_type=dtype,
        )
        return functools.partial(wrapper.run, query, pages)

    return {"flashinfer": prepare}
