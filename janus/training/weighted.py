"""Drawings that a step learns from beside its data, each with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from typing import TYPE_CHECKING

from torch import Tensor

from janus.training.data.example import Example
from janus.training.data.packing import Batch, best_fit, place
from janus.training.parallel import Ranks
from janus.training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from janus.training.run import Run


@dataclass(frozen=True)
class Weighted:
    """What a process learns in a step beside the data.

    The losses of the pictures in the `batches` have `weights`, and `labels` is what to divide their sums by
    (`objectives.total`). `figures` are for the log, of all processes.
    """

    batches: list[Batch]
    labels: float
    figures: dict[str, Tensor]


def check_shares(recipe: Recipe, place: Ranks) -> None:
    """ValueError where there are fewer prompts, or pairs of captions, than processes to share them."""
    shared = {
        "reinforce.prompts": None if recipe.reinforce is None else recipe.reinforce.prompts,
        "mistakes.pairs": None if recipe.mistakes is None else recipe.mistakes.pairs,
    }
    for name, number in shared.items():
        if number is not None and number < place.size:
            raise ValueError(
                f"{name} = {number} cannot be shared out to {place.size} processes: give {place.size} or more"
            )


def weighted(batches: Sequence[Batch], weights: Tensor) -> list[Batch]:
    """The batches with the weights of their drawings, which the examples' seeds number."""
    return [replace(batch, weights=weights[batch.seeds]) for batch in batches]


def prompt_room(run: Run) -> int:
    """The most tokens of a prompt that a row holds together with the codes of its picture."""
    assert run.geometry is not None  # codes are drawn
    return run.recipe.data.sequence_length - run.geometry.tokens + 1  # the last code is not read


def batches_of(run: Run, examples: Sequence[Example]) -> list[Batch]:
    """The examples in rows as long, and batches of at most as many rows, as those of the data."""
    length = run.recipe.data.sequence_length
    rows = best_fit([len(example) for example in examples], length)
    turns = ceil(len(rows) / run.loader.rows)
    batches = []
    for turn in range(turns):
        own = rows[turn::turns]
        numbers = count()
        batches.append(
            place(
                [examples[each] for row in own for each in row],
                [[next(numbers) for _ in row] for row in own],
                length,
                run.processor.tokenizer.pad_id,
            )
        )
    return batches
