"""Training of the picture tokenizer by a recipe: the steps of `janus.training.vq`, kept and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from janus.models.vq import VQ
from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.training import checkpoint
from janus.training.architecture import render_architecture
from janus.training.ema import EMA
from janus.training.feed import Pictures, pictures
from janus.training.flops import reconstruction_flop
from janus.training.log import RunLog
from janus.training.optimizer import build_optimizer
from janus.training.parallel import Ranks
from janus.training.parts import freeze
from janus.training.recipe import Recipe
from janus.training.recipe_sections import VQLearning
from janus.training.run import (
    CHECKPOINTS,
    check_pictures,
    find_checkpoint,
    go_on,
    is_due,
    open_log,
    own_state,
    set_rate,
    tensors,
)
from janus.training.schedule import factor
from janus.training.start import save_vq, start_vq, vq_config
from janus.training.vq import VQState, reconstruction_grid, vq_step


@dataclass
class VQRun:
    """As `janus.training.run.Run`, of a tokenizer; `state.step` counts the steps that are done."""

    recipe: Recipe
    folder: Path
    place: Ranks
    vq: VQ
    state: VQState
    average: EMA | None
    loader: Pictures


def begin(recipe: Recipe, folder: Path, place: Ranks) -> VQRun:
    """A run at its first step, or where the newest checkpoint in its folder left it."""
    check_pictures(recipe)
    found = find_checkpoint(recipe, folder, place)
    if found is None:
        vq = start_vq(recipe, place.device)
    else:
        vq = VQ(vq_config(found.shared()["architecture"])).to(place.device)
    freeze(vq, recipe.train)
    optimizer = build_optimizer(vq, recipe.optimizer)
    state = VQState.start(vq, recipe.vq_training(), optimizer=optimizer, group=place.group)
    average = None if recipe.ema is None else EMA(vq, recipe.ema)
    size = (recipe.vq or VQLearning()).picture_size
    run = VQRun(recipe, folder, place, vq, state, average, pictures(recipe, size, place))
    if found is not None:
        found.load(tensors(vq, optimizer, average))
        state.load_state_dict(found.shared()["state"])
        go_on(found, run.loader, place)
    return run


def train_vq(recipe: Recipe, folder: Path, place: Ranks, show: Callable[[str], object] | None = None) -> None:
    """Train a tokenizer; at its end the folder holds it, as `model.vq` of a recipe wants it."""
    run = begin(recipe, folder, place)
    state, settings = run.state, recipe.vq_training()
    flop = 3 * recipe.batch * reconstruction_flop(run.vq.config, run.loader.size)
    codes = recipe.batch * (run.loader.size // run.vq.config.factor) ** 2
    log = open_log(recipe, folder, place, state.step, show)
    batches: Any = iter(run.loader)
    with closing(batches), closing(log) if log else nullcontext():
        while state.step < recipe.steps:
            pixels = next(batches).to(place.device, non_blocking=True)
            rate = recipe.optimizer.lr * factor(state.step, recipe.schedule, recipe.steps)
            for optimizer in (state.optimizer, state.discriminator_optimizer):
                if optimizer is not None:
                    set_rate(optimizer, rate)
            figures = vq_step(run.vq, pixels, state, settings)
            if run.average is not None:
                run.average.update()

            names = list(figures)
            means = place.summed(torch.stack([figures[name].double() for name in names])) / place.size
            if log:
                log.step({**dict(zip(names, means, strict=True)), "rate": rate}, tokens=codes, flop=flop)
            with log.aside() if log else nullcontext():
                if is_due(state.step, recipe.log.samples_every):
                    with shown(run):
                        if log:
                            show_reconstructions(run, log)
                if is_due(state.step, recipe.checkpoint.every) or state.step == recipe.steps:
                    keep(run)
    with shown(run):
        if place.first:
            save_vq(run.vq, folder)


def keep(run: VQRun) -> Path:
    """Write a checkpoint of the run as it is now."""
    return checkpoint.save(
        run.folder / CHECKPOINTS,
        run.state.step,
        tensors(run.vq, run.state.optimizer, run.average),
        shared={"architecture": render_architecture(run.vq.config), "state": run.state.state_dict()},
        own=own_state(run.loader, run.place),
        recipe=run.recipe,
        keep=run.recipe.checkpoint.keep,
        place=run.place,
    )


@contextmanager
def shown(run: VQRun) -> Iterator[None]:
    """Within it the tokenizer has its averages, if there are any; all processes leave it together."""
    with torch.no_grad(), nullcontext() if run.average is None else run.average.swapped():
        yield
        run.place.wait()


def show_reconstructions(run: VQRun, log: RunLog) -> None:
    """The recipe's pictures above what the tokenizer makes of them, as one picture."""
    asked = run.recipe.log.pictures
    if not asked:
        return
    squares = [square_picture(load_picture(each.picture), run.loader.size) for each in asked]
    pixels = torch.stack([to_signed_pixels(square) for square in squares]).to(run.place.device)
    quantised = run.recipe.vq_training().quantises(run.state.step)
    log.samples([("reconstructions", reconstruction_grid(run.vq, pixels, quantised=quantised))])
