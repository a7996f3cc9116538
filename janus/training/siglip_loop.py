"""Training of a vision tower by captions, by a recipe: the steps of SigLIP's loss.

All processes' pictures are compared with all processes' captions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus.training.costs.flops import contrast_cost
from janus.training.feed import Drawings
from janus.training.parallel import Ranks, computing
from janus.training.recipe.recipe import Recipe
from janus.training.run import Run, advance, begin, export, is_due, keep, learning, open_log
from janus.training.schedule import factor
from janus.training.siglip import Pairs, fitting, prompts_in


def train_siglip(
    recipe: Recipe, folder: Path, place: Ranks, show: Callable[[str], object] | None = None
) -> None:
    """Train the vision tower; at its end the folder holds the whole model, with which other recipes begin."""
    run = begin(recipe, folder, place)
    assert isinstance(run.loader, Drawings)
    log = open_log(recipe, folder, place, run.step, show)
    parameters, costs = learning(run.model), contrast_cost(run.model.config, recipe.train)
    patches = recipe.batch * run.model.config.vision.tokens
    batches: Any = iter(run.loader)
    with closing(batches), closing(log) if log else nullcontext():
        while run.step < recipe.steps:
            pairs: Pairs = next(batches)
            rate = recipe.optimizer.lr * factor(run.step, recipe.schedule, recipe.steps)
            found = compare(run, pairs)
            norm = advance(run, parameters, rate)

            held = pairs.count()
            counted = torch.tensor([held.tokens, costs.of(held)], dtype=torch.float64)
            loss, right, tokens, flop = place.summed(torch.cat((found.cpu().double(), counted))).tolist()
            left_out = run.loader.left_out(place)
            if log:
                figures = {"loss": loss / recipe.batch, "right": right / recipe.batch}
                log.step(
                    {**figures, "rate": rate, "norm": norm, **left_out},
                    tokens=patches + int(tokens),
                    flop=int(flop),
                )
            if is_due(run.step, recipe.checkpoint.every, recipe.steps):
                with log.aside() if log else nullcontext():
                    keep(run)
    export(run)


def compare(run: Run, pairs: Pairs) -> Tensor:
    """Forward and backward; -> (2,) float32: the sum of this process's losses, and how many it has right.

    A loss has a term for each picture and caption, and is divided by the pictures of all processes.
    """
    place = run.place
    ids, ends = prompts_in(pairs, run.processor.tokenizer.pad_id)
    given = [each.to(place.device) for each in (pairs.pixels, ids, ends, fitting(pairs, place))]
    with computing(run.recipe, place):
        losses, right = run.objective(*given)
    # Gradients are averaged over processes; of the sums that they are to be, that is one part each.
    (losses * (place.size / run.recipe.batch)).backward()
    return torch.stack((losses.detach().float(), right.float()))
