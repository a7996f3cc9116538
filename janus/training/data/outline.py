"""Rows to outlines of documents: the ids that inference would read, and what each position is to predict.

S positions of one document, T codes of a drawn picture, or tokens of its latents in a flow. An outline knows
everything but pixels: its length is known, and can be cut, before any picture is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from janus.config import LATENT_PATCH, JanusConfig, JanusFlowConfig
from janus.inference.draw_batch import unconditional
from janus.inference.flow import seen
from janus.models.vae import VAEConfig
from janus.processing.chat import (
    OPENAI_ROLES,
    Message,
    conversation_images,
    format_conversation,
    format_drawing,
)
from janus.processing.processor import Processor
from janus.training.data.rows import Conversation, Drawing, Row, Text

IGNORE = -100  # the label of a position that predicts nothing: what cross_entropy leaves out by default
Task = Literal["understanding", "text", "drawing"]


@dataclass(frozen=True)
class Geometry:
    """Drawn pictures: `grid` codes along each side, `factor` pixels per code, `codebook` codes in all.

    In a flow there is no codebook, and tokens of latents stand where codes would.
    """

    grid: int
    factor: int
    codebook: int | None

    @classmethod
    def of(cls, config: JanusConfig) -> Geometry:
        return cls(grid=config.grid, factor=config.vq.factor, codebook=config.vq.codes)

    @classmethod
    def of_flow(cls, config: JanusFlowConfig, vae: VAEConfig) -> Geometry:
        """Pictures as JanusFlow draws them, of the size that it sees.

        ValueError for an autoencoder that does not fit it.
        """
        if vae.latent_channels != config.uvit.latent_channels:
            raise ValueError(
                f"the autoencoder's latents have {vae.latent_channels} channels, and the model's "
                f"{config.uvit.latent_channels}: give the one that it was made for"
            )
        factor, side = vae.factor * LATENT_PATCH, config.vision.image_size
        if side % factor:
            raise ValueError(
                f"pictures of {side} pixels are no whole number of tokens of {factor} pixels: give an "
                "autoencoder with fewer levels, or another image_size"
            )
        return cls(grid=side // factor, factor=factor, codebook=None)

    @property
    def tokens(self) -> int:
        """Codes of a picture, or tokens of its latents."""
        return self.grid**2

    @property
    def size(self) -> int:
        """Pixels along each side."""
        return self.grid * self.factor


@dataclass(frozen=True, kw_only=True, eq=False)
class Outline:
    """An `Example` before its pictures are decoded; the tensors are the example's, (S,) each.

    `pictures` are those that it sees; it draws `picture`, or `codes` (T,), or nothing.
    """

    ids: Tensor
    labels: Tensor
    image_mask: Tensor
    code_mask: Tensor
    code_labels_mask: Tensor
    positions: Tensor
    task: Task
    pictures: tuple[Any, ...] = ()
    picture: Any = None
    codes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def end_of_pictures(self) -> int:
        """The first position after every picture, seen or drawn, and after a seen one's end tag."""
        seen, drawn = self.image_mask.nonzero(), self.code_labels_mask.nonzero()
        return max(int(seen[-1]) + 2 if len(seen) else 0, int(drawn[-1]) + 1 if len(drawn) else 0)

    def cut(self, length: int) -> Outline:
        """The first `length` positions, of which at least those up to the last picture."""
        assert self.end_of_pictures <= length < len(self)
        labels = self.labels[:length].clone()
        labels[-1] = IGNORE  # what it predicts is no longer part of the document
        return replace(
            self,
            ids=self.ids[:length],
            labels=labels,
            image_mask=self.image_mask[:length],
            code_mask=self.code_mask[:length],
            code_labels_mask=self.code_labels_mask[:length],
            positions=self.positions[:length],
        )


def outline(
    row: Row,
    processor: Processor,
    geometry: Geometry | None = None,
    *,
    system: str | None = None,
    drop_prompt: bool = False,
) -> Outline:
    """The outline of any row; `system` concerns conversations, `geometry` and `drop_prompt` drawings.

    Raises ValueError naming the row.
    """
    try:
        match row:
            case Conversation():
                return conversation_outline(processor, row.messages, system=system)
            case Text():
                return text_outline(processor, row.text)
            case Drawing():
                if geometry is None:
                    raise ValueError("a drawing among the data: give the geometry of drawn pictures")
                target = row.picture if row.codes is None else codes_of(row.codes, geometry)
                return drawing_outline(processor, row.prompt, target, geometry, drop_prompt=drop_prompt)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error


def conversation_outline(
    processor: Processor, messages: Sequence[Message], *, system: str | None = None
) -> Outline:
    """The ids of `processor(messages)`, of which the assistant's words and their end tokens are learned.

    Raises ValueError where the conversation is malformed, does not end with an answer, or has an empty one.
    """
    ids = _conversation_ids(processor, messages, system)
    pictures = conversation_images(messages)
    places = ids.count(processor.image_id)
    if places != len(pictures):
        raise ValueError(
            f"{places} image placeholders and {len(pictures)} images: give one image for each placeholder"
        )
    learned = [False] * len(ids)
    for first, end in _answers(processor, messages, ids, system):
        learned[first:end] = [True] * (end - first)
    expanded: list[int] = []
    labeled: list[bool] = []
    count = processor.config.num_image_tokens
    for token, label in zip(ids, learned, strict=True):
        if token == processor.image_id:
            expanded += [processor.image_start_id, *[token] * count, processor.image_end_id]
            labeled += [False] * (count + 2)  # pictures are never words to be learned
        else:
            expanded.append(token)
            labeled.append(label)
    return _text_outline(
        expanded,
        labeled,
        processor if pictures else None,
        task="understanding" if pictures else "text",
        pictures=tuple(pictures),
    )


def text_outline(processor: Processor, text: str) -> Outline:
    """A text outside any chat: all of it is learned, and its end token."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode(text, special=False), tokenizer.eos_id]
    return _text_outline(ids, [False] + [True] * (len(ids) - 1), None, task="text")


def drawing_outline(
    processor: Processor,
    prompt: str,
    target: Any,
    geometry: Geometry,
    *,
    drop_prompt: bool = False,
) -> Outline:
    """The ids of `processor.draw_prompt(prompt)` and the codes after them, without the last.

    In a flow: without the prompt's last, and after them the time's token and all of the latents'. `target` is
    a tensor of codes (T,), or a picture. With `drop_prompt` the prompt is as in the unconditional rows of
    guided drawing: all between its first and last token is padding; or in a flow the first token alone, and
    what follows stands where it would after the whole.
    """
    tokenizer = processor.tokenizer
    segments = format_drawing(prompt, processor.template, image_start_tag=processor.drawing_tag)
    ids: tuple[int, ...] = (tokenizer.bos_id, *tokenizer.encode_segments(segments))
    codes = target if isinstance(target, Tensor) else None
    if geometry.codebook is None:
        ids, fed, start = seen(ids), 1 + geometry.tokens, len(seen(ids))
        ids = ids[:1] if drop_prompt else ids
        first_label = len(ids) + 1
    else:
        ids = unconditional(ids, tokenizer.pad_id) if drop_prompt else ids
        fed, start = geometry.tokens - 1, len(ids)
        first_label = len(ids) - 1
    place = torch.arange(len(ids) + fed)
    return Outline(
        ids=torch.tensor([*ids, *[tokenizer.pad_id] * fed]),
        labels=torch.full_like(place, IGNORE),
        image_mask=torch.zeros_like(place, dtype=torch.bool),
        code_mask=place >= len(ids),
        code_labels_mask=place >= first_label,
        positions=torch.where(place < len(ids), place, place + start - len(ids)),
        task="drawing",
        picture=None if codes is not None else target,
        codes=codes,
    )


def codes_of(codes: Any, geometry: Geometry) -> Tensor:
    """Codes as they stand in a file -> (T,) int64. Raises ValueError for another number or range of them."""
    if geometry.codebook is None:
        raise ValueError("codes are of a VQ tokenizer, and this model draws latents: give the picture itself")
    try:
        tensor = torch.as_tensor(codes)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"codes are {codes!r:.60}: give {geometry.tokens} whole numbers") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"codes are of {tensor.dtype}: give {geometry.tokens} whole numbers")
    if tensor.shape not in ((geometry.tokens,), (geometry.grid, geometry.grid)):
        raise ValueError(
            f"codes have the shape {tuple(tensor.shape)}: a picture of this model has {geometry.grid} x "
            f"{geometry.grid} codes; tokenize it again"
        )
    tensor = tensor.flatten().long()
    if int(tensor.min()) < 0 or int(tensor.max()) >= geometry.codebook:
        raise ValueError(
            f"codes run from {int(tensor.min())} to {int(tensor.max())}, of a codebook of "
            f"{geometry.codebook}: tokenize the picture again"
        )
    return tensor


def _conversation_ids(processor: Processor, messages: Sequence[Message], system: str | None) -> list[int]:
    """The ids of a conversation, BOS first, a picture being one placeholder."""
    segments = format_conversation(
        messages, processor.template, image_tag=processor.config.image_tag, system=system
    )
    return [processor.tokenizer.bos_id, *processor.tokenizer.encode_segments(segments)]


def _answers(
    processor: Processor, messages: Sequence[Message], ids: Sequence[int], system: str | None
) -> list[tuple[int, int]]:
    """From where to where in `ids` each of the assistant's turns goes, its end token included.

    An answer begins where `ids` leaves what inference would have read before it: the conversation so far
    with an open turn.
    """
    speaker = "assistant" if messages[0]["role"] in OPENAI_ROLES else processor.template.roles[1]
    turns = [index for index, message in enumerate(messages) if message["role"] == speaker]
    if not turns or turns[-1] != len(messages) - 1:
        raise ValueError(
            f"message {len(messages) - 1} is {messages[-1]['role']!r}: a conversation to learn from ends "
            "with the assistant's answer"
        )
    spans = []
    for turn in turns:
        through = _conversation_ids(processor, messages[: turn + 1], system)
        before = _conversation_ids(processor, [*messages[:turn], *_opened(messages[turn])], system)
        first = _shared(before, through)
        if through[-1] != processor.tokenizer.eos_id:
            raise ValueError(
                f"message {turn}: the answer is empty, or the template {processor.config.sft_format!r} ends "
                "it with no end token: write an answer, or train with the template 'deepseek'"
            )
        assert list(ids[: len(through)]) == through  # an end token is where the tokenizer splits
        spans.append((first, len(through)))
    return spans


def _opened(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turn that is still to be spoken; in OpenAI's roles a user's message opens it by itself."""
    return [] if message["role"] in OPENAI_ROLES else [{"role": message["role"], "content": ""}]


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )


def _text_outline(
    ids: Sequence[int],
    learned: Sequence[bool],
    processor: Processor | None,
    *,
    task: Task,
    pictures: tuple[Any, ...] = (),
) -> Outline:
    """The outline of words and seen pictures; `learned` tells which of the ids are to be predicted.

    The processor tells where pictures are, if there can be any.
    """
    tokens = torch.tensor(ids)
    labels = torch.full_like(tokens, IGNORE)
    labels[:-1] = torch.where(torch.tensor(learned)[1:], tokens[1:], IGNORE)
    nowhere = torch.zeros_like(tokens, dtype=torch.bool)
    image_mask = nowhere
    if processor is not None:
        image_mask = tokens == processor.image_id
        if processor.config.marks_start:
            image_mask[:-1] |= image_mask[1:].clone()
    return Outline(
        ids=tokens,
        labels=labels,
        image_mask=image_mask,
        code_mask=nowhere,
        code_labels_mask=nowhere,
        positions=torch.arange(len(tokens)),
        task=task,
        pictures=pictures,
    )
