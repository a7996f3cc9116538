"""What the sections of a recipe say together, by its task: what contradicts what, and what says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from janus.config import JanusConfig, JanusFlowConfig, VQConfig
from janus.models.vae import VAEConfig
from janus.training.recipe.fields import RecipeError, show
from janus.training.recipe.learning import VQLearning
from janus.training.recipe.sections import BACKBONE, Data, LoRA, LossWeights
from janus.training.recipe.watch import PictureAsked

if TYPE_CHECKING:
    from janus.training.recipe.recipe import Recipe

TOWERS = ("vision", "embed", "language")  # the parts that SigLIP's loss reaches


def check_autoencoder(recipe: Recipe) -> None:
    """What concerns an autoencoder, and nothing that concerns the language model."""
    task = f"task = {show(recipe.task)}"
    if recipe.precision == "bfloat16":
        name = "a tokenizer" if recipe.task == "vq" else "an autoencoder"
        text = f'"bfloat16" is too coarse for the weights of {name}: give "autocast" or "float32"'
        raise RecipeError(("precision",), text)
    if recipe.optimizer.clip is None:
        raise RecipeError(("optimizer", "clip"), f"is none, and {task} needs one: give a number")
    other = "vae" if recipe.task == "vq" else "vq"
    own = {
        ("accumulate",): recipe.accumulate > 1,
        ("activation_checkpointing",): recipe.activation_checkpointing,
        ("compile",): recipe.compile,
        ("parallel", "kind"): recipe.parallel.kind == "fsdp",
        ("optimizer", "kind"): recipe.optimizer.kind == "muon",
        ("lora",): recipe.lora is not None,
        ("flow",): recipe.flow is not None,
        ("reinforce",): recipe.reinforce is not None,
        ("mistakes",): recipe.mistakes is not None,
        (other,): getattr(recipe, other) is not None,
        ("loss",): recipe.loss != LossWeights(),
        ("evaluate",): recipe.evaluate is not None,
        ("defaults",): recipe.defaults is not None,
        ("model", "code_embedding"): recipe.model.code_embedding != "random",
        ("log", "prompts"): bool(recipe.log.prompts),
    }
    _refuse(own | _of_documents(recipe.data), task)
    for shown, asked in enumerate(recipe.log.pictures):
        if asked != PictureAsked(picture=asked.picture):
            text = f"says nothing to {task}, which asks nothing: take it out"
            raise RecipeError(("log", "pictures", shown, "question"), text)
    for name in (*BACKBONE, "backbone", "processor", "world", other):
        if getattr(recipe.model, name) is not None:
            raise RecipeError(("model", name), f"says nothing to {task}: take it out")
    if recipe.model.vq is not None and recipe.model.checkpoint is not None:
        text = f"contradicts checkpoint = {show(recipe.model.checkpoint)}: the tokenizer is of one of them"
        raise RecipeError(("model", "vq"), text)
    if recipe.vq is not None:
        _check_what_learns(recipe, recipe.vq)
    if recipe.task == "vae":
        _check_vae_start(recipe)
    elif isinstance(recipe.model.architecture, VAEConfig | JanusFlowConfig):
        raise RecipeError(("model", "architecture"), "has no VQ tokenizer: give one's sizes, as a vq")
    if recipe.data.ratio is not None:
        raise RecipeError(("data", "ratio"), f"says nothing to {task}, all of whose data are pictures")
    _check_drawings(recipe, task)


def check_siglip(recipe: Recipe) -> None:
    """What concerns two towers that are compared, and nothing that concerns answers and drawings."""
    _check_model(recipe)
    task = f"task = {show(recipe.task)}"
    for place, part in enumerate(recipe.train):
        if part not in TOWERS:
            text = f"no loss of {task} reaches {show(part)}: name parts among {', '.join(TOWERS)}"
            raise RecipeError(("train", place), text)
    own = {
        ("accumulate",): recipe.accumulate > 1,
        ("lora",): recipe.lora is not None,
        ("flow",): recipe.flow is not None,
        ("reinforce",): recipe.reinforce is not None,
        ("mistakes",): recipe.mistakes is not None,
        ("loss",): recipe.loss != LossWeights(),
        ("evaluate",): recipe.evaluate is not None,
        ("defaults",): recipe.defaults is not None,
        ("log", "prompts"): bool(recipe.log.prompts),
        ("log", "pictures"): bool(recipe.log.pictures),
        ("log", "world"): recipe.log.world is not None,
        ("data", "ratio"): recipe.data.ratio is not None,
    }
    _refuse(own | _of_documents(recipe.data, ("crop",)), task)
    if recipe.parallel.kind == "fsdp":
        text = f'is "fsdp", and for {task} each process has both towers whole: give "ddp"'
        raise RecipeError(("parallel", "kind"), text)
    _check_drawings(recipe, task)


def check_janus(recipe: Recipe) -> None:
    """What concerns a model that answers and draws."""
    _check_model(recipe)
    if "vq" in recipe.train:
        text = f'no loss of task = {show(recipe.task)} reaches "vq": train it by itself, with task = "vq"'
        raise RecipeError(("train", recipe.train.index("vq")), text)
    if recipe.task == "janus" and recipe.data.ratio is None:
        raise RecipeError(("data", "ratio"), 'is missing: task = "janus" mixes tasks, at a ratio')
    if recipe.lora is not None and recipe.parallel.kind == "fsdp":
        text = 'is "fsdp", which would split weights that stand still: adapters train with "ddp"'
        raise RecipeError(("parallel", "kind"), text)
    if recipe.lora is not None and recipe.lora.targets == LoRA().targets and "language" in recipe.train:
        text = '"language" learns as a whole, and by the adapters of lora: take it out of one of them'
        raise RecipeError(("train", recipe.train.index("language")), text)
    for name in ("reinforce", "mistakes"):
        if getattr(recipe, name) is None:
            continue
        if not recipe.loss.picture:
            text = f"is 0, and weights of the drawings of {name} are multiples of it: raise it"
            raise RecipeError(("loss", "picture"), text)
        if recipe.parallel.kind == "fsdp":
            text = f'is "fsdp", and for {name} each process has the whole model: give "ddp"'
            raise RecipeError(("parallel", "kind"), text)


def _of_documents(data: Data, more: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
    """The keys that say how documents are laid out, and whether they are given."""
    laid_out = ("sequence_length", "packing", "overlong", "prompt_dropout", *more)
    return {
        ("data", each.name): getattr(data, each.name) != each.default
        for each in fields(Data)
        if each.name in laid_out
    }


def _refuse(given: Mapping[tuple[str, ...], bool], task: str) -> None:
    for key, is_given in given.items():
        if is_given:
            raise RecipeError(key, f"says nothing to {task}: take it out")


def _check_drawings(recipe: Recipe, task: str) -> None:
    for place, source in enumerate(recipe.data.sources):
        if source.task != "drawing":
            text = f'{show(source.task)} is not read for {task}: give sources of task "drawing"'
            raise RecipeError(("data", "sources", place, "task"), text)


def _check_what_learns(recipe: Recipe, learning: VQLearning) -> None:
    """Something must, in each of the times that the section of the tokenizer makes."""
    if learning.quantize_from and not {"encoder", "decoder"} & set(recipe.train):
        text = f'{learning.quantize_from} leaves nothing to learn before: add "decoder" to train, or give 0'
        raise RecipeError(("vq", "quantize_from"), text)
    if learning.decoder_only_from is not None and "decoder" not in recipe.train:
        text = f'{learning.decoder_only_from} leaves nothing to learn after: add "decoder" to train'
        raise RecipeError(("vq", "decoder_only_from"), text)


def _check_vae_start(recipe: Recipe) -> None:
    if recipe.model.vae is not None:
        text = 'names one that stands still: give the one to go on from as checkpoint, for task = "vae"'
        raise RecipeError(("model", "vae"), text)
    if recipe.model.checkpoint is None and not isinstance(recipe.model.architecture, VAEConfig):
        raise RecipeError(("model", "architecture"), "is no autoencoder of latents: give the sizes, as a vae")


def _check_model(recipe: Recipe) -> None:
    """What the model of a task must be that trains more than a tokenizer or an autoencoder."""
    for name in ("vq", "vae"):
        if getattr(recipe, name) is not None:
            raise RecipeError((name,), f"is of task = {show(name)}, not {show(recipe.task)}: take it out")
    if isinstance(recipe.model.architecture, VAEConfig):
        text = "is an autoencoder of latents alone: give the parts of a JanusFlow"
        raise RecipeError(("model", "architecture"), text)
    if isinstance(recipe.model.architecture, JanusConfig | JanusFlowConfig):
        recipe.check_kind(recipe.model.architecture)
    if isinstance(recipe.model.architecture, VQConfig):
        raise RecipeError(("model", "architecture"), "is a VQ tokenizer alone: give the other parts' sizes")
    if recipe.model.checkpoint is None:
        if recipe.task == "sft":
            raise RecipeError(("model", "checkpoint"), 'is missing: task = "sft" fine-tunes a whole model')
        if recipe.model.processor is None and recipe.model.world is None:
            text = "is missing beside an architecture: give the folder or hub id of a tokenizer"
            raise RecipeError(("model", "processor"), text)
    if recipe.optimizer.kind == "muon" and recipe.parallel.kind == "fsdp":
        text = 'is "muon", which wants matrices whole, and "fsdp" splits them: give "adamw", or "ddp"'
        raise RecipeError(("optimizer", "kind"), text)
