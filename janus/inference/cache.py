"""The static cache of keys and values: its memory is taken once, and every step writes into it.

B rows, K positions, G key-value heads, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.config import LanguageConfig
from janus.models.llama import Run


class StaticCache:
    """Keys and values of up to `capacity` positions for `rows` rows, and which of them are padding."""

    def __init__(
        self, config: LanguageConfig, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_width)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        self.valid: Tensor | None = None  # (B, capacity) bool once a row has padding
        self.runs: tuple[Run, ...] = ()  # what `valid` says too, where all padding is on the left

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
        if self.valid is None and mask is not None and not bool(mask.all()):
            self.valid = torch.ones(rows, self.capacity, dtype=torch.bool, device=self.keys.device)
        if self.valid is None:
            return self.length, None
        if mask is not None:
            self.valid[:, end - mask.shape[1] : end] = mask
            self.runs = _left_padded_runs(self.valid[:, :end])
        return self.length, self.valid[:, :end]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values, (B, G, S, d) each; -> all of them so far, (B, G, K, d) views."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

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
            self.runs = ()


def _left_padded_runs(valid: Tensor) -> tuple[Run, ...]:
    """The runs of rows whose padding is all on the left, (B, K) bool; none where it is elsewhere too."""
    starts = (~valid).sum(dim=1)
    if not bool((valid == (torch.arange(valid.shape[1], device=valid.device) >= starts[:, None])).all()):
        return ()
    return runs_of(starts.tolist())


def runs_of(starts: Sequence[int]) -> tuple[Run, ...]:
    """Rows that begin at `starts`, put together where neighbours begin alike."""
    runs: list[Run] = []
    for row, start in enumerate(starts):
        first = runs.pop().rows.start if runs and runs[-1].start == start else row
        runs.append(Run(slice(first, row + 1), start))
    return tuple(runs)


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
        starts = [length - prefix.length for prefix in prefixes]
        positions = torch.arange(cache.capacity, device=first.device)
        cache.valid = positions >= torch.tensor(starts, device=first.device)[:, None]
        cache.runs = runs_of(starts)
    cache.length = length
    return cache
