"""A recipe: all that decides what a run of training computes, as frozen data.

Every section fits its own fields (`recipe_fields`; `recipe_sections`, `recipe_learning`, `recipe_watch`), and
`Recipe` sees to what they say together. Read from TOML or YAML, and written, in `recipe_file`. Numbers of the
papers: `recipes/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from janus.config import AnyConfig, JanusConfig, JanusFlowConfig, VQConfig
from janus.models.vae import VAEConfig
from janus.training.architecture import render_architecture
from janus.training.parts import FLOW_PARTS, PARTS, VAE_PARTS, VQ_PARTS, check_parts
from janus.training.recipe_fields import NONE, RecipeError, Section, number, show
from janus.training.recipe_learning import FlowLearning, Reinforcement, VAELearning, VQLearning
from janus.training.recipe_sections import (
    BACKBONE,
    Data,
    LoRA,
    LossWeights,
    Optimizer,
    Parallel,
    Schedule,
    Start,
)
from janus.training.recipe_watch import Checkpoints, Defaults, Evaluation, Log, PictureAsked

if TYPE_CHECKING:
    from janus.training.vae import VAETraining
    from janus.training.vq import VQTraining

Task = Literal["janus", "sft", "siglip", "vq", "vae"]
TOWERS = ("vision", "embed", "language")  # the parts that SigLIP's loss reaches


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """A run of training.

    `task`: "janus" trains on a mixture of tasks at a ratio; "sft" fine-tunes a whole checkpoint, on a ratio
    or else on sources by their weights; "siglip" trains the vision tower, with the language model as the
    other tower, to tell which captions are of which pictures (`janus.training.siglip`); "vq" trains the
    picture tokenizer, with the settings `vq`, and "vae" the autoencoder of JanusFlow's latents, with those of
    `vae`. The `model` says what the weights begin as,
    and which family they are of: a JanusFlow learns to draw with the settings `flow`, and a Janus with those
    of `reinforce` from what it draws itself. `train` names the parts that learn (`janus.training.parts`),
    beside those that get adapters by `lora`. `data` are read for so many `steps`, each of a `batch` of rows
    (packed ones; documents without packing; pictures for "siglip", "vq" and "vae") over all processes
    (`parallel`), which take theirs in `accumulate` turns.

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
            self._check_autoencoder()
        elif self.task == "siglip":
            self._check_siglip()
        else:
            self._check_janus()

    @property
    def is_of_pictures(self) -> bool:
        """Whether it trains what turns pictures into codes or latents, by itself."""
        return self.task in ("vq", "vae")

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

    def _check_autoencoder(self) -> None:
        """What concerns an autoencoder, and nothing that concerns the language model."""
        task = f"task = {show(self.task)}"
        if self.precision == "bfloat16":
            name = "a tokenizer" if self.task == "vq" else "an autoencoder"
            text = f'"bfloat16" is too coarse for the weights of {name}: give "autocast" or "float32"'
            raise RecipeError(("precision",), text)
        if self.optimizer.clip is None:
            raise RecipeError(("optimizer", "clip"), f"is none, and {task} needs one: give a number")
        other = "vae" if self.task == "vq" else "vq"
        own = {
            ("accumulate",): self.accumulate > 1,
            ("activation_checkpointing",): self.activation_checkpointing,
            ("compile",): self.compile,
            ("parallel", "kind"): self.parallel.kind == "fsdp",
            ("optimizer", "kind"): self.optimizer.kind == "muon",
            ("lora",): self.lora is not None,
            ("flow",): self.flow is not None,
            ("reinforce",): self.reinforce is not None,
            (other,): getattr(self, other) is not None,
            ("loss",): self.loss != LossWeights(),
            ("evaluate",): self.evaluate is not None,
            ("defaults",): self.defaults is not None,
            ("model", "code_embedding"): self.model.code_embedding != "random",
            ("log", "prompts"): bool(self.log.prompts),
        }
        self._refuse(own | self._of_documents(), task)
        for shown, asked in enumerate(self.log.pictures):
            if asked != PictureAsked(picture=asked.picture):
                text = f"says nothing to {task}, which asks nothing: take it out"
                raise RecipeError(("log", "pictures", shown, "question"), text)
        for name in (*BACKBONE, "backbone", "processor", "world", other):
            if getattr(self.model, name) is not None:
                raise RecipeError(("model", name), f"says nothing to {task}: take it out")
        if self.model.vq is not None and self.model.checkpoint is not None:
            text = f"contradicts checkpoint = {show(self.model.checkpoint)}: the tokenizer is of one of them"
            raise RecipeError(("model", "vq"), text)
        if self.task == "vae":
            self._check_vae_start()
        elif isinstance(self.model.architecture, VAEConfig | JanusFlowConfig):
            raise RecipeError(("model", "architecture"), "has no VQ tokenizer: give one's sizes, as a vq")
        if self.data.ratio is not None:
            raise RecipeError(("data", "ratio"), f"says nothing to {task}, all of whose data are pictures")
        self._check_drawings(task)

    def _check_siglip(self) -> None:
        """What concerns two towers that are compared, and nothing that concerns answers and drawings."""
        self._check_model()
        task = f"task = {show(self.task)}"
        for place, part in enumerate(self.train):
            if part not in TOWERS:
                text = f"no loss of {task} reaches {show(part)}: name parts among {', '.join(TOWERS)}"
                raise RecipeError(("train", place), text)
        own = {
            ("accumulate",): self.accumulate > 1,
            ("lora",): self.lora is not None,
            ("flow",): self.flow is not None,
            ("reinforce",): self.reinforce is not None,
            ("loss",): self.loss != LossWeights(),
            ("evaluate",): self.evaluate is not None,
            ("defaults",): self.defaults is not None,
            ("log", "prompts"): bool(self.log.prompts),
            ("log", "pictures"): bool(self.log.pictures),
            ("log", "world"): self.log.world is not None,
            ("data", "ratio"): self.data.ratio is not None,
        }
        self._refuse(own | self._of_documents(("crop",)), task)
        if self.parallel.kind == "fsdp":
            text = f'is "fsdp", and for {task} each process has both towers whole: give "ddp"'
            raise RecipeError(("parallel", "kind"), text)
        self._check_drawings(task)

    def _of_documents(self, more: tuple[str, ...] = ()) -> dict[tuple[str, ...], bool]:
        """The keys that say how documents are laid out, and whether they are given."""
        laid_out = ("sequence_length", "packing", "overlong", "prompt_dropout", *more)
        return {
            ("data", each.name): getattr(self.data, each.name) != each.default
            for each in fields(Data)
            if each.name in laid_out
        }

    def _refuse(self, given: Mapping[tuple[str, ...], bool], task: str) -> None:
        for key, is_given in given.items():
            if is_given:
                raise RecipeError(key, f"says nothing to {task}: take it out")

    def _check_drawings(self, task: str) -> None:
        for place, source in enumerate(self.data.sources):
            if source.task != "drawing":
                text = f'{show(source.task)} is not read for {task}: give sources of task "drawing"'
                raise RecipeError(("data", "sources", place, "task"), text)

    def _check_vae_start(self) -> None:
        if self.model.vae is not None:
            text = 'names one that stands still: give the one to go on from as checkpoint, for task = "vae"'
            raise RecipeError(("model", "vae"), text)
        if self.model.checkpoint is None and not isinstance(self.model.architecture, VAEConfig):
            raise RecipeError(
                ("model", "architecture"), "is no autoencoder of latents: give the sizes, as a vae"
            )

    def _check_model(self) -> None:
        """What the model of a task must be that trains more than a tokenizer or an autoencoder."""
        for name in ("vq", "vae"):
            if getattr(self, name) is not None:
                raise RecipeError((name,), f"is of task = {show(name)}, not {show(self.task)}: take it out")
        if isinstance(self.model.architecture, VAEConfig):
            text = "is an autoencoder of latents alone: give the parts of a JanusFlow"
            raise RecipeError(("model", "architecture"), text)
        if isinstance(self.model.architecture, JanusConfig | JanusFlowConfig):
            self.check_kind(self.model.architecture)
        if isinstance(self.model.architecture, VQConfig):
            raise RecipeError(
                ("model", "architecture"), "is a VQ tokenizer alone: give the other parts' sizes"
            )
        if self.model.checkpoint is None:
            if self.task == "sft":
                raise RecipeError(
                    ("model", "checkpoint"), 'is missing: task = "sft" fine-tunes a whole model'
                )
            if self.model.processor is None and self.model.world is None:
                text = "is missing beside an architecture: give the folder or hub id of a tokenizer"
                raise RecipeError(("model", "processor"), text)
        if self.optimizer.kind == "muon" and self.parallel.kind == "fsdp":
            text = 'is "muon", which wants matrices whole, and "fsdp" splits them: give "adamw", or "ddp"'
            raise RecipeError(("optimizer", "kind"), text)

    def _check_janus(self) -> None:
        self._check_model()
        if "vq" in self.train:
            text = f'no loss of task = {show(self.task)} reaches "vq": train it by itself, with task = "vq"'
            raise RecipeError(("train", self.train.index("vq")), text)
        if self.task == "janus" and self.data.ratio is None:
            raise RecipeError(("data", "ratio"), 'is missing: task = "janus" mixes tasks, at a ratio')

        if self.lora is not None and self.parallel.kind == "fsdp":
            text = 'is "fsdp", which would split weights that stand still: adapters train with "ddp"'
            raise RecipeError(("parallel", "kind"), text)
        if self.lora is not None and self.lora.targets == LoRA().targets and "language" in self.train:
            text = '"language" learns as a whole, and by the adapters of lora: take it out of one of them'
            raise RecipeError(("train", self.train.index("language")), text)
        if self.reinforce is not None and not self.loss.picture:
            text = "is 0, and to reinforce, weights of drawings are multiples of it: raise it"
            raise RecipeError(("loss", "picture"), text)
        if self.reinforce is not None and self.parallel.kind == "fsdp":
            text = 'is "fsdp", and to reinforce, each process draws with the whole model: give "ddp"'
            raise RecipeError(("parallel", "kind"), text)

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
        return VQTraining(**self._autoencoding(self.vq or VQLearning()))

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
