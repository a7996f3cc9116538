"""The static cache of keys and values: its memory is taken once, and every step writes into it.

B rows, K positions, G key-value heads, d head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from janus.config import LanguageConfig
from janus.kernels.rotary import rotate_and_store
from janus.models.llama import left_padded_starts


@dataclass(frozen=True)
class Layer:
    """One layer's part of a cache, (B, G, capacity, d) each, for a call whose positions begin at `position`.

    `end` is how many positions it shows after the call.
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    end: int

    def append(
        self, query: Tensor, key: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate this call's queries (B, H, S, d) and keys (B, G, S, d), and store the keys and values.

        -> the queries, and keys and values up to the end, (B, G, end, d) views.
        """
        inputs = (query, key, value, *rotary)
        # Of the cache's dtype already, but under autocast.
        query, key, value, cosines, sines = (x.to(self.keys.dtype) for x in inputs)
        query = rotate_and_store(query, key, value, cosines, sines, self.keys, self.values, self.position)
        return query, self.keys[:, :, : self.end], self.values[:, :, : self.end]


class StaticCache:
    """Keys and values of up to `capacity` positions for `rows` rows, and which of them are padding."""

    def __init__(
        self, config: LanguageConfig, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_width)
        with torch.inference_mode(False):  # made in that mode, they could not be written outside of it
            self.keys = torch.zeros(shape, device=device, dtype=dtype)
            self.values = torch.zeros(shape, device=device, dtype=dtype)
            self.position = torch.zeros(1, dtype=torch.long, device=device)  # `length`, where kernels read it
        self.length = 0
        self.end = 0  # of the call that has begun
        self.valid: Tensor | None = None  # (B, capacity) bool once a row has padding
        self.ends: Tensor | None = None  # what it shows ends where it is filled
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
        self.end = end
        self.position = torch.full((1,), self.length, device=self.keys.device)
        if self.valid is None and mask is not None and not bool(mask.all()):
            self.valid = torch.ones(rows, self.capacity, dtype=torch.bool, device=self.keys.device)
        if self.valid is None:
            return self.length, None
        if mask is not None:
            self.valid[:, end - mask.shape[1] : end] = mask
            self.starts = left_padded_starts(self.valid[:, :end])
        return self.length, self.valid[:, :end]

    def layer(self, number: int) -> Layer:
        """The part of one layer, for the call that has begun."""
        return Layer(self.keys[number], self.values[number], self.position, self.end)

    def finish(self, positions: int) -> None:
        """Every layer has appended: this call's positions are part of the past."""
        self.length += positions

    def fill(self, prompts: "list[PromptCache]") -> None:
        """Forget everything, and hold the prompts, one a row, right-aligned."""
        self.length = max(prompt.length for prompt in prompts)
        for row, prompt in enumerate(prompts):
            self.put(row, prompt)
        starts = torch.tensor([self.length - prompt.length for prompt in prompts], device=self.keys.device)
        padded = any(prompt.length != self.length for prompt in prompts)
        self.starts = starts if padded else None
        columns = torch.arange(self.capacity, device=self.keys.device)
        self.valid = columns >= starts[:, None] if padded else None

    def put(self, row: int, prompt: "PromptCache") -> None:
        """Let a row's positions end with a prompt; where the row then begins is for the caller to note."""
        place = slice(self.length - prompt.length, self.length)
        self.keys[:, row, :, place] = prompt.keys
        self.values[:, row, :, place] = prompt.values

    def realign(self, length: int) -> None:
        """Move right-aligned rows so that they end at another `length`."""
        kept = min(self.length, length)
        for tensor in (self.keys, self.values):
            moved = tensor[:, :, :, self.length - kept : self.length].clone()
            tensor[:, :, :, length - kept : length] = moved
        assert self.starts is not None
        self.starts += length - self.length
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} positions cannot be cut back to {length}")
        self.length = length
        if self.valid is not None:
            self.valid[:, length:] = True
        if self.starts is not None:
            self.starts = self.starts.clamp_max(length)


def bytes_per_position(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Memory of one row's keys and values at one position."""
    return 2 * config.layers * config.kv_heads * config.head_width * dtype.itemsize


class FixedCache:
    """A static cache as steps of one position see it whose tensors never change their place or shape.

    Such a step can be recorded and replayed: where it writes, and where rows begin and end, are numbers on
    the device, which the step itself advances. All rows are right-aligned.
    """

    def __init__(self, cache: StaticCache) -> None:
        rows, device = cache.rows, cache.keys.device
        self.cache = cache
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.starts = torch.zeros(rows, dtype=torch.long, device=device)
        self.ends = torch.zeros(rows, dtype=torch.long, device=device)

    def continue_cache(self) -> None:
        """Go on where the cache itself is."""
        self.position.fill_(self.cache.length)
        self.ends.fill_(self.cache.length + 1)
        if self.cache.starts is None:
            self.starts.zero_()
        else:
            self.starts.copy_(self.cache.starts)

    @property
    def positions(self) -> Tensor:
        """(B, 1): how many positions of its own a row has had before this step."""
        return (self.position - self.starts)[:, None]

    def begin(self, rows: int, positions: int, mask: Tensor | None) -> tuple[int, Tensor | None]:
        """One position for each row, all of them real."""
        if rows != self.cache.rows or positions != 1 or mask is not None:
            raise ValueError(f"a step feeds one position to each of {self.cache.rows} rows, without a mask")
        return 0, None

    def layer(self, number: int) -> Layer:
        return Layer(self.cache.keys[number], self.cache.values[number], self.position, self.cache.capacity)

    def finish(self, positions: int) -> None:
        self.position += positions
        self.ends += positions


@dataclass(frozen=True)
class PromptCache:
    """What one sequence left behind: keys and values (layers, G, L, d), and the last hidden state (D,)."""

    keys: Tensor
    values: Tensor
    hidden: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]


def join(prompts: list[PromptCache], config: LanguageConfig, room: int) -> StaticCache:
    """A cache whose rows continue the prompts, right-aligned, with `room` for further positions."""
    length = max(prompt.length for prompt in prompts)
    first = prompts[0].keys
    cache = StaticCache(config, len(prompts), length + room, device=first.device, dtype=first.dtype)
    cache.fill(prompts)
    return cache
