"""The static cache of keys and values: its memory is taken once, and every step writes into it.

B rows, K positions, G key-value heads, d head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from janus.config import LanguageConfig
from janus.kernels.rotary import rotate_and_store
from janus.models.llama import left_padded_starts


class StaticCache:
    """Keys and values of up to `capacity` positions for `rows` rows, and which of them are padding."""

    def __init__(
        self, config: LanguageConfig, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # `length`, where the kernels read it
        self.valid: Tensor | None = None  # (B, capacity) bool once a row has padding
        self.starts: Tensor | None = None  # (B,): what `valid` says too, where all padding is on the left

    @property
    def rows(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def begin(self, rows: int, positions: int, mask: Tensor | None) -> tuple[int, Tensor | None]:
        """Make room for a call; -> positions filled before it, and which keys are real, (B, K) bool or None.

        `mask` is (B, S) for the call's own positions, or (B, K) with those before. Raises ValueError where
        the call does not fit.
        """
        end = self.length + positions
        if rows != self.rows or end > self.capacity:
            raise ValueError(
                f"a cache of {self.rows} rows and {self.capacity} positions, {self.length} of them filled, "
                f"has no room for {positions} more of {rows} rows"
            )
        if mask is not None and mask.shape not in ((rows, positions), (rows, end)):
            raise ValueError(
                f"attention_mask must be {(rows, positions)} or {(rows, end)}, not {tuple(mask.shape)}"
            )
        self.position = torch.full((1,), self.length, device=self.keys.device)
        if self.valid is None and mask is not None and not bool(mask.all()):
            self.valid = torch.ones(rows, self.capacity, dtype=torch.bool, device=self.keys.device)
        if self.valid is None:
            return self.length, None
        if mask is not None:
            self.valid[:, end - mask.shape[1] : end] = mask
            self.starts = left_padded_starts(self.valid[:, :end])
        return self.length, self.valid[:, :end]

    def append(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate this call's queries (B, H, S, d) and keys (B, G, S, d), and store the keys and values.

        -> the queries, and all keys and values so far, (B, G, K, d) views.
        """
        end = self.length + key.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        inputs = (query, key, value, *rotary)
        # Of the cache's dtype already, but under autocast.
        query, key, value, cosines, sines = (x.to(keys.dtype) for x in inputs)
        query = rotate_and_store(query, key, value, cosines, sines, keys, values, self.position)
        return query, keys[:, :, :end], values[:, :, :end]

    def finish(self, positions: int) -> None:
        """Every layer has appended: this call's positions are part of the past."""
        self.length += positions

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} positions cannot be cut back to {length}")
        self.length = length
        if self.valid is not None:
            self.valid[:, length:] = True
            self.starts = None


def bytes_per_position(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Memory of one row's keys and values at one position."""
    return 2 * config.layers * config.kv_heads * config.head_width * dtype.itemsize


@dataclass(frozen=True)
class Prefix:
    """What one sequence left behind: keys and values (layers, G, L, d), and the last hidden state (D,)."""

    keys: Tensor
    values: Tensor
    hidden: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]


def join(prefixes: list[Prefix], config: LanguageConfig, room: int) -> StaticCache:
    """A cache whose rows continue the prefixes, right-aligned, with `room` for further positions."""
    length = max(prefix.length for prefix in prefixes)
    first = prefixes[0].keys
    cache = StaticCache(config, len(prefixes), length + room, device=first.device, dtype=first.dtype)
    for row, prefix in enumerate(prefixes):
        cache.keys[:, row, :, length - prefix.length : length] = prefix.keys
        cache.values[:, row, :, length - prefix.length : length] = prefix.values
    if any(prefix.length != length for prefix in prefixes):
        cache.starts = torch.tensor([length - prefix.length for prefix in prefixes], device=first.device)
        cache.valid = torch.arange(cache.capacity, device=first.device) >= cache.starts[:, None]
    cache.length = length
    return cache
