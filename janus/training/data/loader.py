"""Batches in an order that can be taken up again: workers read documents, the main process packs them.

Which row comes when is a function of a place in the order alone (`Mixture`). So the state is one number, the
place of the first document that no batch held yet, and no number of workers can change what comes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader

from janus.checks import require_whole
from janus.training.data.documents import Builder, Documents, Read, join, split
from janus.training.data.example import Example
from janus.training.data.mixture import Mixture
from janus.training.data.packing import Batch, Filling, pad, place

CHUNK = 8  # documents that a worker hands over at once


class Loader:
    """Endless batches of one rank; `state_dict` after a batch continues, bit for bit, with the next one.

    Each has `rows` rows: of `length` positions and as many documents in the mixture's order as fit, or with
    `packed` False of one document each, padded to the longest. The first document that a batch cannot hold
    begins the next. Errors of a row are raised when its turn comes.
    """

    def __init__(
        self,
        mixture: Mixture,
        builder: Builder,
        *,
        rows: int,
        length: int,
        packed: bool = True,
        workers: int = 0,
    ) -> None:
        require_whole("rows", rows, least=1)
        require_whole("workers", workers, least=0)
        if builder.guard.limit > require_whole("length", length, least=1):
            raise ValueError(
                f"documents of up to {builder.guard.limit} tokens do not fit into rows of {length}: lower "
                "the limit or lengthen the rows"
            )
        self.mixture, self.builder = mixture, builder
        self.rows, self.length, self.packed, self.workers = rows, length, packed, workers
        self.place = 0  # of the first document that is in no batch yet
        self.dropped = 0
        self.cut = 0

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[Read] = []
        # Closed at once: workers that an error's traceback holds would end only seconds after it.
        with closing(self._documents(self.place)) as documents:
            while True:
                batch, taken, waiting = self._next(documents, waiting)
                self.place += len(taken)
                self.dropped += sum(read.dropped for read in taken)
                self.cut += sum(read.cut for read in taken)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the order, as plain values; with what the order depends on, to be compared."""
        return {
            "place": self.place,
            "dropped": self.dropped,
            "cut": self.cut,
            "identity": self.mixture.identity(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a state was taken. Raises ValueError where it belongs to another order of rows."""
        self.mixture.check_identity(state["identity"])
        self.place, self.dropped, self.cut = state["place"], state["dropped"], state["cut"]

    def _next(self, documents: Iterator[Read], waiting: list[Read]) -> tuple[Batch, list[Read], list[Read]]:
        """-> a batch, what was read for it, and the document, if any, that had no place in it."""
        pad_id = self.builder.processor.tokenizer.pad_id
        taken: list[Read] = []
        examples: list[Example] = []
        filling = Filling(self.rows, self.length)
        while self.packed or len(taken) < self.rows:
            read = waiting.pop() if waiting else next(documents)
            if read.error is not None:
                raise read.error
            assert read.example is not None
            if self.packed and not filling.add(len(read.example)):
                return place(examples, filling.rows.documents, self.length, pad_id), taken, [read]
            taken.append(read)
            examples.append(read.example)
        return pad(examples, pad_id), taken, []

    def _documents(self, first: int) -> Generator[Read, None, None]:
        """The documents from a place on, whoever reads them."""
        chunks: DataLoader[Any] = DataLoader(
            Documents(self.mixture, self.builder),
            batch_size=None,
            sampler=Places(first, CHUNK),
            num_workers=self.workers,
            collate_fn=join if self.workers else list,
            generator=torch.Generator(),  # torch's default one is the training's: reading must not move it
        )
        for chunk in chunks:
            yield from split(chunk) if self.workers else chunk


class Places:
    """Places from the first on, `size` at a time, without end."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, start + self.size)) for start in count(self.first, self.size))


def reshard(states: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, Any]:
    """The states of all ranks of a run -> one for each of another number of ranks.

    What was read is only known as a number then: at the seam, as many rows as the ranks were apart may be
    read twice or passed over.
    """
    require_whole("the number of ranks", ranks, least=1)
    total = {key: sum(state[key] for state in states) for key in ("place", "dropped", "cut")}
    shared = {key: value // ranks for key, value in total.items()}
    return {**states[0], **shared, "identity": {**states[0]["identity"], "ranks": ranks}}
