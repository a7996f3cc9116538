"""The sections of a recipe, each seeing to its own fields; `Recipe` itself is in `recipe`.

A step is one update of the weights; shares and dropouts are from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from janus.config import JanusConfig, JanusFlowConfig, VQConfig
from janus.models.vae import VAEConfig
from janus.training.recipe.architecture import parse_architecture
from janus.training.recipe.fields import RecipeError, Section, check_name, check_names, number, show
from janus.training.worlds.shapes.questions import TAUGHT_CATEGORIES
from janus.training.worlds.shapes.sampling import DRAWN_CATEGORIES
from janus.training.worlds.shapes.scene import COLORS, NEW_COLORS

Kind = Literal["understanding", "text", "drawing"]
KINDS: tuple[Kind, ...] = ("understanding", "text", "drawing")
BACKBONE = ("vision", "language")  # what a model of the family sees and speaks with


@dataclass(frozen=True, kw_only=True)
class Start(Section):
    """What the weights are before the first step.

    Either `checkpoint`, the folder or hub id of a whole model; or an `architecture`, the name of a preset or
    a table of sizes (`architecture`, beside this file), whose weights are random but for the parts that are
    given: `vision`, the name of a SigLIP of timm, `language`, a folder or hub id of Llama's safetensors,
    or for both a `backbone`, a folder or hub id of a Janus or JanusFlow that has them; `vq`, a folder of this
    library. (A `vq` may take the place of a checkpoint's, too.) `vae` is the folder or
    hub id of the autoencoder that a JanusFlow's pictures go through; left out, that in the checkpoint's own
    folder `vae`, else the released one. It does not learn. `processor` is the folder or hub id of the
    tokenizer's and processor's files, the checkpoint's own if left out; in its place there can be a `world`,
    from whose sentences a tokenizer of the architecture's vocabulary is made. `code_embedding` is what the
    table of codes that the language model reads begins as: random, or the tokenizer's codebook at unit length
    (`janus.training.parts`).
    """

    checkpoint: str | None = None
    architecture: JanusConfig | JanusFlowConfig | VQConfig | VAEConfig | None = field(
        default=None, metadata={"parse": parse_architecture}
    )
    processor: str | None = None
    world: Literal["shapes"] | None = None
    vision: str | None = None
    language: str | None = None
    backbone: str | None = None
    vq: str | None = None
    vae: str | None = None
    code_embedding: Literal["random", "codebook"] = "random"

    def check(self) -> None:
        given = [name for name in (*BACKBONE, "world", "backbone") if getattr(self, name) is not None]
        if self.checkpoint is None and self.architecture is None:
            raise RecipeError(("checkpoint",), "is missing: give a folder or hub id, or an architecture")
        if self.checkpoint is not None:
            given += [] if self.architecture is None else ["architecture"]
            given += [] if self.code_embedding == "random" else ["code_embedding"]
            if given:
                text = f"contradicts checkpoint = {show(self.checkpoint)}, which holds it: leave one out"
                raise RecipeError((given[-1],), text)
        for name in BACKBONE:
            if self.backbone is not None and getattr(self, name) is not None:
                text = f"contradicts backbone = {show(self.backbone)}, which holds it: leave one out"
                raise RecipeError((name,), text)
        if self.world is not None and self.processor is not None:
            text = f"contradicts processor = {show(self.processor)}: the tokenizer is of one of them"
            raise RecipeError(("world",), text)


@dataclass(frozen=True, kw_only=True)
class Columns(Section):
    """How a dataset calls `messages`, `images`, `prompt`, `image`, `codes` and `text`, where otherwise."""

    messages: str | None = None
    images: str | None = None
    prompt: str | None = None
    image: str | None = None
    codes: str | None = None
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """Where examples come from, all of one `task`.

    One of `path` (JSONL, tar shards, or a folder of codes that `janus pretokenize` wrote; a pattern with
    * is all that fit it), `dataset` (a Hugging Face dataset, of which the `split` is read, with its own
    names of `columns`; of a row with messages, a prompt and a text, the task's counts) and `world` (endless
    synthetic scenes; with a `color`, those that show it; of some of its `categories`, and then many
    questions about each picture, or of those that models are judged by; with objects on its grid or at
    other `places`, on the finer lattice or anywhere; with `nameless` among them things whose shape or
    color has no name of its own). Among the sources of one task, examples are drawn in proportion to
    `weight`.
    """

    task: Kind
    path: str | None = None
    dataset: str | None = None
    split: str = "train"
    columns: Columns | None = None
    world: Literal["shapes"] | None = None
    color: str | None = None
    categories: tuple[str, ...] = ()
    places: Literal["grid", "lattice", "anywhere"] = "grid"
    nameless: bool = False
    weight: float = number(1.0, above=0)

    def check(self) -> None:
        given = [name for name in ("path", "dataset", "world") if getattr(self, name) is not None]
        if not given:
            raise RecipeError(("path",), "is missing: give a path, a dataset or a world")
        if len(given) > 1:
            raise RecipeError((given[1],), f"contradicts {given[0]}: a source is one of them")
        if self.dataset is None and self.split != "train":
            raise RecipeError(("split",), f"{show(self.split)} is of a dataset: give one, or leave it out")
        if self.color is not None:
            if self.world is None or self.task == "text":
                text = f"{show(self.color)} is of pictures of a world: give a world, or leave it out"
                raise RecipeError(("color",), text)
            check_name(self.color, COLORS + NEW_COLORS, "color")
        self._check_categories()
        if self.places != "grid" and (self.world is None or self.task == "text"):
            text = f"{show(self.places)} is of pictures of a world: give a world, or leave it out"
            raise RecipeError(("places",), text)
        if self.nameless and (self.world is None or self.task == "text"):
            text = "is of pictures of a world: give a world, or leave it out"
            raise RecipeError(("nameless",), text)
        if self.dataset is None and self.columns is not None:
            raise RecipeError(("columns",), "are of a dataset: give one, or leave them out")

    def _check_categories(self) -> None:
        if self.categories and (self.world is None or self.task == "text"):
            text = "are of pictures of a world: give a world, or leave them out"
            raise RecipeError(("categories",), text)
        known = DRAWN_CATEGORIES if self.task == "drawing" else TAUGHT_CATEGORIES
        check_names("categories", self.categories, known)


@dataclass(frozen=True, kw_only=True)
class Ratio(Section):
    """How many examples are of `understanding`, `text` and `drawing` in a step, as parts of their sum."""

    understanding: float = number(0.0, least=0)
    text: float = number(0.0, least=0)
    drawing: float = number(0.0, least=0)

    def check(self) -> None:
        if not any(getattr(self, kind) for kind in KINDS):
            raise RecipeError((), "is 0:0:0: give at least one of understanding, text and drawing a part")


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """What is read, and how it is laid out.

    Every step mixes the tasks of the `sources` at the `ratio`. Sequences are of at most `sequence_length`
    tokens, several documents in a row if `packing`. A document that is longer (`overlong`) is left out
    ("drop"), stops the run ("error") or loses the end of its text, never of a picture ("truncate_text").
    A row that cannot be read, or whose pictures cannot, stops the run (`unreadable` "error") or is left out
    ("drop"); a run that was stopped may go on with "drop". The log tells how many were left out.
    Pictures to be drawn are squares: the middle of what there is (`crop` "center"), or another ("random").
    `prompt_dropout` is the share of drawing prompts that are replaced by padding, for
    guidance. `workers` are the processes that read.
    """

    sources: tuple[Source, ...]
    ratio: Ratio | None = None
    sequence_length: int = number(4096, least=2)
    packing: bool = True
    overlong: Literal["drop", "error", "truncate_text"] = "drop"
    unreadable: Literal["error", "drop"] = "error"
    crop: Literal["center", "random"] = "center"
    prompt_dropout: float = number(0.1, least=0, most=1)
    workers: int = number(2, least=0)

    def check(self) -> None:
        if not self.sources:
            raise RecipeError(("sources",), "is empty: give at least one source")
        if self.ratio is None:
            return
        kinds = {source.task for source in self.sources}
        for kind in KINDS:
            part = getattr(self.ratio, kind)
            if part and kind not in kinds:
                text = f"{part:g} has no source: add one with task = {show(kind)}, or give 0"
                raise RecipeError(("ratio", kind), text)
            if kind in kinds and not part:
                place = next(place for place, source in enumerate(self.sources) if source.task == kind)
                text = f"{show(kind)} has no part in the ratio: give ratio.{kind}, or take the source out"
                raise RecipeError(("sources", place, "task"), text)


@dataclass(frozen=True, kw_only=True)
class Optimizer(Section):
    """Of `kind` "adamw"; or "muon" for the matrices of the blocks, and AdamW for all else.

    `betas` and `eps` are AdamW's, `lr` and `weight_decay` of both; the latter is not of the kinds of
    parameters in `undecayed`. Gradients are cut to the norm `clip` first.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = number(above=0)
    betas: tuple[float, float] = number((0.9, 0.95), least=0, below=1)
    eps: float = number(1e-8, above=0)
    weight_decay: float = number(0.0, least=0)
    undecayed: tuple[Literal["norms", "biases", "embeddings"], ...] = ("norms", "biases", "embeddings")
    clip: float | None = number(1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """How the rate changes: `janus.training.schedule`.

    `kind` says what follows `warmup` steps of rising: constant; or falling to the share `final` of the rate,
    over all that is left (cosine) or over the last `decay` steps (wsd: warm-up, stable, decay).
    """

    kind: Literal["constant", "cosine", "wsd"] = "constant"
    warmup: int = number(0, least=0)
    decay: int | None = number(None, least=1)
    final: float | None = number(None, least=0, most=1)

    def check(self) -> None:
        if self.kind == "wsd" and self.decay is None:
            raise RecipeError(("decay",), 'is missing: kind = "wsd" falls over the last steps; say how many')
        if self.kind != "wsd" and self.decay is not None:
            raise RecipeError(("decay",), f'{self.decay} is of kind = "wsd", not {show(self.kind)}')
        if self.kind == "constant" and self.final is not None:
            raise RecipeError(("final",), f'{self.final} is of kind = "cosine" or "wsd", not "constant"')


@dataclass(frozen=True, kw_only=True)
class Parallel(Section):
    """How several processes share the work.

    `kind` "ddp": each holds all of the model. "fsdp": it is split over `shards` processes, all if left out;
    with `replicas`, as many groups of such hold all of it (HSDP).
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    shards: int | None = number(None, least=1)
    replicas: int | None = number(None, least=1)

    def check(self) -> None:
        for name in ("shards", "replicas"):
            if self.kind == "ddp" and getattr(self, name) is not None:
                raise RecipeError((name,), f'{getattr(self, name)} is of kind = "fsdp", not "ddp"')
        if self.replicas is not None and self.shards is None:
            raise RecipeError(("shards",), f"is missing beside replicas = {self.replicas}: give both")


@dataclass(frozen=True, kw_only=True)
class LossWeights(Section):
    """What a token of `text` and a code of a `picture` count; the papers make no difference.

    Of a JanusFlow's picture it is a token of latents that counts, by its error of velocity; `alignment` is
    what its likeness to the understanding encoder's features counts beside it.
    """

    text: float = number(1.0, least=0)
    picture: float = number(1.0, least=0)
    alignment: float = number(1.0, least=0)

    def check(self) -> None:
        if not self.text and not self.picture:
            raise RecipeError(
                ("text",), "is 0 as picture is, and nothing is left to learn: give one a weight"
            )


@dataclass(frozen=True, kw_only=True)
class LoRA(Section):
    """Low-rank adapters in place of weights that stand still; needs the package peft.

    A layer has the product of its two matrices of `rank`, times `alpha` / `rank`, added, and `dropout` before
    them. `targets` are the linear layers that get one, by the ends of their names, such as "attention.qkv".
    The model that is written has them merged; beside it they are by themselves (`janus.training.lora`).
    """

    rank: int = number(8, least=1)
    alpha: float = number(16.0, above=0)
    dropout: float = number(0.0, least=0, below=1)
    targets: tuple[str, ...] = ("attention.qkv", "attention.o_proj", "mlp.gate_up", "mlp.down_proj")

    def check(self) -> None:
        if not self.targets:
            raise RecipeError(("targets",), "is empty: name the layers, or leave it out for the usual ones")
