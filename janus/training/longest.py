"""The longest rows that a recipe can meet, and the loss of them on tensors that have no memory.

What `janus.training.objectives` finds out from a batch's values, of which such tensors have none, is told by
the `Row` here; beyond that the two allocate alike, which a test sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.config import JanusConfig
from janus.kernels.attention import attention
from janus.kernels.rotary import rotate
from janus.models.janus import Janus
from janus.models.llama import Attention, Sight
from janus.training.data.packing import Batch
from janus.training.recipe_sections import Kind


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a row holds: positions, pictures seen and drawn, and positions that predict a word or a code."""

    kind: Kind
    length: int
    seen: int = 0
    drawn: int = 0
    words: int = 0
    codes: int = 0


def longest_row(config: JanusConfig, length: int, kind: Kind) -> Row:
    """The row of a task that takes most: full of pictures, and of words that are learned in what is left.

    ValueError where a row has no room for a picture.
    """
    if kind == "text":
        return Row(kind=kind, length=length, words=length)
    if kind == "understanding":
        taken = config.vision.tokens + 2  # the tags of its begin and end
        seen = (length - 1) // taken
        row = Row(kind=kind, length=length, seen=seen, words=length - seen * taken)
    else:
        taken = config.picture_tokens + 1  # the first token and the begin tag, and no last code
        drawn = length // taken
        row = Row(kind=kind, length=length, drawn=drawn, codes=drawn * config.picture_tokens)
    if not row.seen and not row.drawn:
        raise ValueError(
            f"data.sequence_length {length} has no room for the {taken} tokens of a picture: raise it"
        )
    return row


def hollow_batch(config: JanusConfig, row: Row, rows: int, device: str) -> Batch:
    """As many such rows, tokenised, with values that say nothing; the pictures that became codes are held."""

    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    seen, drawn = rows * row.seen, rows * row.drawn
    masks = {
        name: zeros(rows, row.length, dtype=torch.bool)
        for name in ("image_mask", "code_mask", "code_labels_mask")
    }
    numbers = {name: zeros(rows, row.length) for name in ("ids", "labels", "document", "positions")}
    size, side = config.vision.image_size, config.picture_size
    return Batch(
        **masks,
        **numbers,
        pixels=zeros(seen, 3, size, size, dtype=torch.float32),
        codes=zeros(drawn, config.picture_tokens),
        targets=zeros(drawn, 3, side, side, dtype=torch.float32)[:0],
        tasks=((row.kind,),) * rows,
    )


def rows_loss(model: Janus, batch: Batch, row: Row) -> Tensor:
    """The loss of a batch of such rows, summed over words and codes: heads are applied where labels are."""
    rows = len(batch.ids)
    embeds = model.language.embed(batch.ids.masked_fill(batch.image_mask, 0))
    features, codes = model.encode_images(batch.pixels), model.embed_codes(batch.codes[:, :-1])
    for mask, inputs in ((batch.image_mask, features), (batch.code_mask, codes)):
        embeds = embeds.masked_scatter(mask[..., None], inputs.to(embeds.dtype))
    if embeds.device.type == "cpu":
        _attend_by_document(model, rows)
    hidden = model.hidden_states(embeds, documents=batch.document).flatten(0, 1)
    losses = []
    for labels, head in ((row.words, model.text_logits), (row.codes, model.image_logits)):
        places = torch.zeros(rows * labels, dtype=torch.long, device=hidden.device)
        logits = head(hidden[places])
        losses.append(F.cross_entropy(logits.float(), batch.labels.flatten()[places], reduction="sum"))
    return losses[0] + losses[1]


def _attend_by_document(model: Janus, rows: int) -> None:
    """Have each row attend to itself, in place, as a CPU does where it can look at where documents begin."""
    for module in model.language.modules():
        if isinstance(module, Attention):
            setattr(module, "forward", _by_document(module, rows))  # noqa: B010


def _by_document(module: Attention, rows: int) -> Any:
    def forward(x: Tensor, rotary: tuple[Tensor, Tensor], sight: Sight, cache: None) -> Tensor:
        q, k, v = module.projected(x)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        pieces = zip(*(part.chunk(rows, dim=2) for part in (q, k, v)), strict=True)
        mixed = torch.cat([attention(*piece, causal=True) for piece in pieces], dim=2)
        return module.o_proj(mixed.transpose(1, 2).flatten(2))

    return forward
