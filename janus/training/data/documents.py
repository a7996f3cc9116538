"""The document at a place of the order, and several of them in few tensors, to travel between processes.

S: positions of all documents of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from janus.checks import require_number
from janus.processing.processor import Processor
from janus.training.data.example import Example, decode
from janus.training.data.limits import Guard
from janus.training.data.mixture import Draw, Mixture
from janus.training.data.order import hashed
from janus.training.data.outline import Geometry, Task, outline
from janus.training.data.packing import together
from janus.training.data.rows import located

Crop = Literal["center", "random"]
Unreadable = Literal["error", "drop"]
ATTEMPTS = 100  # rows in turn that may be unusable before the data, not a row, must be at fault


@dataclass(frozen=True, kw_only=True)
class Builder:
    """How rows become examples: formats, lengths, squares, and how many drawings learn without a prompt.

    A row that cannot be read, nor its pictures, is an error, or left out (`unreadable` "drop").
    """

    processor: Processor
    guard: Guard
    geometry: Geometry | None = None
    system: str | None = None
    prompt_dropout: float = 0.1
    crop: Crop = "center"
    unreadable: Unreadable = "error"

    def __post_init__(self) -> None:
        require_number("prompt_dropout", self.prompt_dropout, "a number from 0 to 1", 0, 1)
        window = self.processor.window
        if window is not None and self.guard.limit > window:
            raise ValueError(
                f"the limit of {self.guard.limit} tokens is over the model's window of {window}: lower it"
            )


def crop_at(crop: Crop, draw: Draw) -> float:
    """Where along its long side a picture that is to be drawn is cropped, from 0 to 1."""
    return 0.5 if crop == "center" else hashed("crop", draw.seed) / 2**64


@dataclass(frozen=True)
class Read:
    """What reading one place gave: an example or the error to raise, and what the guard did on the way."""

    example: Example | None
    error: ValueError | FileNotFoundError | None = None
    dropped: int = 0
    cut: int = 0


class Documents(Dataset[list[Read]]):
    """The documents at given places of a mixture's order."""

    def __init__(self, mixture: Mixture, builder: Builder) -> None:
        self.mixture, self.builder = mixture, builder

    def __getitem__(self, places: Sequence[int]) -> list[Read]:
        return [self.read(place) for place in places]

    def read(self, place: int) -> Read:
        """The document at a place; where its row is dropped, another of the same source: ratios hold."""
        draw = own = self.mixture.draw(place)
        try:
            for attempt in range(ATTEMPTS):
                example, cut = self._example(draw)
                if example is not None:
                    return Read(example, dropped=attempt, cut=cut)
                draw = self.mixture.instead(own, attempt + 1)
        except (ValueError, FileNotFoundError) as error:
            # Raised in the main process, at its place: a worker's own exception would hide the line.
            return Read(None, error)
        name = self.mixture.parts[own.part].source.name
        told = f"{name}: {ATTEMPTS} rows in turn are over the limit of {self.builder.guard.limit} tokens"
        if self.builder.unreadable == "drop":
            told += ", or cannot be read: look at them with janus data check; else"
        else:
            told += ":"
        return Read(None, ValueError(f"{told} raise it, or choose the policy truncate_text"))

    def _example(self, draw: Draw) -> tuple[Example | None, int]:
        """A row's example, and 1 where it was cut; None where it is left out."""
        part, builder = self.mixture.parts[draw.part], self.builder
        try:
            row = part.source.row(draw.index, draw.seed)
            bare = hashed("prompt", draw.seed) < builder.prompt_dropout * 2**64
            whole = outline(row, builder.processor, builder.geometry, system=builder.system, drop_prompt=bare)
        except (ValueError, FileNotFoundError):
            if builder.unreadable == "drop":
                return None, 0
            raise
        if part.task is not None and whole.task != part.task:
            raise ValueError(
                f"{row.where}: the row is {whole.task}, in a source of {part.task}: mix it in by itself"
            )
        kept = builder.guard(whole, row.where)
        if kept is None:
            return None, 0
        try:
            seed = hashed("noise", draw.seed) >> 1  # as many bits as int64 has without its sign
            at = crop_at(builder.crop, draw)
            example = decode(kept, builder.processor, builder.geometry, seed=seed, crop_at=at)
            return example, int(kept is not whole)
        except (ValueError, FileNotFoundError) as error:
            if builder.unreadable == "drop":
                return None, 0
            raise located(error, row.where) from error


@dataclass(frozen=True)
class Chunk:
    """Reads, and the tensors of their examples in four: each tensor between processes takes a file handle.

    `flat` (6, S): ids, labels, the three masks and positions. `sizes`: of each example, its positions and how
    many pixels, codes and targets are its.
    """

    reads: list[Read]
    tasks: list[Task]
    seeds: list[int]
    sizes: list[tuple[int, int, int, int]]
    flat: Tensor
    pixels: Tensor
    codes: Tensor
    targets: Tensor


def join(reads: Sequence[Read]) -> Chunk:
    """Reads as a chunk."""
    examples = [read.example for read in reads if read.example is not None]
    nothing = torch.zeros(0, 0, dtype=torch.long)
    codes = [nothing if each.codes is None else each.codes for each in examples]
    rows = [
        torch.stack(
            [
                each.ids,
                each.labels,
                each.image_mask,
                each.code_mask,
                each.code_labels_mask,
                each.positions,
            ]
        )
        for each in examples
    ]
    return Chunk(
        reads=[replace(read, example=None) for read in reads],
        tasks=[each.task for each in examples],
        seeds=[each.seed for each in examples],
        sizes=[
            (len(each), len(each.pixels), len(own), len(each.targets))
            for each, own in zip(examples, codes, strict=True)
        ],
        flat=torch.cat(rows, dim=1) if rows else nothing,
        pixels=together([each.pixels for each in examples]) if rows else nothing,
        codes=together(codes) if rows else nothing,
        targets=together([each.targets for each in examples]) if rows else nothing,
    )


def split(chunk: Chunk) -> Iterator[Read]:
    """The reads that a chunk was made of."""
    lengths, *counts = ([size[kind] for size in chunk.sizes] for kind in range(4))
    flat = chunk.flat.split(lengths, dim=1) if lengths else ()
    tensors = (chunk.pixels, chunk.codes, chunk.targets)
    pictures = [tensor.split(count) for tensor, count in zip(tensors, counts, strict=True) if count]
    examples = (
        Example(
            ids=rows[0],
            labels=rows[1],
            image_mask=rows[2].bool(),
            pixels=pixels,
            code_mask=rows[3].bool(),
            codes=codes if len(codes) else None,
            targets=targets,
            code_labels_mask=rows[4].bool(),
            positions=rows[5],
            task=task,
            seed=seed,
        )
        for task, seed, rows, pixels, codes, targets in zip(
            chunk.tasks, chunk.seeds, flat, *pictures, strict=True
        )
    )
    for read in chunk.reads:
        yield read if read.error is not None else replace(read, example=next(examples))
