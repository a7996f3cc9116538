"""A run of training between two steps: how it begins, is kept, goes on, and is handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from janus import cpu
from janus.devices import computed_in
from janus.evaluation.defaults import choose_defaults, write_defaults
from janus.evaluation.shapes import picture_sides
from janus.files import require_picture
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE
from janus.pipeline import Pipeline
from janus.processing.image import load_picture
from janus.processing.processor import Processor
from janus.training import checkpoint
from janus.training.blocks import checkpoint_blocks, compile_blocks
from janus.training.checkpoint import Checkpoint
from janus.training.costs.flops import machine_rate
from janus.training.costs.weigh import DTYPES, computing_dtype
from janus.training.data.loader import Loader, reshard
from janus.training.data.outline import Geometry
from janus.training.data.packing import Batch
from janus.training.data.rows import located
from janus.training.ema import EMA
from janus.training.feed import Drawings, documents, geometry_of, pairs
from janus.training.flow import FlowObjective, add_alignment, with_latents
from janus.training.log import RunLog, process_memory
from janus.training.lora import add_adapters, merge_adapters, save_adapters
from janus.training.objectives import Objective, encode
from janus.training.optimizer import build_optimizer
from janus.training.parallel import Ranks, clip, gathered, is_split, near, parallelize
from janus.training.parts import AnyModel, eval_mode, freeze, remove_alignment, trained
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.recipe import Recipe
from janus.training.samples import check_scenes
from janus.training.siglip import ContrastObjective, Pairs, add_contrast
from janus.training.start import (
    blank,
    describe,
    find_vae,
    start_janus,
    start_processor,
    start_vae,
    with_defaults,
)
from janus.training.weighted import check_shares
from janus.training.widen import widen_linears
from janus.weights.vae import RELEASED, own_vae, save_vae

CHECKPOINTS, ADAPTERS, AUTOENCODER = "checkpoints", "adapter", "vae"
DEFAULTS_SEED = 1  # of the prompts that defaults are chosen on; those of scores meanwhile have 0


@dataclass
class Run:
    """`objective` is the model as data-parallel processes call it; `step` counts the steps that are done.

    `vae` is what a JanusFlow's pictures go through, where the run needs it.
    """

    recipe: Recipe
    folder: Path
    place: Ranks
    model: AnyModel
    processor: Processor
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    average: EMA | None
    loader: Loader | Drawings[Pairs]
    vae: VAE | None = None
    step: int = 0

    def encoded(self, batch: Batch) -> Batch:
        """A batch on the run's device whose pictures to be drawn have become codes, or latents."""
        if isinstance(self.model, JanusFlow):
            return with_latents(batch, self.vae)
        return batch.tokenized(partial(encode, self.model))

    @property
    def geometry(self) -> Geometry | None:
        """That of pictures to be drawn."""
        return geometry_of(self.model.config, self.vae)


def begin(recipe: Recipe, folder: Path, place: Ranks) -> Run:
    """A run at its first step, or where the newest checkpoint in its folder left it.

    A checkpoint holds the whole model, so that what it started from may be gone by then; the data may not.
    Raises ValueError, among all that reading raises, where it is of another recipe.
    """
    check_pictures(recipe)
    check_shares(recipe, place)
    found = find_checkpoint(recipe, folder, place)
    if found is None:
        processor = _stating(start_processor(recipe.model), recipe)
        model = start_janus(recipe, processor, place.device)
    else:
        model = blank(found.shared()["model"], DTYPES[recipe.precision], place.device)
        processor = _stating(Processor(model.files, where=str(found.folder)), recipe)
        model.files = processor.files
        if isinstance(model, Janus):  # sources of codes compare it with the one that made them
            found.load(checkpoint.model_tensors(model.vq, "model.vq"))
    vae, kept = None, None if found is None else own_vae(folder)
    if isinstance(model, JanusFlow) and kept is not None:
        model.autoencoder = kept
    if isinstance(model, JanusFlow) and (kept is not None or takes_autoencoder(recipe)):
        vae = start_vae(recipe.model, kept, place.device)
    if found is None and vae is None and (other := own_vae(folder)) is not None:
        raise ValueError(f"{other} is the autoencoder of another model: remove it, or train elsewhere")
    pipe = Pipeline(model, processor, vae=vae)  # which sees to it that they belong together
    if recipe.defaults is not None and recipe.defaults.is_choice:
        picture_sides(pipe)  # which refuses what could not be chosen on in the end
    check_scenes(recipe.log, model.config.vision.image_size)
    if recipe.lora is None:
        freeze(model, recipe.train)
    else:
        add_adapters(model, recipe.lora, train=recipe.train, seed=recipe.seed)
    # Before the model is split: sources compare the tokenizer with that of their codes.
    loader: Loader | Drawings[Pairs]
    if recipe.task == "siglip":
        loader = pairs(recipe, model, processor, place)
        add_contrast(model, seed=recipe.seed)
    else:
        loader = documents(recipe, model, processor, place, vae)
    settings = recipe.flow or FlowLearning()
    if isinstance(model, JanusFlow) and recipe.aligns:
        geometry = geometry_of(model.config, vae)
        tokens = None if geometry is None else geometry.tokens
        add_alignment(model, settings.aligned_after, tokens=tokens, seed=recipe.seed)
    if isinstance(model, Janus) and place.device.type == "cpu":
        # In it convolutions are faster. (torch leaves it out of what it says of its types.)
        model.vq.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cpu.widens(place.device, model.dtype):
        widen_linears(model)
    if recipe.compile:
        compile_blocks(model)
    if recipe.activation_checkpointing:
        checkpoint_blocks(model)
    alone: Objective | FlowObjective | ContrastObjective
    if recipe.task == "siglip":
        alone = ContrastObjective(model, place.group)
    elif isinstance(model, JanusFlow):
        alone = FlowObjective(model, settings, processor.config)
    else:
        alone = Objective(model)
    objective = parallelize(alone, recipe, place)
    optimizer = build_optimizer(model, recipe.optimizer, place.group)
    average = None if recipe.ema is None else EMA(model, recipe.ema)
    # Of what drops out numbers. (What was random before had seeds of its own, which GPUs keep.)
    torch.manual_seed((recipe.seed + place.rank) % 2**63)
    run = Run(recipe, folder, place, model, processor, objective, optimizer, average, loader, vae)
    if found is not None:
        found.load(tensors(model, optimizer, average))
        go_on(found, loader, place)
        run.step = found.step
    return run


def takes_autoencoder(recipe: Recipe) -> bool:
    """Whether a JanusFlow's run needs its autoencoder: where it draws, or has another than the released one.

    That one goes on with the model, whatever it learns. What only looks at pictures to be drawn needs none.
    """
    if recipe.task == "siglip":
        return False
    return bool(recipe.log.prompts) or recipe.has_drawings or find_vae(recipe.model) != RELEASED


def keep_autoencoder(run: Run) -> None:
    """Write a JanusFlow's autoencoder into the run's folder: the run goes on with it, and the model draws."""
    if run.vae is not None and run.place.first:
        save_vae(run.vae, run.folder / AUTOENCODER)
    run.place.wait()
    if isinstance(run.model, JanusFlow):
        run.model.autoencoder = own_vae(run.folder)


def check_pictures(recipe: Recipe) -> None:
    """FileNotFoundError or ValueError for a picture to be asked about that is not there, or none.

    Before the run, and not in it.
    """
    for asked in recipe.log.pictures:
        require_picture(asked.picture, "log.pictures: ")
        try:
            load_picture(asked.picture)
        except ValueError as error:
            raise located(error, "log.pictures") from error


def find_checkpoint(recipe: Recipe, folder: Path, place: Ranks) -> Checkpoint | None:
    """What a run in this folder goes on from, if it has begun; ValueError where it cannot."""
    found: Checkpoint | None = place.agreed(checkpoint.newest(folder / CHECKPOINTS) if place.first else None)
    if found is not None:
        found.check(recipe)
        if found.step > recipe.steps:
            raise ValueError(
                f"{found.folder} is of step {found.step}, and steps = {recipe.steps} are over by then: "
                "raise steps, or begin in another folder"
            )
    return found


def go_on(found: Checkpoint, loader: Loader | Drawings[Any], place: Ranks) -> None:
    """Put the loader and torch's generators where a checkpoint left them, in place.

    With another number of processes, rows at the seam may be read twice or passed over (`reshard`), and each
    goes on with random numbers of its own.
    """
    own = found.own()
    if len(own) == place.size:
        loader.load_state_dict(own[place.rank]["loader"])
        checkpoint.set_random_state(own[place.rank]["random"], place.device)
    else:
        loader.load_state_dict(reshard([each["loader"] for each in own], place.size))


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer, average: EMA | None) -> dict[str, Tensor]:
    """All tensors that a checkpoint holds, themselves and not copies."""
    found = checkpoint.model_tensors(model) | checkpoint.optimizer_tensors(optimizer, model)
    averages = {} if average is None else average.state_dict()
    return found | {f"average.{name}": tensor for name, tensor in averages.items()}


def own_state(loader: Loader | Drawings[Any], place: Ranks) -> dict[str, Any]:
    """What a process has for itself."""
    return {"loader": loader.state_dict(), "random": checkpoint.random_state(place.device)}


def keep(run: Run) -> Path:
    """Write a checkpoint of the run as it is now."""
    return checkpoint.save(
        run.folder / CHECKPOINTS,
        run.step,
        tensors(run.model, run.optimizer, run.average),
        shared={"model": describe(run.model)},
        own=own_state(run.loader, run.place),
        recipe=run.recipe,
        keep=run.recipe.checkpoint.keep,
        place=run.place,
    )


@contextmanager
def shown(run: Run) -> Iterator[AnyModel | None]:
    """The model as `averaged` gives it, and where it draws: of one that is split, a copy."""
    with averaged(run) as model:
        yield None if model is None else near(model, run.recipe, run.place)


@contextmanager
def averaged(run: Run) -> Iterator[AnyModel | None]:
    """The whole model with its averages, if any, for the first process; the others get None and wait.

    Nothing may be trained within it.
    """
    with (
        torch.no_grad(),
        eval_mode(run.model),
        nullcontext() if run.average is None else run.average.swapped(),
    ):
        if is_split(run.recipe, run.place):
            yield gathered(run.model, run.place)
        else:
            yield run.model if run.place.first else None
        run.place.wait()


def _stating(processor: Processor, recipe: Recipe) -> Processor:
    """The processor with what is drawn with until there is a choice; a run may go on with other defaults."""
    return processor if recipe.defaults is None else with_defaults(processor, *recipe.defaults.first)


def export(run: Run) -> None:
    """Write the model into the run's folder, which `janus.load` and other recipes then read.

    With the guidance and temperature that are best to draw with, where the recipe has several. Adapters are
    merged into it, and beside it by themselves, in a folder of their own.
    """
    settings = run.recipe.defaults
    with averaged(run) as model:
        if model is not None:
            if run.recipe.lora is not None:
                save_adapters(model, run.folder / ADAPTERS)
                merge_adapters(model)
            remove_alignment(model)
            model.save_pretrained(run.folder)
            if settings is not None and settings.is_choice:
                near_by = near(model, run.recipe, run.place)
                choice = choose_defaults(
                    Pipeline(near_by, run.processor, vae=run.vae),
                    guidances=settings.guidances,
                    temperatures=settings.temperatures or None,
                    prompts=settings.prompts,
                    seed=DEFAULTS_SEED,
                )
                write_defaults(run.folder, guidance=choice.guidance, temperature=choice.temperature)


def learning(model: nn.Module) -> list[nn.Parameter]:
    """What learns, as clipping wants it."""
    return list(trained(model).values())


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, of all groups, in place."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def advance(run: Run, parameters: Sequence[nn.Parameter], rate: float) -> Tensor:
    """The step itself, once all gradients are there, in place; -> their norm before it was clipped."""
    norm = clip(parameters, run.recipe.optimizer.clip)
    check_finite(norm, run.step, rate)
    set_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        run.average.update()
    run.step += 1
    return norm


def check_finite(norm: Tensor, step: int, rate: float) -> None:
    """FloatingPointError, before any weight has moved, for gradients that are no numbers."""
    if not bool(norm.isfinite()):
        raise FloatingPointError(
            f"gradients of step {step} are not finite: lower the rate, {rate:.3g} by then, or look for data "
            "that are not numbers"
        )


def open_log(
    recipe: Recipe, folder: Path, place: Ranks, done: int, show: Callable[[str], object] | None
) -> RunLog | None:
    """The log of a run that goes on after `done` steps; the first process has it."""
    if not place.first:
        return None
    dtype = computing_dtype(recipe, place.device.type)
    rate = machine_rate(place.device, computed_in(place.device, dtype)) * place.size
    memory = partial(process_memory, place.device)
    return RunLog(folder, recipe.log, steps=recipe.steps, done=done, rate=rate, memory=memory, show=show)


def is_due(step: int, every: int | None, steps: int) -> bool:
    """Whether what is done `every` so many of all `steps`, and at their end, is done after this one."""
    return every is not None and (step % every == 0 or step == steps)
