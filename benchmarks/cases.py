"""What is measured: the shapes that Janus-Pro-1B and -7B really compute, taken from their presets.

A name is <what>_<size>_<dtype>. `cpu` marks what a CPU does in reasonable time, `quick` the few small ones;
`headline` is what README's table calls a case, and empty for those that it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from janus.config import FLOW_PRESETS, LATENT_PATCH, PRESETS, JanusConfig, JanusFlowConfig, LanguageConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MODELS: dict[str, JanusConfig] = {"1b": PRESETS["Janus-Pro-1B"], "7b": PRESETS["Janus-Pro-7B"]}
SMALL = MODELS["1b"]
PICTURE = SMALL.picture_tokens  # 576, of a picture seen as of one drawn
PROMPT = 30  # tokens of a question beside a picture, or of a prompt to draw
QUESTION = PICTURE + PROMPT
HALFWAY = PROMPT + PICTURE // 2 + 2  # keys at a step in the middle of drawing
PICTURES = (1, 16, 64)  # drawn at once; guidance makes two rows of each


def counted(number: int) -> str:
    return f"{number} picture{'s' if number > 1 else ''}"


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, its in DTYPES.items() if its is dtype)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    dtype: torch.dtype
    cpu: bool = False
    quick: bool = False
    headline: str = ""
    once: bool = False  # minutes long on a CPU: timed there in its only call
    alone: bool = False  # too large side by side: one implementation after the other


# --- attention over whole sequences ---


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """`documents` are the lengths of the sequences in each row, which do not see each other.

    A row begins with padding, if they leave room.
    """

    heads: int
    kv_heads: int
    head_width: int
    length: int
    documents: tuple[tuple[int, ...], ...]
    causal: bool

    @property
    def rows(self) -> int:
        return len(self.documents)

    @property
    def padded(self) -> bool:
        return any(sum(row) != self.length for row in self.documents)

    @property
    def packed(self) -> bool:
        return any(len(row) > 1 for row in self.documents)


def _attention() -> Iterator[AttentionCase]:
    vision = SMALL.vision
    for rows, dtype in ((1, "bf16"), (8, "bf16"), (16, "bf16"), (1, "fp32"), (8, "fp16")):
        yield AttentionCase(
            name=f"attention_vit_{rows}_{dtype}",
            dtype=DTYPES[dtype],
            heads=vision.heads,
            kv_heads=vision.heads,
            head_width=vision.width // vision.heads,
            length=vision.tokens,
            documents=((vision.tokens,),) * rows,
            causal=False,
            cpu=rows == 1,
            quick=rows == 1,
            headline=f"attention of the vision tower, {counted(rows)}"
            if dtype == "bf16" and rows != 8
            else "",
        )

    def of(
        what: str, size: str, dtype: str, length: int, documents: tuple[tuple[int, ...], ...], **flags: Any
    ) -> AttentionCase:
        language = MODELS[size.partition("_")[0]].language
        return AttentionCase(
            name=f"attention_{what}_{size}_{dtype}",
            dtype=DTYPES[dtype],
            heads=language.heads,
            kv_heads=language.kv_heads,
            head_width=language.head_width,
            length=length,
            documents=documents,
            causal=True,
            **flags,
        )

    for size in MODELS:
        for rows in (1, 16):
            for length in (QUESTION, 2048):
                small = size == "1b" and rows == 1
                headline = f"causal attention, {rows} × {length} positions, {size.upper()}"
                yield of(
                    "prefill",
                    f"{size}_{rows}x{length}",
                    "bf16",
                    length,
                    ((length,),) * rows,
                    cpu=small,
                    quick=small and length == QUESTION,
                    headline=headline if rows == 16 else "",
                )
    yield of("prefill", f"1b_1x{QUESTION}", "fp32", QUESTION, ((QUESTION,),), cpu=True, quick=True)
    # A batch of questions from a quarter of the longest to all of it.
    lengths = tuple((QUESTION * (row + 5) // 20,) for row in range(16))
    for size in MODELS:
        headline = f"causal attention, 16 questions of {lengths[0][0]} to {QUESTION}, {size.upper()}"
        yield of(
            "padded", f"{size}_16x{QUESTION}", "bf16", QUESTION, lengths, cpu=size == "1b", headline=headline
        )
        packed = ((QUESTION, 384, QUESTION, 2048 - 2 * QUESTION - 384),)
        headline = f"causal attention, 4 documents packed into 2048, {size.upper()}"
        yield of("packed", f"{size}_1x2048", "bf16", 2048, packed, cpu=size == "1b", headline=headline)


ATTENTION = tuple(_attention())


# --- attention of one new position over the cache ---


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """`starts` are the first keys that rows see, behind their padding; the first `shared` are one for all."""

    language: LanguageConfig
    keys: int
    starts: tuple[int, ...]
    shared: int = 0

    @property
    def rows(self) -> int:
        return len(self.starts)


def _decode() -> Iterator[DecodeCase]:
    for size, model in MODELS.items():
        for rows in (2, 8, 32, 128):
            # Rows come in pairs, with the prompt and without, of equal length; prompts differ by some words.
            starts = tuple(row // 2 % 4 * 4 for row in range(rows))
            for keys in (HALFWAY, QUESTION):
                small = size == "1b" and rows <= 8
                yield DecodeCase(
                    name=f"decode_attention_{size}_{rows}x{keys}_bf16",
                    dtype=torch.bfloat16,
                    language=model.language,
                    keys=keys,
                    starts=starts,
                    cpu=small,
                    quick=small and rows == 2,
                    headline=f"attention of a step, {counted(rows // 2)}, {keys} keys, {size.upper()}"
                    if keys == QUESTION and rows in (2, 32)
                    else "",
                )
            if rows > 2:
                yield DecodeCase(
                    name=f"decode_attention_shared_{size}_{rows}x{QUESTION}_bf16",
                    dtype=torch.bfloat16,
                    language=model.language,
                    keys=QUESTION,
                    starts=(0,) * rows,
                    shared=PROMPT,
                    cpu=small and rows == 8,
                )
    yield DecodeCase(
        name=f"decode_attention_1b_2x{QUESTION}_fp32",
        dtype=torch.float32,
        language=SMALL.language,
        keys=QUESTION,
        starts=(0, 0),
        cpu=True,
        quick=True,
    )


DECODE_ATTENTION = tuple(_decode())


# --- the codebook ---


@dataclass(frozen=True, kw_only=True)
class CodebookCase(Case):
    """`task` is "nearest_code" or "lookup"."""

    task: str
    pictures: int
    side: int = SMALL.grid
    codes: int = SMALL.vq.codes
    width: int = SMALL.vq.code_width


CODEBOOK = tuple(
    CodebookCase(
        name=f"{task}_{pictures}_{dtype}",
        dtype=DTYPES[dtype],
        task=task,
        pictures=pictures,
        cpu=pictures <= 16 and dtype == "fp32",
        quick=pictures == 1,
        headline=f"nearest code, {counted(pictures)}" if (task, dtype) == ("nearest_code", "fp32") else "",
    )
    for task in ("nearest_code", "lookup")
    for dtype in ("fp32", "bf16")
    for pictures in PICTURES
)


# --- what lies between the matrix products of the language model ---


@dataclass(frozen=True, kw_only=True)
class LanguageCase(Case):
    """`rows` sequences of `positions` each."""

    language: LanguageConfig
    rows: int
    positions: int


def _language(what: str, headline: str) -> Iterator[LanguageCase]:
    """Steps of 1 to 64 pictures, and one question."""
    for size, model in MODELS.items():
        for rows, positions in ((2, 1), (8, 1), (32, 1), (128, 1), (1, QUESTION)):
            for dtype in ("bf16", "fp32") if size == "1b" and rows <= 2 else ("bf16",):
                yield LanguageCase(
                    name=f"{what}_{size}_{rows}x{positions}_{dtype}",
                    dtype=DTYPES[dtype],
                    language=model.language,
                    rows=rows,
                    positions=positions,
                    cpu=size == "1b" and rows <= 8,
                    quick=size == "1b" and rows <= 2 and dtype == "bf16",
                    headline=f"{headline} in a step, {counted(rows // 2)}, {size.upper()}"
                    if rows == 32
                    else "",
                )


ADD_RMS_NORM = tuple(_language("add_rms_norm", "addition and norm"))
ROTARY = tuple(_language("rotary", "rotary positions and write to the cache"))
SWIGLU = tuple(_language("swiglu", "SwiGLU"))


# --- linear layers of a step ---


@dataclass(frozen=True, kw_only=True)
class LinearCase(Case):
    rows: int
    inputs: int
    outputs: int


def _linear() -> Iterator[LinearCase]:
    """Gate and up, the largest of a layer, at the rows of one answer, and of 1, 4 and 16 guided pictures."""
    for size, config in MODELS.items():
        for rows in (1, 2, 8, 32):
            yield LinearCase(
                name=f"linear_{rows}_{size}_bf16",
                dtype=torch.bfloat16,
                cpu=size == "1b",
                quick=size == "1b" and rows == 2,
                rows=rows,
                inputs=config.language.width,
                outputs=2 * config.language.mlp_width,
            )


LINEAR = tuple(_linear())


# --- choosing codes ---


@dataclass(frozen=True, kw_only=True)
class SampleCase(Case):
    """Guidance and temperature are the released models' own; `top_k` 0 keeps all codes."""

    pictures: int
    top_k: int = 0
    codes: int = SMALL.vq.codes
    guidance: float = 5.0
    temperature: float = 1.0


SAMPLE = tuple(
    SampleCase(
        name=f"sample{'_top_k' if top_k else ''}_{pictures}_{dtype}",
        dtype=DTYPES[dtype],
        pictures=pictures,
        top_k=top_k,
        cpu=pictures <= 16 and (dtype == "fp32" or pictures == 1),
        quick=pictures == 1 and dtype == "fp32" and not top_k,
        headline=f"guidance, noise and choice of codes, {counted(pictures)}"
        if (dtype, top_k) == ("fp32", 0)  # what drawing has
        else "",
    )
    for top_k, dtype in ((0, "bf16"), (0, "fp32"), (1000, "bf16"))
    for pictures in PICTURES
)


# --- whole models: what one waits for ---


@dataclass(frozen=True, kw_only=True)
class ModelCase(Case):
    """A model of this architecture with random weights. `task` is what the name begins with.

    `keys` are all that the last position sees, itself included; guidance makes two rows of each picture.
    """

    task: str
    model: JanusConfig
    pictures: int = 1
    keys: int = QUESTION


def _model_case(task: str, size: str, dtype: str, *, middle: str = "", **flags: Any) -> ModelCase:
    model = flags.pop("model", MODELS.get(size))
    name = "_".join(part for part in (task, middle, size, dtype) if part)
    return ModelCase(name=name, dtype=DTYPES[dtype], task=task, model=model, **flags)


def _draw() -> Iterator[ModelCase]:
    for size in MODELS:
        small = size == "1b"
        for dtype in ("bf16", "fp32") if small else ("bf16",):
            for pictures in (1, 4, 16, 64) if dtype == "bf16" else (1,):
                yield _model_case(
                    "picture_step",
                    size,
                    dtype,
                    middle="" if pictures == 1 else str(pictures),
                    pictures=pictures,
                    cpu=small and pictures <= 4,
                    alone=pictures == 64,
                    quick=small and pictures == 1 and dtype == "bf16",
                    headline=f"a step of drawing, {counted(pictures)}, {QUESTION} keys, {size.upper()}"
                    if dtype == "bf16"
                    else "",
                )
            if small:  # the larger model has the same tokenizer of pictures
                yield _model_case(
                    "vq_decode",
                    str(SMALL.picture_size),
                    dtype,
                    model=SMALL,
                    cpu=True,
                    quick=dtype == "bf16",
                    headline="codes to pixels, 1 picture" if dtype == "bf16" else "",
                )
            if small and dtype == "bf16":
                yield _model_case(
                    "picture", size, dtype, keys=PROMPT, once=True, headline="a whole picture, 1B"
                )


def _answer() -> Iterator[ModelCase]:
    for size in MODELS:
        small = size == "1b"
        for dtype in ("bf16", "fp32") if small else ("bf16",):
            flags = {"cpu": small, "quick": small and dtype == "bf16"}
            told = dtype == "bf16"
            headline = f"a step of answering, {QUESTION} keys, {size.upper()}" if told else ""
            yield _model_case("text_step", size, dtype, headline=headline, **flags)
            headline = f"reading a picture and {PROMPT} words, {size.upper()}" if told else ""
            yield _model_case("prefill", size, dtype, middle=str(QUESTION), headline=headline, **flags)
            if small:  # the larger model has the same vision tower
                headline = "seeing 1 picture" if told else ""
                yield _model_case("vision_encode", size, dtype, headline=headline, **flags)


def _shallow(model: JanusConfig, layers: int) -> JanusConfig:
    return replace(model, language=replace(model.language, layers=layers))


@dataclass(frozen=True, kw_only=True)
class FlowCase(ModelCase):
    """A JanusFlow with random weights; `side` is that of a picture's latents."""

    model: JanusFlowConfig
    side: int = 48

    @property
    def tokens(self) -> int:
        """Of a picture's latents."""
        return (self.side // LATENT_PATCH) ** 2


DRAW = tuple(_draw())
FLOW = (
    FlowCase(
        name="flow_step_1b_bf16",
        dtype=torch.bfloat16,
        task="flow_step",
        model=FLOW_PRESETS["JanusFlow-1.3B"],
        cpu=True,
        headline=f"a step of a flow, 1 picture, {QUESTION} positions, 1.3B",
    ),
)
ANSWER = tuple(_answer())
LOAD = (_model_case("load", "1b", "bf16", cpu=True, headline="loading, 1B"),)
TRAIN_STEP = (
    # Weights, gradients and AdamW's two averages of the whole model are too much for a small machine.
    _model_case("train_step", "1b_2layers", "bf16", model=_shallow(SMALL, 2), cpu=True),
    _model_case("train_step", "1b", "bf16", headline=f"a step of training, {QUESTION} positions, 1B"),
)
