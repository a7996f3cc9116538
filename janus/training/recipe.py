"""A recipe: all that decides what a run of training computes, as frozen data.

Every section fits its own fields (`recipe_fields`, `recipe_sections`), and `Recipe` sees to what they say
together. Read from TOML or YAML, and written, in `recipe_file`. Numbers of the papers: `recipes/`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from janus.config import JanusConfig, VQConfig
from janus.training.architecture import render_architecture
from janus.training.parts import PARTS, VQ_PARTS, check_parts
from janus.training.recipe_fields import NONE, RecipeError, Section, number, show
from janus.training.recipe_sections import (
    Checkpoints,
    Data,
    Defaults,
    Evaluation,
    Log,
    LoRA,
    LossWeights,
    Optimizer,
    Parallel,
    Schedule,
    Start,
    VQLearning,
)

if TYPE_CHECKING:
    from janus.training.vq import VQTraining

Task = Literal["janus", "sft", "vq"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """A run of training.

    `task`: "janus" trains on a mixture of tasks at a ratio; "sft" fine-tunes a whole checkpoint, on a ratio
    or else on sources by their weights; "vq" trains the picture tokenizer, with the settings `vq`. The
    `model` says what the weights begin as; `train` names the parts that learn (`janus.training.parts`),
    beside those that get adapters by `lora`. `data` are read for so many `steps`, each of a `batch` of rows
    (packed ones; documents without packing; pictures for "vq") over all processes (`parallel`), which take
    theirs in `accumulate` turns.

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
        if self.task == "vq":
            self._check_vq()
        else:
            self._check_janus()

    def _check_what_learns(self) -> None:
        for place in range(len(self.train)):
            try:
                check_parts(self.train[: place + 1], VQ_PARTS if self.task == "vq" else PARTS)
            except ValueError as error:
                raise RecipeError(("train", place), str(error)) from None
        if not self.train and self.lora is None:
            raise RecipeError(("train",), "is empty, and there is no lora: name the parts that learn")

    def _check_vq(self) -> None:
        """What concerns the tokenizer, and nothing that concerns the language model."""
        if self.precision == "bfloat16":
            text = '"bfloat16" is too coarse for the weights of a tokenizer: give "autocast" or "float32"'
            raise RecipeError(("precision",), text)
        if self.optimizer.clip is None:
            raise RecipeError(("optimizer", "clip"), 'is none, and task = "vq" needs one: give a number')
        own = {
            ("accumulate",): self.accumulate > 1,
            ("activation_checkpointing",): self.activation_checkpointing,
            ("compile",): self.compile,
            ("parallel", "kind"): self.parallel.kind == "fsdp",
            ("lora",): self.lora is not None,
            ("loss",): self.loss != LossWeights(),
            ("evaluate",): self.evaluate is not None,
            ("defaults",): self.defaults is not None,
        }
        for key, given in own.items():
            if given:
                raise RecipeError(key, 'says nothing to task = "vq": take it out')
        for name in ("vision", "language", "processor", "world"):
            if getattr(self.model, name) is not None:
                raise RecipeError(("model", name), 'says nothing to task = "vq": take it out')
        if self.model.vq is not None and self.model.checkpoint is not None:
            text = f"contradicts checkpoint = {show(self.model.checkpoint)}: the tokenizer is of one of them"
            raise RecipeError(("model", "vq"), text)
        if self.data.ratio is not None:
            raise RecipeError(
                ("data", "ratio"), 'says nothing to task = "vq", all of whose data are pictures'
            )
        for place, source in enumerate(self.data.sources):
            if source.task != "drawing":
                text = f'{show(source.task)} is not read for task = "vq": give sources of task "drawing"'
                raise RecipeError(("data", "sources", place, "task"), text)

    def _check_janus(self) -> None:
        if self.vq is not None:
            raise RecipeError(("vq",), f'is of task = "vq", not {show(self.task)}: take it out')
        if "vq" in self.train:
            text = f'no loss of task = {show(self.task)} reaches "vq": train it by itself, with task = "vq"'
            raise RecipeError(("train", self.train.index("vq")), text)
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
        if self.task == "janus" and self.data.ratio is None:
            raise RecipeError(("data", "ratio"), 'is missing: task = "janus" mixes tasks, at a ratio')

        if self.lora is not None and self.parallel.kind == "fsdp":
            text = 'is "fsdp", which would split weights that stand still: adapters train with "ddp"'
            raise RecipeError(("parallel", "kind"), text)

    def vq_training(self) -> VQTraining:
        """The settings of `janus.training.vq` for a recipe of task "vq"."""
        from janus.training.vq import VQTraining

        learning, optimizer = self.vq or VQLearning(), self.optimizer
        assert self.task == "vq"
        assert optimizer.clip is not None  # else the recipe would not have been made
        own = {each.name: getattr(learning, each.name) for each in fields(learning)}
        del own["picture_size"]
        return VQTraining(
            **own,
            learning_rate=optimizer.lr,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
            clip=optimizer.clip,
            bfloat16=self.precision == "autocast",
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """The tables, lists, texts and numbers of a file; `build` makes an equal recipe of them."""
        return _plain(self)

    @property
    def fingerprint(self) -> str:
        """Equal for equal recipes, in whatever file and order they were written: 16 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, JanusConfig | VQConfig):
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
