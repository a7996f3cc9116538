"""What a recipe will take, told before anything runs: parameters, memory by kind, tokens a step.

The weights and what goes with them are counted, the activations weighed (`weigh`). Of a process, where there
are several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from janus.checks import require_whole
from janus.config import AnyConfig, JanusConfig, VQConfig
from janus.models.janus import Janus
from janus.models.llama import Block
from janus.models.siglip import Block as VisionBlock
from janus.models.vae import VAE, VAEConfig
from janus.models.vq import VQ
from janus.training.costs.longest import longest_row, rows_loss
from janus.training.costs.weigh import (
    DTYPES,
    Loss,
    Weighed,
    computing_dtype,
    discriminator_of,
    hollow_model,
    prepare,
    weigh,
    weigh_contrast,
    weigh_encoding,
    weigh_tokenizing,
    weigh_vae,
    weigh_vq,
)
from janus.training.data.outline import Geometry
from janus.training.flow import ENCODED
from janus.training.log import GIB
from janus.training.optimizer import block_matrices
from janus.training.parallel import rows_of
from janus.training.parts import freeze, parameters, trained
from janus.training.recipe.architecture import Architecture
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import KINDS, Kind
from janus.weights.vae import empty_vae

PROMPTED = 64  # tokens of a prompt to draw, as long as captions are


@dataclass(frozen=True)
class Part:
    """How many numbers a part of the model holds, and how many of them learn."""

    numbers: int
    learning: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a run takes, in bytes of one process.

    `weights`, `moments` (the optimizer's), `average` (EMA) and `gathered` (what FSDP brings together of other
    processes' shares) are always there. `gradients` come and `activations` go during a step, which takes
    `step` for both at its worst moment, less than their sum. `by_row` tells this moment where all rows are of
    one task, of which `activations` and `step` are the worst, and `otherwise` where activation checkpointing
    is the other way than `checkpointing` says. `start` is before the first step: each process makes or reads
    the whole model, random weights in float32, before it is split. `tokens` are at most so many a step, over
    all processes; of a VQ tokenizer they are codes, of an autoencoder places of its latents.
    """

    parts: Mapping[str, Part]
    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    activations: int
    step: int
    tokens: int
    checkpointing: bool
    start: int = 0
    otherwise: int | None = None
    by_row: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Between steps."""
        return self.weights + self.moments + self.average + self.gathered

    @property
    def total(self) -> int:
        """At the worst moment."""
        return max(self.kept + self.step, self.start)


def estimate_memory(
    config: Architecture,
    recipe: Recipe,
    *,
    ranks: int = 1,
    device: str = "cpu",
    loss: Loss = rows_loss,
    vae: VAEConfig | None = None,
) -> Memory:
    """The memory of a recipe on `ranks` processes, each with its own device.

    `config` is the architecture that `recipe.model` leads to, `vae` that of the autoencoder that a JanusFlow
    draws with. `loss` computes the step's loss as training does; left out, heads are applied where something
    is to be predicted, and nowhere else. Raises ValueError for parts that the model has not, a batch that
    cannot be shared out, a row without room for a picture, and a device that is not there.
    """
    require_whole("ranks", ranks, least=1)
    rows = rows_of(recipe, ranks)
    if recipe.is_of_pictures:
        own = config.vq if isinstance(config, JanusConfig) else config
        assert isinstance(own, VQConfig | VAEConfig)  # the recipe was checked
        return _estimate_autoencoder(own, recipe, rows, device)
    assert isinstance(config, AnyConfig)
    if recipe.task == "siglip":
        return _estimate_contrast(config, recipe, rows, ranks, device)
    return _estimate_rows(config, recipe, rows, ranks, device, loss, vae)


def _estimate_contrast(config: AnyConfig, recipe: Recipe, pairs: int, ranks: int, device: str) -> Memory:
    model = hollow_model(config, recipe)
    prepare(model, recipe)
    state = _state(model, recipe, ranks, device)
    weighed = weigh_contrast(config, recipe, pairs, PROMPTED, device=device)
    return Memory(
        parts=_parts(model),
        **state,
        activations=weighed.held,
        step=max(weighed.most, state["gradients"]),
        tokens=recipe.batch * (config.vision.tokens + PROMPTED),
        checkpointing=recipe.activation_checkpointing,
        start=_start(model, recipe),
    )


def _estimate_rows(
    config: AnyConfig, recipe: Recipe, rows: int, ranks: int, device: str, loss: Loss, vae: VAEConfig | None
) -> Memory:
    model = hollow_model(config, recipe)
    prepare(model, recipe)
    parts, state = _parts(model), _state(model, recipe, ranks, device)
    geometry = None
    if not isinstance(config, JanusConfig) and vae is not None:
        geometry = Geometry.of_flow(config, vae)
        _add_vae(vae, parts, state)
    longest = {
        kind: longest_row(config, recipe.data.sequence_length, kind, geometry) for kind in _kinds(recipe)
    }

    def weighing(kind: Kind, checkpointing: bool) -> Weighed:
        return weigh(
            config,
            recipe,
            longest[kind],
            rows,
            device=device,
            checkpointing=checkpointing,
            loss=loss,
            geometry=geometry,
        )

    weighed = {kind: weighing(kind, recipe.activation_checkpointing) for kind in longest}
    worst = max(weighed, key=lambda kind: weighed[kind].most)
    otherwise = weighing(worst, not recipe.activation_checkpointing)
    full = sum(part.learning for part in parts.values()) * DTYPES[recipe.precision].itemsize

    def moment(most: int) -> int:
        """Where gradients are split, their worst moment is without most of them."""
        return max(most - full + state["gradients"], state["gradients"])

    by_row: dict[str, int] = {kind: moment(each.most) for kind, each in weighed.items()}
    pictures = longest["drawing"].drawn * rows if "drawing" in longest else 0
    by_row |= _before_the_row(config, recipe, pictures, ranks, device, vae)
    return Memory(
        parts=parts,
        **state,
        activations=weighed[worst].held,
        step=max(by_row.values()),
        tokens=recipe.batch * recipe.data.sequence_length,
        checkpointing=recipe.activation_checkpointing,
        otherwise=moment(otherwise.most),
        by_row=by_row,
        start=_start(model, recipe),
    )


def _before_the_row(
    config: AnyConfig, recipe: Recipe, pictures: int, ranks: int, device: str, vae: VAEConfig | None
) -> dict[str, int]:
    """Bytes of what is over before a step has activations, by kind: pictures encoded, rollouts drawn."""
    taken: dict[str, int] = {}
    if isinstance(config, JanusConfig):
        if pictures:
            taken["tokenizing"] = weigh_tokenizing(config, recipe, pictures, device=device)
        if recipe.reinforce is not None:
            taken["rollouts"] = rollouts_memory(config, recipe, ranks)
    elif pictures:
        assert vae is not None
        taken["latents"] = weigh_encoding(vae, min(pictures, ENCODED), config.picture_size, device=device)
    return taken


def _add_vae(config: VAEConfig, parts: dict[str, Part], state: dict[str, Any]) -> None:
    """Count an autoencoder that stands still, which every process has whole and in float32, in place."""
    numbers = sum(weight.numel() for weight in empty_vae(config).parameters())
    parts["vae"] = Part(numbers, 0)
    state["weights"] += numbers * torch.float32.itemsize


def _estimate_autoencoder(config: VQConfig | VAEConfig, recipe: Recipe, pictures: int, device: str) -> Memory:
    settings = recipe.vq_training() if isinstance(config, VQConfig) else recipe.vae_training()
    with torch.device("meta"):
        vq = VQ(config) if isinstance(config, VQConfig) else VAE(config)
        discriminator = discriminator_of(settings)
    freeze(vq, recipe.train)
    parts, state = _parts(vq), _state(vq, recipe, 1, device)
    judge = 0
    if settings.discriminator_from is not None:
        judge = sum(weight.numel() for weight in discriminator.parameters())
        parts["discriminator"] = Part(judge, judge)
        for kind, times in (("weights", 1), ("gradients", 1), ("moments", 2)):
            state[kind] += judge * times * 4
    if isinstance(config, VQConfig):
        weighed = weigh_vq(config, recipe, pictures, device=device)
    else:
        weighed = weigh_vae(config, recipe, pictures, device=device)
    side = recipe.picture_size // config.factor
    return Memory(
        parts=parts,
        **state,
        activations=weighed.held,
        step=max(weighed.most + judge * 4, state["gradients"]),
        tokens=recipe.batch * side**2,
        checkpointing=False,
    )


def rollouts_memory(config: JanusConfig, recipe: Recipe, ranks: int) -> int:
    """Bytes of the caches that a process draws its rollouts with, for prompts of PROMPTED tokens."""
    assert recipe.reinforce is not None
    drawn = -(-recipe.reinforce.prompts // ranks) * recipe.reinforce.pictures
    language = config.language
    position = 2 * language.layers * language.kv_heads * language.head_width
    return drawn * (PROMPTED + config.picture_tokens) * position * DTYPES[recipe.precision].itemsize


def _kinds(recipe: Recipe) -> list[Kind]:
    given = {source.task for source in recipe.data.sources}
    if recipe.reinforce is not None or recipe.mistakes is not None:
        given.add("drawing")
    return [kind for kind in KINDS if kind in given]


def _parts(model: nn.Module) -> dict[str, Part]:
    return {
        part: Part(
            sum(weight.numel() for weight in weights.values()),
            sum(weight.numel() for weight in weights.values() if weight.requires_grad),
        )
        for part, weights in parameters(model).items()
    }


def _state(model: nn.Module, recipe: Recipe, ranks: int, device: str) -> dict[str, Any]:
    """Bytes of what there is for each parameter, by kind; of the process's share, where it is split."""
    dtype = DTYPES[recipe.precision]
    split = recipe.parallel.kind == "fsdp" and ranks > 1
    shards = (recipe.parallel.shards or ranks) if split else 1
    everything = sum(weight.numel() for weight in model.parameters())
    learning = sum(weight.numel() for weight in trained(model).values())
    whole = _whole(model) if split else 0

    def share(numbers: int, size: int) -> int:
        return -(-numbers // shards) * size

    return {
        "weights": share(everything - whole, dtype.itemsize) + whole * dtype.itemsize,
        "gradients": share(learning, dtype.itemsize),
        "moments": share(2 * learning - _moments_saved(model, recipe), dtype.itemsize),
        "average": 0 if recipe.ema is None else share(learning, 4),
        "gathered": _gathered(model, computing_dtype(recipe, device)) if split else 0,
    }


def _moments_saved(model: nn.Module, recipe: Recipe) -> int:
    """Of how many parameters there is one moment and not two."""
    if recipe.optimizer.kind == "adamw":
        return 0
    return sum(weight.numel() for weight in block_matrices(trained(model)).values())


def _start(model: nn.Module, recipe: Recipe) -> int:
    """Bytes of the whole model as it is before anything is done with it."""
    dtype = torch.float32 if recipe.model.checkpoint is None else DTYPES[recipe.precision]
    return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize


def _gathered(model: nn.Module, dtype: torch.dtype) -> int:
    """What FSDP holds whole: all that is in no block, and two blocks, of which one is fetched ahead."""
    blocks = [
        sum(weight.numel() for weight in module.parameters())
        for module in model.modules()
        if isinstance(module, Block | VisionBlock)
    ]
    everything = sum(weight.numel() for weight in model.parameters()) - _whole(model)
    return (everything - sum(blocks) + 2 * max(blocks, default=0)) * dtype.itemsize


def _whole(model: nn.Module) -> int:
    """Numbers that every process has, of a model that is split: those of the picture tokenizer."""
    return sum(weight.numel() for weight in model.vq.parameters()) if isinstance(model, Janus) else 0


def format_memory(memory: Memory) -> str:
    """The tables that `--dry-run` prints: millions of parameters, and GiB."""
    lines = [f"{'parameters (millions)':<24}{'all':>10}{'learning':>10}"]
    for name, part in memory.parts.items():
        lines.append(f"  {name:<22}{_millions(part.numbers)}{_millions(part.learning)}")
    everything = sum(part.numbers for part in memory.parts.values())
    learning = sum(part.learning for part in memory.parts.values())
    lines += [f"  {'all':<22}{_millions(everything)}{_millions(learning)}", ""]
    lines.append(f"{'memory of a process':<24}{'GiB':>10}")
    for name, size in (
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.moments),
        ("moving average", memory.average),
        ("gathered", memory.gathered),
        ("activations", memory.activations),
        ("at the start", memory.start),
        ("at the worst moment", memory.total),
    ):
        lines += [f"  {name:<22}{_gib(size)}"] if size else []
    for name, size in memory.by_row.items():
        lines.append(
            f"  {'  ' + name + ' rows' if name in KINDS else '  ' + name:<22}{_gib(memory.kept + size)}"
        )
    if memory.otherwise is not None:
        name = f"{'without' if memory.checkpointing else 'with'} checkpointing"
        lines.append(f"  {name:<22}{_gib(memory.kept + memory.otherwise)}")
    return "\n".join([*lines, "", f"{'tokens a step, at most':<24}{memory.tokens:>10,}"])


def _millions(numbers: int) -> str:
    return f"{numbers / 1e6:>10,.2f}"


def _gib(size: int) -> str:
    return f"{size / GIB:>10,.3f}"
