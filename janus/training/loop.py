"""Training, from a recipe to a model in a folder.

A run's folder holds `log.jsonl` and what is shown beside it, `checkpoints/`, from which it goes on after a
kill at any moment, and at its end the model. `torchrun` starts a run of several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus.config import JanusConfig
from janus.training.checkpoint import random_state, set_random_state
from janus.training.costs.flops import Cost, cost, flow_cost
from janus.training.data.loader import Loader
from janus.training.data.packing import Batch
from janus.training.evaluation import build_evaluator
from janus.training.mistakes import tell_apart
from janus.training.objectives import Sums, count, figures, total
from janus.training.parallel import Ranks, computing, gradient_sync, ranks
from janus.training.recipe.file import read_recipe
from janus.training.recipe.recipe import Recipe
from janus.training.reinforce import rollout
from janus.training.run import (
    Run,
    advance,
    begin,
    export,
    is_due,
    keep,
    keep_autoencoder,
    learning,
    open_log,
    shown,
)
from janus.training.samples import draw_and_ask
from janus.training.schedule import factor
from janus.training.siglip_loop import train_siglip
from janus.training.vq_loop import train_vq
from janus.training.weighted import Weighted


def train(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    overrides: Iterable[str] = (),
    device: str | torch.device | None = None,
    show: Callable[[str], object] | None = None,
) -> Path:
    """Train by a recipe, of a file or the library's own by its name; -> the folder, with the model in it.

    A run that the folder holds already goes on from its newest checkpoint, with the losses that it would
    have had. `overrides` are `key=value`, as on the command line; `show` gets the lines of progress.
    Raises FileNotFoundError or ValueError for a recipe, data or a folder that do not fit, ImportError
    where a package that the recipe needs is missing, OSError for a disk that is full, and
    FloatingPointError where gradients are not finite.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe, overrides)
    elif list(overrides):
        raise ValueError("overrides change a recipe that is read: give its file, or change the recipe itself")
    folder = Path(folder)
    with ranks(device) as place, own_numbers(place.device):
        if recipe.is_of_pictures:
            train_vq(recipe, folder, place, show)
        elif recipe.task == "siglip":
            train_siglip(recipe, folder, place, show)
        else:
            train_janus(recipe, folder, place, show)
    return folder


@contextmanager
def own_numbers(device: torch.device) -> Iterator[None]:
    """Within it torch's default generators are the run's; afterwards they are where they were."""
    kept = random_state(device)
    try:
        yield
    finally:
        set_random_state(kept, device)


def train_janus(
    recipe: Recipe, folder: Path, place: Ranks, show: Callable[[str], object] | None = None
) -> None:
    """Train the language model and what is around it."""
    run = begin(recipe, folder, place)
    if not run.step:
        keep_autoencoder(run)
    evaluate = build_evaluator(run)
    assert isinstance(run.loader, Loader)
    log = open_log(recipe, folder, place, run.step, show)
    parameters, costs = learning(run.model), cost_of(run)
    batches: Any = iter(run.loader)
    with closing(batches), closing(log) if log else nullcontext():
        while run.step < recipe.steps:
            turns = [next(batches) for _ in range(recipe.accumulate)]
            beside = learned_beside(run)
            held = holds(turns, costs)
            for each in beside:
                held[2:] += holds(each.batches, costs)[2:]  # their labels count apart
            held = torch.cat((held, held.new_tensor([run.loader.dropped, run.loader.cut])))
            words, codes, tokens, places, flop, *lost = place.summed(held).tolist()

            rate = recipe.optimizer.lr * factor(run.step, recipe.schedule, recipe.steps)
            losses = torch.zeros((), device=place.device)
            weighed = [(batch, each.labels) for each in beside for batch in each.batches]
            for batch in turns:
                last = batch is turns[-1] and not weighed
                losses = losses + learn(run, batch, words + codes, exchange=last)
            for number, (batch, labels) in enumerate(weighed, start=1):
                learn(run, batch, labels, exchange=number == len(weighed))
            norm = advance(run, parameters, rate)

            found = figures(Sums(*place.summed(losses)), recipe.loss, words, codes)
            for each in beside:
                found |= each.figures
            if log:
                more = {"rate": rate, "norm": norm, "padding": 1 - tokens / places}
                if any(lost):
                    more |= dict(zip(("dropped", "cut"), lost, strict=True))
                log.step({**found, **more}, tokens=int(tokens), flop=int(flop))
            with log.aside() if log else nullcontext():
                # Kept first: whatever is wrong with drawing, the steps are not lost.
                if is_due(run.step, recipe.checkpoint.every, recipe.steps):
                    keep(run)
                if is_due(run.step, recipe.log.samples_every, recipe.steps):
                    with shown(run) as model:
                        if model is not None and log:
                            log.samples(*draw_and_ask(model, run.processor, recipe, vae=run.vae))
                every = None if recipe.evaluate is None else recipe.evaluate.every
                if evaluate is not None and is_due(run.step, every, recipe.steps):
                    scores = evaluate()
                    if log:
                        log.write(scores)
    export(run)


def learned_beside(run: Run) -> list[Weighted]:
    """What the recipe has a step learn beside its data."""
    found = []
    if run.recipe.mistakes is not None:
        found.append(tell_apart(run, run.recipe.mistakes))
    if run.recipe.reinforce is not None:
        found.append(rollout(run, run.recipe.reinforce))
    return found


def cost_of(run: Run) -> Cost:
    """What the parts of a step of this run cost, in FLOP."""
    config, train, adapted = run.model.config, run.recipe.train, run.recipe.lora is not None
    if isinstance(config, JanusConfig):
        return cost(config, train, adapted=adapted)
    vae = None if run.vae is None else run.vae.config
    return flow_cost(config, train, vae, alignment=run.recipe.aligns, adapted=adapted)


def holds(turns: Sequence[Batch], costs: Cost) -> Tensor:
    """Of a process's share of a step: labeled words and codes, tokens, positions, FLOP; exact to 2 ** 53.

    Of a flow, labeled tokens of latents count as codes.
    """
    held = [count(batch) for batch in turns]
    tokens = sum(batch.tokens for batch in turns)
    flop = sum(costs.of(each) for each in held)
    words, codes = sum(each.word_labels for each in held), sum(each.code_labels for each in held)
    places = sum(each.tokens for each in held)
    return torch.tensor([words, codes, tokens, places, flop], dtype=torch.float64)


def learn(run: Run, batch: Batch, labels: float, *, exchange: bool) -> Tensor:
    """One turn, forward and backward; -> the sums of its losses (2,), of a flow (3,).

    `labels` are all those of the step.
    """
    place, recipe = run.place, run.recipe
    batch = run.encoded(batch.to(place.device, non_blocking=True))
    with gradient_sync(run.objective, exchange):
        with computing(recipe, place):
            losses = run.objective(batch)
        # Gradients are averaged over processes; of the sums that they are to be, that is one part each.
        total(Sums(*losses), recipe.loss, labels / place.size).backward()
    return torch.stack([loss.detach() for loss in losses])
