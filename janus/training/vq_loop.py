"""Training of what codes pictures, by a recipe: the steps of a VQ tokenizer, or of the autoencoder of a flow.

They are those of `janus.training.vq` and `janus.training.vae`, kept and resumed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus.models.vae import VAE
from janus.models.vq import VQ
from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.training import checkpoint
from janus.training.costs.flops import reconstruction_flop
from janus.training.ema import EMA
from janus.training.feed import Drawings, pictures
from janus.training.log import RunLog
from janus.training.optimizer import build_optimizer
from janus.training.parallel import Ranks
from janus.training.parts import freeze
from janus.training.recipe.architecture import render_architecture
from janus.training.recipe.recipe import Recipe
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
from janus.training.samples import check_scenes, scenes_of
from janus.training.schedule import factor
from janus.training.start import blank_autoencoder, start_autoencoder
from janus.training.vae import VAEState, scaled, there_and_back, vae_losses, vae_step
from janus.training.vq import VQState, code, paired_grid, reconstruction_grid, total, vq_losses, vq_step
from janus.training.vq_files import save_vq
from janus.weights.vae import save_vae

SCALE_PICTURES = 256  # that the scale of latents is measured on, at least: many numbers each


Step = Callable[[Tensor], dict[str, Tensor]]  # learns from pixels; -> figures


@dataclass
class VQRun:
    """As `janus.training.run.Run`, of a tokenizer or autoencoder; `state.step` counts the steps done."""

    recipe: Recipe
    folder: Path
    place: Ranks
    vq: VQ | VAE
    state: VQState | VAEState
    average: EMA | None
    loader: Drawings[Tensor]
    step: Step

    def loss(self, pixels: Tensor) -> Tensor:
        """That of pictures as they would be learned from now, of which nothing is learned."""
        if isinstance(self.vq, VQ):
            assert isinstance(self.state, VQState)
            of_vq = self.recipe.vq_training()
            coded = code(self.vq, pixels, self.state.step, of_vq)
            return total(vq_losses(self.vq, coded, pixels, self.state, of_vq), of_vq)
        assert isinstance(self.state, VAEState)
        of_vae = self.recipe.vae_training()
        returned = there_and_back(self.vq, pixels, self.state, of_vae)
        return total(vae_losses(returned, pixels, self.state, of_vae), of_vae)


def begin(recipe: Recipe, folder: Path, place: Ranks) -> VQRun:
    """A run at its first step, or where the newest checkpoint in its folder left it."""
    check_pictures(recipe)
    check_scenes(recipe.log, recipe.picture_size)
    found = find_checkpoint(recipe, folder, place)
    shared = {} if found is None else found.shared()
    if found is None:
        vq = start_autoencoder(recipe, place.device)
    else:
        vq = blank_autoencoder(shared["architecture"], place.device)
    freeze(vq, recipe.train)
    optimizer = build_optimizer(vq, recipe.optimizer)
    state, step = begin_state(vq, recipe, optimizer, place)
    # Codes are begun, revived and merged by writing their entries: an average would be of what is gone, too.
    average = None if recipe.ema is None else EMA(vq, recipe.ema, without=("codebook",))
    loader = pictures(recipe, recipe.picture_size, place)
    run = VQRun(recipe, folder, place, vq, state, average, loader, step)
    if found is not None:
        found.load(tensors(vq, optimizer, average))
        state.load_state_dict({**shared["state"], "optimizer": optimizer.state_dict()})
        go_on(found, run.loader, place)
    return run


def warn_of_phases(recipe: Recipe) -> None:
    """Tell what will not come about, as when a long recipe is tried with few steps."""
    learning = recipe.vq if recipe.task == "vq" else recipe.vae
    for name in ("quantize_from", "decoder_only_from", "discriminator_from"):
        step = getattr(learning, name, None)
        if step and step >= recipe.steps:
            warnings.warn(
                f"{recipe.task}.{name} = {step} is never reached in {recipe.steps} steps: lower it, or train "
                "for longer",
                stacklevel=2,
            )


def begin_state(
    vq: VQ | VAE, recipe: Recipe, optimizer: torch.optim.Optimizer, place: Ranks
) -> tuple[VQState | VAEState, Step]:
    """What goes from step to step beside the model, and the step itself."""
    if isinstance(vq, VQ):
        of_vq = recipe.vq_training()
        state = VQState.start(vq, of_vq, optimizer=optimizer, group=place.group)
        return state, partial(vq_step, vq, state=state, config=of_vq)
    of_vae = recipe.vae_training()
    begun = VAEState.start(vq, of_vae, optimizer=optimizer, group=place.group)
    return begun, partial(vae_step, vq, state=begun, config=of_vae)


def train_vq(recipe: Recipe, folder: Path, place: Ranks, show: Callable[[str], object] | None = None) -> None:
    """Train a tokenizer or an autoencoder; at its end the folder holds it.

    It is what `model.vq`, or `model.vae`, of a recipe names.
    """
    run = begin(recipe, folder, place)
    if place.first:
        warn_of_phases(recipe)
    state, size = run.state, recipe.picture_size
    flop = 3 * recipe.batch * reconstruction_flop(run.vq.config, size)
    codes = recipe.batch * (size // run.vq.config.factor) ** 2
    log = open_log(recipe, folder, place, state.step, show)
    batches: Any = iter(run.loader)
    with closing(batches), closing(log) if log else nullcontext():
        while state.step < recipe.steps:
            pixels = next(batches).to(place.device, non_blocking=True)
            rate = recipe.optimizer.lr * factor(state.step, recipe.schedule, recipe.steps)
            for optimizer in (state.optimizer, state.discriminator_optimizer):
                if optimizer is not None:
                    set_rate(optimizer, rate)
            figures = run.step(pixels)
            if run.average is not None:
                run.average.update()

            names = list(figures)
            means = place.summed(torch.stack([figures[name].float() for name in names])) / place.size
            left_out = run.loader.left_out(place)
            if log:
                found = {**dict(zip(names, means, strict=True)), "rate": rate}
                log.step(found | left_out, tokens=codes, flop=flop)
            with log.aside() if log else nullcontext():
                if is_due(state.step, recipe.checkpoint.every, recipe.steps):
                    keep(run)
                if is_due(state.step, recipe.log.samples_every, recipe.steps):
                    with shown(run):
                        if log:
                            show_reconstructions(run, log)
    with shown(run):
        if place.first:
            write(run)


def write(run: VQRun) -> None:
    """Put what was learned into the run's folder; an autoencoder with the scale of its latents.

    That is measured on the pictures that would have come next.
    """
    if isinstance(run.vq, VQ):
        save_vq(run.vq, run.folder)
        return
    batches: Any = iter(run.loader)
    with closing(batches):
        measured = islice(batches, ceil(SCALE_PICTURES / run.loader.rows))
        scaled(run.vq, (pixels.to(run.place.device) for pixels in measured))
    save_vae(run.vq, run.folder)


def keep(run: VQRun) -> Path:
    """Write a checkpoint of the run as it is now; the optimizer's moments are among the tensors."""
    state = {name: value for name, value in run.state.state_dict().items() if name != "optimizer"}
    return checkpoint.save(
        run.folder / CHECKPOINTS,
        run.state.step,
        tensors(run.vq, run.state.optimizer, run.average),
        shared={"architecture": render_architecture(run.vq.config), "state": state},
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
    pictures = [load_picture(each.picture) for each in run.recipe.log.pictures]
    size = run.recipe.picture_size
    pictures += [load_picture(each.picture) for each in scenes_of(run.recipe.log, size)]
    if not pictures:
        return
    squares = [square_picture(each, size) for each in pictures]
    pixels = torch.stack([to_signed_pixels(square) for square in squares]).to(run.place.device)
    if isinstance(run.vq, VQ):
        quantized = run.recipe.vq_training().quantizes(run.state.step)
        grid = reconstruction_grid(run.vq, pixels, quantized=quantized)
    else:
        grid = paired_grid(pixels, run.vq.decode(run.vq.encode(pixels).mean))
    log.samples([("reconstructions", grid)])
