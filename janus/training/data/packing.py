"""Examples to batches: several documents in a row, or one, padded on the right.

B rows of L positions; N pictures that are seen and M that are drawn, in reading order; T codes of a drawn
one, or tokens of its c x h' x w' latents; H, W and h, w: sizes in pixels of the two kinds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from janus.training.data.example import Example
from janus.training.data.outline import IGNORE, Task

PENDING = -1  # stands for the codes of a picture that is still to be tokenized


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The tensors of an `Example`, laid out in rows; those of pictures in reading order.

    ids, labels, image_mask, code_mask, code_labels_mask: (B, L). pixels (N, 3, H, W). codes (M, T), rows of
    PENDING where the next of the `targets` (M', 3, h, w) is still to be tokenized. In a flow, all of them;
    latents (M, c, h', w') are then those of the targets, once they are known, and seeds (M,) the examples'.
    document (B, L): documents of a row are numbered from 1, and padding is 0: a position sees those of its
    own number. positions (B, L) begin at 0 in every document. tasks: of the documents of each row. weights
    (M,) or (M, T): what the loss of each drawn picture, or of each of its codes, counts; all 1 without.
    """

    ids: Tensor
    labels: Tensor
    image_mask: Tensor
    pixels: Tensor
    code_mask: Tensor
    codes: Tensor
    targets: Tensor
    code_labels_mask: Tensor
    document: Tensor
    positions: Tensor
    seeds: Tensor
    tasks: tuple[tuple[Task, ...], ...]
    latents: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def tokenized(self, encode: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with all codes known; `encode` turns (M', 3, h, w) into (M', grid, grid) codes."""
        if not len(self.targets):
            return self
        pending = self.codes[:, 0] == PENDING
        codes = self.codes.clone()
        codes[pending] = encode(self.targets).flatten(1).to(codes.dtype)
        return replace(self, codes=codes, targets=self.targets[:0])

    def with_latents(self, latents: Tensor) -> Batch:
        """The batch with the latents (M, c, h', w') of its targets."""
        return replace(self, latents=latents)

    @property
    def text_labels(self) -> int:
        """How many positions predict a text token."""
        return int((self.labels != IGNORE).sum())

    @property
    def code_labels(self) -> int:
        """How many positions predict a code, or in a flow a token's velocity."""
        return int(self.code_labels_mask.sum())

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.document > 0).sum())


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Documents to rows: each, from the longest to the shortest, into the fullest row that has room for it.

    -> the documents' numbers by row; every one stands in one row, and no row exceeds the capacity. Best-fit
    decreasing needs at most 11/9 of the fewest rows, and a few (Johnson et al., "Worst-case performance
    bounds for simple one-dimensional packing algorithms", 1974); first-fit's rows are taken in the rare case
    that they are fewer. Raises ValueError for a document longer than the capacity.
    """
    for number, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise ValueError(f"document {number} has {length} tokens: rows hold from 1 to {capacity}")
    rows = Rows(capacity)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        rows.add(number, lengths[number])
    in_order = first_fit(lengths, capacity)
    return in_order if len(in_order) < len(rows.documents) else rows.documents


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Documents to rows: each, in the order given, into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number, length in enumerate(lengths):
        row = next((row for row, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(number)
        room[row] -= length
    return rows


class Rows:
    """Rows of one capacity, at most `most` of them, and the documents put into each."""

    def __init__(self, capacity: int, most: int | None = None) -> None:
        self.capacity, self.most = capacity, most
        self.documents: list[list[int]] = []
        self.room: list[tuple[int, int]] = []  # (free positions, row), in order

    def add(self, number: int, length: int) -> bool:
        """Put a document into the fullest row with room for it, or a new one; whether there was a place."""
        assert 0 < length <= self.capacity
        at = bisect_left(self.room, (length, 0))
        if at < len(self.room):
            free, row = self.room.pop(at)
        elif self.most is None or len(self.documents) < self.most:
            free, row = self.capacity, len(self.documents)
            self.documents.append([])
        else:
            return False
        self.documents[row].append(number)
        insort(self.room, (free - length, row))
        return True

    def rearrange(self, documents: list[list[int]], lengths: Sequence[int]) -> None:
        """Let the rows hold these documents instead."""
        self.documents = documents
        free = [self.capacity - sum(lengths[number] for number in row) for row in documents]
        self.room = sorted((each, row) for row, each in enumerate(free))


class Filling:
    """The rows of one step, filled by documents in their order until one no longer fits.

    Whenever a document finds no place, all are packed anew by `best_fit`. Order is kept from step to step:
    what does not fit begins the next one, so that no document waits and every step has its mixture.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.lengths: list[int] = []
        self.rows = Rows(capacity, rows)
        self.size = rows * capacity

    def add(self, length: int) -> bool:
        """Take one more document; False, and nothing changes, where the rows cannot hold it with the rest."""
        number, lengths = len(self.lengths), [*self.lengths, length]
        if not self.rows.add(number, length):
            packed = best_fit(lengths, self.rows.capacity) if sum(lengths) <= self.size else []
            if not packed or len(packed) > len(self.rows.documents):
                return False
            self.rows.rearrange(packed, lengths)
        self.lengths = lengths
        return True


def pack(examples: Sequence[Example], length: int, pad_id: int) -> Batch:
    """Examples in as few rows of `length` positions as `best_fit` finds; raises as it does."""
    return place(examples, best_fit([len(each) for each in examples], length), length, pad_id)


def pad(examples: Sequence[Example], pad_id: int) -> Batch:
    """One example a row, padded on the right to the longest: the side of training, where nothing is added."""
    longest = max(len(example) for example in examples)
    return place(examples, [[number] for number in range(len(examples))], longest, pad_id)


def place(examples: Sequence[Example], rows: Sequence[Sequence[int]], length: int, pad_id: int) -> Batch:
    """The batch with these examples, by number, in each row of `length` positions."""
    assert sorted(number for row in rows for number in row) == list(range(len(examples)))

    def laid(values: Callable[[Example, int], Tensor], filler: int | bool) -> Tensor:
        """(B, L) of what each example, the given one of its row, has at its positions."""
        out = torch.full((len(rows), length), filler)
        for row, numbers in enumerate(rows):
            start = 0
            for order, number in enumerate(numbers):
                example = examples[number]
                out[row, start : start + len(example)] = values(example, order)
                start += len(example)
        return out

    ordered = [examples[number] for row in rows for number in row]
    return Batch(
        ids=laid(lambda example, _: example.ids, pad_id),
        labels=laid(lambda example, _: example.labels, IGNORE),
        image_mask=laid(lambda example, _: example.image_mask, False),
        pixels=together([example.pixels for example in ordered]),
        code_mask=laid(lambda example, _: example.code_mask, False),
        codes=together([_codes(example) for example in ordered]),
        targets=together([example.targets for example in ordered]),
        code_labels_mask=laid(lambda example, _: example.code_labels_mask, False),
        document=laid(lambda example, order: torch.full((len(example),), order + 1), 0),
        positions=laid(lambda example, _: example.positions, 0),
        seeds=torch.tensor([example.seed for example in ordered if example.task == "drawing"]).long(),
        tasks=tuple(tuple(examples[number].task for number in row) for row in rows),
    )


def _codes(example: Example) -> Tensor:
    """(M, T), rows of PENDING for the pictures that are not tokenized yet."""
    if example.codes is not None:
        return example.codes
    drawn = len(example.targets)
    return torch.full((drawn, int(example.code_labels_mask.sum()) // max(drawn, 1)), PENDING)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """All that hold anything, one after another; the first of the empty ones where none does."""
    filled = [tensor for tensor in tensors if len(tensor)]
    if len({tensor.shape[1:] for tensor in filled}) > 1:
        shapes = sorted({tuple(tensor.shape[1:]) for tensor in filled})
        raise ValueError(f"pictures of {shapes} in one batch: give all the same size")
    return torch.cat(filled) if filled else tensors[0]
