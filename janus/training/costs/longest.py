"""The longest rows that a recipe can meet, and the loss of them on tensors that have no memory.

What `janus.training.objectives` and `janus.training.flow` find out from a batch's values, of which such
tensors have none, is told by the `Row` here; beyond that they allocate alike, which a test sees to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from janus.config import LATENT_PATCH, AnyConfig, JanusConfig, JanusFlowConfig
from janus.kernels.attention import attention
from janus.kernels.rotary import rotate
from janus.models.janusflow import JanusFlow
from janus.models.llama import Attention, Visibility
from janus.models.multimodal import MultimodalModel
from janus.training.data.outline import Geometry
from janus.training.data.packing import Batch
from janus.training.flow import alignment_of
from janus.training.parts import AnyModel
from janus.training.recipe.sections import Kind


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a row holds: positions, pictures seen and drawn, and positions that predict a word or a code.

    In a flow, tokens of latents count as codes.
    """

    kind: Kind
    length: int
    seen: int = 0
    drawn: int = 0
    words: int = 0
    codes: int = 0


def longest_row(config: AnyConfig, length: int, kind: Kind, geometry: Geometry | None = None) -> Row:
    """The row of a task that takes most: full of pictures, and of words that are learned in what is left.

    `geometry` is that of a JanusFlow's drawings. ValueError where a row has no room for a picture.
    """
    if kind == "text":
        return Row(kind=kind, length=length, words=length)
    if kind == "understanding":
        taken = config.vision.tokens + 2  # the tags of its begin and end
        seen = (length - 1) // taken
        row = Row(kind=kind, length=length, seen=seen, words=length - seen * taken)
    else:
        shape = drawn_geometry(config, geometry)
        # The first token and the begin tag, and no last code; in a flow the first token and the time's.
        taken = shape.tokens + (2 if shape.codebook is None else 1)
        drawn = length // taken
        row = Row(kind=kind, length=length, drawn=drawn, codes=drawn * shape.tokens)
    if not row.seen and not row.drawn:
        raise ValueError(
            f"data.sequence_length {length} has no room for the {taken} tokens of a picture: raise it"
        )
    return row


def drawn_geometry(config: AnyConfig, geometry: Geometry | None) -> Geometry:
    """That of the pictures that a model draws; of a flow, which its autoencoder decides, it must be given."""
    if isinstance(config, JanusConfig):
        return Geometry.of(config)
    assert geometry is not None
    return geometry


def fake_batch(
    config: AnyConfig, row: Row, rows: int, device: str, geometry: Geometry | None = None
) -> Batch:
    """As many such rows, tokenized, with values that say nothing; the pictures that became codes are held."""

    def zeros(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    seen, drawn = rows * row.seen, rows * row.drawn
    masks = {
        name: zeros(rows, row.length, dtype=torch.bool)
        for name in ("image_mask", "code_mask", "code_labels_mask")
    }
    numbers = {name: zeros(rows, row.length) for name in ("ids", "labels", "document", "positions")}
    size, side = config.vision.image_size, config.picture_size
    targets, latents = zeros(drawn, 3, side, side, dtype=torch.float32), None
    if isinstance(config, JanusFlowConfig):
        grid = LATENT_PATCH * (drawn_geometry(config, geometry).grid if drawn else 1)
        latents = zeros(drawn, config.uvit.latent_channels, grid, grid, dtype=torch.float32)
        tokens = row.codes // max(row.drawn, 1)
    else:
        targets, tokens = targets[:0], config.picture_tokens
    return Batch(
        **masks,
        **numbers,
        pixels=zeros(seen, 3, size, size, dtype=torch.float32),
        codes=zeros(drawn, tokens),
        targets=targets,
        seeds=zeros(drawn),
        tasks=((row.kind,),) * rows,
        latents=latents,
    )


def rows_loss(model: AnyModel, batch: Batch, row: Row) -> Tensor:
    """The loss of a batch of such rows, summed over all labels: heads are applied where labels are."""
    if isinstance(model, JanusFlow):
        return _flow_rows_loss(model, batch, row)
    embeds = _embeds(model, batch, model.embed_codes(batch.codes[:, :-1]))
    hidden = model.hidden_states(embeds, documents=batch.document).flatten(0, 1)
    losses = []
    for labels, head in ((row.words, model.text_logits), (row.codes, model.image_logits)):
        losses.append(_cross_entropy(hidden, batch, len(batch.ids) * labels, head))
    return losses[0] + losses[1]


def _flow_rows_loss(model: JanusFlow, batch: Batch, row: Row) -> Tensor:
    latents, alignment = batch.latents, alignment_of(model)
    assert latents is not None
    embedded = model.embed_latents(latents, latents.new_zeros(len(latents)))
    hidden, passed = (
        each.flatten(0, 1)
        for each in model.language.through_documents(
            _embeds(model, batch, embedded.tokens),
            batch.document,
            positions=batch.positions,
            after=0 if alignment is None else alignment.after,
        )
    )
    tokens = torch.zeros(len(batch.ids) * row.codes, dtype=torch.long, device=hidden.device)
    own = hidden[tokens].unflatten(0, (-1, embedded.tokens.shape[1] - 1))
    errors = (model.decode_velocity(own, embedded).float() - latents).square().mean(dim=(1, 2, 3)).sum()
    text = _cross_entropy(hidden, batch, len(batch.ids) * row.words, model.text_logits)
    if alignment is None:
        return text + errors
    with torch.no_grad():
        seen = batch.targets * 1 + 0  # as `as_seen` scales and shifts them
        features = model.vision(seen.to(model.dtype)).flatten(0, 1).float()
    cosines = F.cosine_similarity(alignment(passed[tokens]).float(), features, dim=-1)
    return text + errors - cosines.sum()


def _embeds(model: MultimodalModel, batch: Batch, drawn: Tensor) -> Tensor:
    embeds = model.language.embed(batch.ids.masked_fill(batch.image_mask, 0))
    for mask, inputs in ((batch.image_mask, model.encode_images(batch.pixels)), (batch.code_mask, drawn)):
        embeds = embeds.masked_scatter(mask[..., None], inputs.to(embeds.dtype))
    if embeds.device.type == "cpu":
        _attend_by_document(model, len(batch.ids))
    return embeds


def _cross_entropy(hidden: Tensor, batch: Batch, labels: int, head: Callable[[Tensor], Tensor]) -> Tensor:
    places = torch.zeros(labels, dtype=torch.long, device=hidden.device)
    logits = head(hidden[places])
    return F.cross_entropy(logits.float(), batch.labels.flatten()[places], reduction="sum")


def _attend_by_document(model: MultimodalModel, rows: int) -> None:
    """Have each row attend to itself, in place, as a CPU does where it can look at where documents begin."""
    for module in model.language.modules():
        if isinstance(module, Attention):
            setattr(module, "forward", _by_document(module, rows))  # noqa: B010


def _by_document(module: Attention, rows: int) -> Any:
    def forward(x: Tensor, rotary: tuple[Tensor, Tensor], visibility: Visibility, cache: None) -> Tensor:
        q, k, v = module.projected(x)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        pieces = zip(*(part.chunk(rows, dim=2) for part in (q, k, v)), strict=True)
        mixed = torch.cat([attention(*piece, causal=True) for piece in pieces], dim=2)
        return module.o_proj(mixed.transpose(1, 2).flatten(2))

    return forward
