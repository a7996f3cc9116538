"""Examples: one document each, its pictures decoded.

S positions of one document, N pictures that it sees, M that it draws, T codes of a drawn picture, or tokens
of its latents in a flow; H, W and h, w: sizes in pixels of the two kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus.processing.chat import Message
from janus.processing.image import square_picture, to_signed_pixels
from janus.processing.processor import Processor
from janus.training.data.outline import (
    Geometry,
    Outline,
    Task,
    codes_of,
    conversation_outline,
    drawing_outline,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One document.

    ids (S,) int64: the text at each position; without meaning where a mask says that something else stands.
    labels (S,) int64: the text id that each position predicts (shifted already), or IGNORE.
    image_mask (S,): positions of the features of `pixels` (N, 3, H, W), as `processor.image` gives them.
    code_mask (S,): positions whose input is a code; the last code of a picture is never one. In a flow:
    those of a time and of latents.
    code_labels_mask (S,): positions that predict a code, from the begin of image to the last code but one. In
    a flow: those of latents, which predict their velocity.
    codes (M, T) int64, or None where there are none yet: then `targets` (M, 3, h, w) in [-1, 1] has pictures
    that are still to be tokenized, or made latents.
    positions (S,) int64: from 0 on, each one more than the last; a flow's dropped prompt leaves some out.
    seed: decides, in a flow, at which time a picture is learned, and from what noise.
    """

    ids: Tensor
    labels: Tensor
    image_mask: Tensor
    pixels: Tensor
    code_mask: Tensor
    codes: Tensor | None
    targets: Tensor
    code_labels_mask: Tensor
    positions: Tensor
    task: Task
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def decode(
    outline: Outline,
    processor: Processor,
    geometry: Geometry | None = None,
    *,
    seed: int = 0,
    crop_at: float = 0.5,
) -> Example:
    """Read the pictures: those seen go through the processor, those drawn are cropped to a square.

    `crop_at`, from 0 to 1, says where along the long side. Raises FileNotFoundError or ValueError for a
    picture that cannot be read.
    """
    side, drawn = processor.config.image_size, geometry.size if geometry else 0
    seen = [processor.image(picture) for picture in outline.pictures]
    targets = []
    if outline.picture is not None:
        targets.append(picture_target(outline.picture, processor, drawn, at=crop_at))
    return Example(
        ids=outline.ids,
        labels=outline.labels,
        image_mask=outline.image_mask,
        pixels=torch.stack(seen) if seen else torch.zeros(0, 3, side, side),
        code_mask=outline.code_mask,
        codes=None if outline.codes is None else outline.codes[None],
        targets=torch.stack(targets) if targets else torch.zeros(0, 3, drawn, drawn),
        code_labels_mask=outline.code_labels_mask,
        positions=outline.positions,
        task=outline.task,
        seed=seed,
    )


def picture_target(picture: Any, processor: Processor, size: int, *, at: float = 0.5) -> Tensor:
    """What is to be drawn, (3, size, size) in [-1, 1]: the short side resized, the long one cropped.

    Not the way of pictures that are seen: padded, they would teach the model to draw the padding.
    """
    return to_signed_pixels(square_picture(processor.image.open(picture), size, at=at))


def conversation_example(
    processor: Processor, messages: Sequence[Message], *, system: str | None = None
) -> Example:
    """A conversation with its pictures read; raises as `conversation_outline` and `decode` do."""
    return decode(conversation_outline(processor, messages, system=system), processor)


def drawing_example(
    processor: Processor,
    prompt: str,
    picture_or_codes: Any,
    geometry: Geometry,
    *,
    drop_prompt: bool = False,
    seed: int = 0,
) -> Example:
    """A prompt and what it becomes: a picture (path, `PIL.Image` or (H, W, 3) array) or codes."""
    target = picture_or_codes
    if isinstance(target, Tensor | list | tuple):
        target = codes_of(target, geometry)
    outline = drawing_outline(processor, prompt, target, geometry, drop_prompt=drop_prompt)
    return decode(outline, processor, geometry, seed=seed)
