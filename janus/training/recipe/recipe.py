"""A recipe: all that decides what a run of training computes, as frozen data.

Every section fits its own fields (`fields`; `sections`, `learning`, `watch`), and what they say together is
checked by the recipe's task (`tasks`). Read from TOML or YAML, and written, in `file`. Those that ship:
`janus/training/recipes/`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from janus.config import AnyConfig, JanusConfig, JanusFlowConfig, VQConfig
from janus.models.vae import VAEConfig
from janus.training.parts import FLOW_PARTS, PARTS, VAE_PARTS, VQ_PARTS, check_parts
from janus.training.recipe.architecture import render_architecture
from janus.training.recipe.fields import NONE, RecipeError, Section, number
from janus.training.recipe.learning import FlowLearning, Mistakes, Reinforcement, VAELearning, VQLearning
from janus.training.recipe.sections import (
    Data,
    LoRA,
    LossWeights,
    Optimizer,
    Parallel,
    Schedule,
    Start,
)
from janus.training.recipe.tasks import check_autoencoder, check_janus, check_siglip
from janus.training.recipe.watch import Checkpoints, Defaults, Evaluation, Log

if TYPE_CHECKING:
    from janus.training.vae import VAETraining
    from janus.training.vq import VQTraining

Task = Literal["janus", "sft", "siglip", "vq", "vae"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """A run of training.

    `task`: "janus" trains on a mixture of tasks at a ratio; "sft" fine-tunes a whole checkpoint, on a
    ratio or else on sources by their weights; "siglip" trains the vision tower, with the language model
    as the other tower, to tell which captions are of which pictures (`janus.training.siglip`); "vq"
    trains the picture tokenizer, with the settings `vq`, and "vae" the autoencoder of JanusFlow's
    latents, with those of `vae`. The `model` says what the weights begin as, and which family they are
    of: a JanusFlow learns to draw with the settings `flow`, and a Janus with those of `reinforce` from
    what it draws itself, and of `mistakes` from captions that are mistaken. `train` names the parts that
    learn (`janus.training.parts`), beside those that get adapters by `lora`. `data` are read for so many
    `steps`, each of a `batch` of rows (packed ones; documents without packing; pictures for "siglip",
    "vq" and "vae") over all processes (`parallel`), which take theirs in `accumulate` turns.

    `optimizer`, `schedule` and the weights in `loss` say how it learns. `precision`: "autocast" keeps the
    weights in float32 and computes in bfloat16, "bfloat16" keeps them in it too; sums over processes are
    float32. `activation_checkpointing` computes blocks twice instead of keeping what is inside them, and
    `compile` gives them to torch.compile. `ema` is the decay of the weights' moving average, and none is kept
    if it is left out. `log`, `checkpoint` and `evaluate` say what is seen and kept meanwhile, `defaults` what
    the model is drawn with. `seed` decides every random number.
    """

    task: Task = "janus"
    model: Start
    train: tuple[str, ...] = ()
    data: Data
    optimizer: Optimizer
    schedule: Schedule = field(default_factory=Schedule)
    steps: int = number(least=1)
    batch: int = number(least=1)
    accumulate: int = number(1, least=1)
    precision: Literal["float32", "autocast", "bfloat16"] = "autocast"
    parallel: Parallel = field(default_factory=Parallel)
    activation_checkpointing: bool = False
    compile: bool = False
    ema: float | None = number(None, least=0, below=1)
    loss: LossWeights = field(default_factory=LossWeights)
    vq: VQLearning | None = None
    vae: VAELearning | None = None
    flow: FlowLearning | None = None
    reinforce: Reinforcement | None = None
    mistakes: Mistakes | None = None
    lora: LoRA | None = None
    log: Log = field(default_factory=Log)
    checkpoint: Checkpoints = field(default_factory=Checkpoints)
    evaluate: Evaluation | None = None
    defaults: Defaults | None = None
    seed: int = number(0, least=0, most=2**63 - 1)

    def check(self) -> None:
        self._check_what_learns()
        if self.batch % self.accumulate:
            text = f"{self.batch} is not a multiple of accumulate = {self.accumulate}: change one of them"
            raise RecipeError(("batch",), text)
        spent = self.schedule.warmup + (self.schedule.decay or 0)
        if spent > self.steps:
            parts = "of warmup and decay" if self.schedule.decay else "of warmup"
            text = (
                f"{spent} steps {parts} are more than steps = {self.steps}: have fewer, or train for longer"
            )
            raise RecipeError(("schedule", "decay" if self.schedule.decay else "warmup"), text)
        if self.is_of_pictures:
            check_autoencoder(self)
        elif self.task == "siglip":
            check_siglip(self)
        else:
            check_janus(self)

    @property
    def is_of_pictures(self) -> bool:
        """Whether it trains what turns pictures into codes or latents, by itself."""
        return self.task in ("vq", "vae")

    @property
    def has_drawings(self) -> bool:
        """Whether pictures to be drawn are among its data."""
        sources = (*self.data.sources, *(self.evaluate.sources if self.evaluate else ()))
        return any(source.task == "drawing" for source in sources)

    @property
    def aligns(self) -> bool:
        """Whether a JanusFlow's tokens of pictures are aligned with what its encoder sees of them."""
        return self.task != "siglip" and self.has_drawings and bool(self.loss.alignment)

    @property
    def picture_size(self) -> int:
        """The side, in pixels, of the pictures that an autoencoder learns from."""
        assert self.is_of_pictures
        learning = (self.vq or VQLearning()) if self.task == "vq" else (self.vae or VAELearning())
        return learning.picture_size

    def _check_what_learns(self) -> None:
        for place in range(len(self.train)):
            try:
                check_parts(self.train[: place + 1], self._parts())
            except ValueError as error:
                raise RecipeError(("train", place), str(error)) from None
        if not self.train and self.lora is None:
            raise RecipeError(("train",), "is empty, and there is no lora: name the parts that learn")

    def _parts(self) -> tuple[str, ...]:
        """The parts of the model, as far as the recipe tells: a checkpoint's may be of either kind."""
        if self.is_of_pictures:
            return tuple(VQ_PARTS if self.task == "vq" else VAE_PARTS)
        if isinstance(self.model.architecture, JanusFlowConfig):
            return tuple(FLOW_PARTS)
        return tuple(PARTS if self.model.checkpoint is None else PARTS | FLOW_PARTS)

    def check_kind(self, config: AnyConfig) -> None:
        """RecipeError where it says what a model of this architecture knows nothing of.

        Of a checkpoint only who has read it can tell, so that it is for them to call.
        """
        flow = isinstance(config, JanusFlowConfig)
        changed = self.loss.alignment != LossWeights().alignment
        foreign = (
            {
                ("model", "vq"): self.model.vq is not None,
                ("model", "code_embedding"): self.model.code_embedding != "random",
                ("defaults", "temperatures"): bool(self.defaults and self.defaults.temperatures),
                ("reinforce",): self.reinforce is not None,
                ("mistakes",): self.mistakes is not None,
            }
            if flow
            else {
                ("model", "vae"): self.model.vae is not None,
                ("flow",): self.flow is not None,
                ("loss", "alignment"): changed,
            }
        )
        for key, given in foreign.items():
            if given:
                name = "a JanusFlow" if flow else "a Janus, which draws by codes"
                raise RecipeError(key, f"says nothing to {name}: take it out")
        if not flow and self.defaults is not None and not self.defaults.temperatures:
            raise RecipeError(("defaults", "temperatures"), "is missing: give at least one to draw with")

    def vq_training(self) -> VQTraining:
        """The settings of `janus.training.vq` for a recipe of task "vq"."""
        from janus.training.vq import VQTraining

        assert self.task == "vq"
        settings = self._autoencoding(self.vq or VQLearning())
        if settings["start_latents"] is None and (self.model.checkpoint or self.model.vq):
            settings["start_latents"] = 0  # its codebook goes on: what else names codes would lose them
        return VQTraining(**settings)

    def vae_training(self) -> VAETraining:
        """The settings of `janus.training.vae` for a recipe of task "vae"."""
        from janus.training.vae import VAETraining

        assert self.task == "vae"
        return VAETraining(**self._autoencoding(self.vae or VAELearning()))

    def _autoencoding(self, learning: VQLearning | VAELearning) -> dict[str, Any]:
        """The section's settings, and those that come from other sections."""
        optimizer = self.optimizer
        assert optimizer.clip is not None  # else the recipe would not have been made
        own = {each.name: getattr(learning, each.name) for each in fields(learning)}
        del own["picture_size"]
        return {
            **own,
            "learning_rate": optimizer.lr,
            "betas": optimizer.betas,
            "weight_decay": optimizer.weight_decay,
            "clip": optimizer.clip,
            "bfloat16": self.precision == "autocast",
            "seed": self.seed,
        }

    def to_dict(self) -> dict[str, Any]:
        """The tables, lists, texts and numbers of a file; `build` makes an equal recipe of them."""
        return _plain(self)

    @property
    def fingerprint(self) -> str:
        """Equal for equal recipes, in whatever file and order they were written: 16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, JanusConfig | JanusFlowConfig | VQConfig | VAEConfig):
        return render_architecture(value)
    if is_dataclass(value):
        values = {each: getattr(value, each.name) for each in fields(value)}
        absent = {each for each in values if values[each] is None and each.default is None}
        return {each.name: _plain(values[each]) for each in values if each not in absent}
    if value is None:
        return NONE
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The keys, as an override names them, in which two recipes differ."""
    return sorted(_differing(one.to_dict(), other.to_dict(), ""))


def _differing(one: Any, other: Any, key: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        names = {**one, **other}
        inner = f"{key}." if key else ""
        return [
            found for name in names for found in _differing(one.get(name), other.get(name), f"{inner}{name}")
        ]
    return [] if one == other else [key]
