"""Conversations and pictures to tensors: the one place where words, ids and pixels are put together.

B: conversations; S: tokens, padded on the left; N: pictures of all conversations in reading order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from janus.processing.chat import (
    Message,
    Segment,
    choose_template,
    conversation_images,
    format_conversation,
    format_drawing,
)
from janus.processing.image import ImageProcessor
from janus.processing.tokenizer import Tokenizer
from janus.weights.processor_config import (
    has_pro_roles,
    read_generation_defaults,
    read_processor_config,
    read_side_files,
    read_window,
)


@dataclass(frozen=True)
class Batch:
    """The model's input: input_ids (B, S), attention_mask and image_mask (B, S) bool, pixels (N, 3, H, W).

    `image_mask` is true where the pictures' embeddings go: N times the number of tokens of a picture, its
    start token among them where the model has an embedding of its own for that (JanusFlow).
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_mask: Tensor
    pixels: Tensor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Batch":
        """The batch on another device; `dtype` is for the pixels alone."""
        return Batch(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            image_mask=self.image_mask.to(device),
            pixels=self.pixels.to(device=device, dtype=dtype),
        )


class Processor:
    """A checkpoint's tokenizer, chat template and picture settings.

    `files` are the files that it was read from, by name; `window` the most tokens of a conversation, or None.
    """

    def __init__(
        self, files: Mapping[str, bytes], *, where: str = "the checkpoint", corrected_pictures: bool = False
    ) -> None:
        self.files = dict(files)
        self.config = read_processor_config(files, where=where)
        self.tokenizer = Tokenizer.from_files(files, where=where)
        self.window = read_window(files, where=where)
        read_generation_defaults(files, where=where)  # raises now, not when the first picture is drawn
        pro_roles = has_pro_roles(self.tokenizer, self.tokenizer.additional)
        self.template = choose_template(self.config.sft_format, pro_roles=pro_roles)
        self.image_id = self.tokenizer.id(self.config.image_tag)
        self.image_start_id = self.tokenizer.id(self.config.image_start_tag)
        self.image_end_id = self.tokenizer.id(self.config.image_end_tag)
        self.drawing_tag = self.config.image_generation_tag or self.config.image_start_tag
        self.tokenizer.id(self.drawing_tag)  # raises where it is none of its tokens
        self.image = ImageProcessor(self.config, corrected=corrected_pictures)

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        corrected_pictures: bool = False,
    ) -> "Processor":
        """From a folder or a hub id, there of a `revision`. Needs the tokenizer's and processor's files only.

        `corrected_pictures` reads pictures as people see them (`load_picture`), not as the model was trained.
        """
        from janus.weights.hub import find

        folder = find(path, weights=False, revision=revision, token=token)
        return cls(read_side_files(folder), where=str(folder), corrected_pictures=corrected_pictures)

    @property
    def roles(self) -> tuple[str, str]:
        """How the template calls the user and the assistant."""
        return self.template.roles

    def format(self, messages: Sequence[Message], system: str | None = None) -> str:
        """The exact prompt of one conversation; `system` None is the default system prompt, "" is none.

        ValueError for what is no conversation.
        """
        return "".join(segment.text for segment in self._segments(messages, system))

    def draw_prompt(self, prompt: str) -> list[int]:
        """The ids, BOS first, after which the model draws; special tokens spelled in it are plain text.

        ValueError for a prompt that is no string, or over the model's window.
        """
        segments = format_drawing(prompt, self.template, image_start_tag=self.drawing_tag)
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode_segments(segments)]
        self._check_window(len(ids), "the prompt")
        return ids

    def __call__(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        images: Any = None,
        *,
        system: str | None = None,
        check_length: Callable[[int], object] | None = None,
    ) -> Batch:
        """One conversation, or a list of them, as a batch.

        `images` holds the pictures where the messages do not: for one conversation a picture or a list,
        for several a list of lists or one flat list in reading order. Raises ValueError where
        placeholders and pictures disagree, where a conversation exceeds the window, and for a picture
        that cannot be read, FileNotFoundError for one that is not there. `check_length` is called with
        each conversation's number of tokens before any picture is read.
        """
        batched = (
            isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], (list, tuple))
        )
        conversations: Sequence[Any] = messages if batched else [messages]
        rows: list[list[int]] = []
        own_pictures: list[list[Any]] = []
        for index, conversation in enumerate(conversations):
            try:
                segments = self._segments(conversation, system)
            except ValueError as error:
                raise ValueError(f"conversation {index}: {error}" if batched else str(error)) from error
            rows.append([self.tokenizer.bos_id, *self.tokenizer.encode_segments(segments)])
            own_pictures.append(conversation_images(conversation))

        placeholders = [row.count(self.image_id) for row in rows]
        pictures = _distribute(images, placeholders, own_pictures, batched=batched)
        for index, (wanted, given) in enumerate(zip(placeholders, pictures, strict=True)):
            if wanted != len(given):
                raise ValueError(
                    f"conversation {index} has {wanted} image placeholders and {len(given)} images: "
                    "give one image for each placeholder"
                )
            # An image's tokens, its start and its end stand in for one placeholder.
            length = len(rows[index]) + wanted * (self.config.num_image_tokens + 1)
            self._check_window(length, f"conversation {index}")
            if check_length:
                check_length(length)
        return self._pad([self._expand(row) for row in rows], self._pixels(pictures))

    def _segments(self, messages: Sequence[Message], system: str | None) -> list[Segment]:
        return format_conversation(messages, self.template, image_tag=self.config.image_tag, system=system)

    def _check_window(self, length: int, what: str) -> None:
        if self.window is not None and length > self.window:
            raise ValueError(
                f"{what} has {length} tokens, more than the {self.window} of the model's window: shorten it"
            )

    def _expand(self, row: Sequence[int]) -> list[int]:
        image = [self.image_start_id, *[self.image_id] * self.config.num_image_tokens, self.image_end_id]
        return [token for index in row for token in (image if index == self.image_id else [index])]

    def _pixels(self, pictures: Sequence[Sequence[Any]]) -> Tensor:
        """All pictures as (N, 3, H, W) float32."""
        pixels = []
        for index, given in enumerate(pictures):
            for number, picture in enumerate(given):
                try:
                    pixels.append(self.image(picture))
                except (ValueError, FileNotFoundError) as error:
                    raise type(error)(f"conversation {index}, image {number}: {error}") from error
        side = self.config.image_size
        return torch.stack(pixels) if pixels else torch.zeros(0, 3, side, side)

    def _pad(self, rows: Sequence[Sequence[int]], pixels: Tensor) -> Batch:
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_id
        input_ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows])
        attention_mask = torch.arange(longest) >= longest - lengths
        image_mask = (input_ids == self.image_id) & attention_mask
        if self.config.marks_start:
            image_mask[:, :-1] |= image_mask[:, 1:].clone()
        return Batch(input_ids, attention_mask, image_mask, pixels)


def _distribute(
    images: Any, placeholders: Sequence[int], own: Sequence[Sequence[Any]], *, batched: bool
) -> list[list[Any]]:
    """The pictures of each conversation, from the messages or from the argument `images`."""
    if images is None or (isinstance(images, (list, tuple)) and not images):
        return [list(pictures) for pictures in own]
    if not isinstance(images, (list, tuple)):
        images = [images]
    nested = [isinstance(item, (list, tuple)) for item in images]
    if not batched:
        given = [list(images[0]) if len(images) == 1 and nested[0] else list(images)]
    elif all(nested):
        if len(images) != len(placeholders):
            raise ValueError(
                f"images has {len(images)} lists for {len(placeholders)} conversations: give one for each"
            )
        given = [list(pictures) for pictures in images]
    elif any(nested):
        raise ValueError(
            "images mixes lists and pictures: give one list for each conversation, or one flat list"
        )
    else:
        # Flat: each conversation takes as many as it has places for; the last one keeps what is left over,
        # so that a wrong number is reported there.
        wanted = [count - len(pictures) for count, pictures in zip(placeholders, own, strict=True)]
        rest = list(images)
        given = []
        for count in wanted:
            given.append(rest[: max(count, 0)])
            rest = rest[max(count, 0) :]
        given[-1] += rest
    pictures = []
    for index, (from_messages, from_argument) in enumerate(zip(own, given, strict=True)):
        if from_messages and from_argument:
            raise ValueError(
                f"conversation {index} has images both in its messages and in images=: give them in one place"
            )
        pictures.append(list(from_messages) or from_argument)
    return pictures
