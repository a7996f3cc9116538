"""From a batch to its losses: words through the text head, codes through the image head.

What JanusFlow has in place of the latter is in `janus.training.flow`. B rows of L positions, D width; N
pictures that are seen and M that are drawn, T codes of each; W positions that predict a word, C that predict
a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.models.janus import Janus
from janus.models.multimodal import MultimodalModel
from janus.training.costs.flops import Counts
from janus.training.data.outline import IGNORE
from janus.training.data.packing import Batch
from janus.training.recipe.sections import LossWeights


@dataclass(frozen=True)
class Sums:
    """Losses summed over the positions of a batch, in float32: cross-entropies in nats.

    Of a flow `picture` and `alignment` have a term for each token of latents (`janus.training.flow`); others
    have no alignment.
    """

    text: Tensor
    picture: Tensor
    alignment: Tensor | None = None


def assemble(model: Janus, batch: Batch) -> Tensor:
    """The language model's input (B, L, D): words, features of seen pictures, codes of drawn ones."""
    return filled(model, batch, model.embed_codes(batch.codes[:, :-1]))  # the last code is only predicted


def filled(model: MultimodalModel, batch: Batch, drawn: Tensor) -> Tensor:
    """As `assemble`, with what stands for drawn pictures given: (M, any, D).

    Every part of the model has its turn, of an empty batch if need be: then the gradients of what learns are
    zeros and not absent, and processes of which one sees pictures and another none still meet in the same
    collectives. Raises ValueError where the masks mark more or fewer positions than the pictures fill.
    """
    words = model.language.embed(batch.ids.masked_fill(batch.image_mask, 0))
    features = model.encode_images(batch.pixels)
    for name, mask, inputs in (("image", batch.image_mask, features), ("code", batch.code_mask, drawn)):
        filled = inputs.shape[0] * inputs.shape[1]
        if int(mask.sum()) != filled:
            raise ValueError(f"{name}_mask marks {int(mask.sum())} positions, and its pictures fill {filled}")
        words = words.masked_scatter(mask[..., None], inputs.to(words.dtype))
    return words


def sums(model: Janus, batch: Batch) -> Sums:
    """The losses of a batch whose pictures are all tokenized; heads are applied where labels are, only."""
    hidden = model.hidden_states(assemble(model, batch), documents=batch.document)
    words = batch.labels != IGNORE
    return Sums(
        text=cross_entropy(model.text_logits(hidden[words]), batch.labels[words]),
        picture=cross_entropy(
            model.image_logits(hidden[batch.code_labels_mask]),
            batch.codes.flatten(),
            None if batch.weights is None else code_weights(batch.weights, batch.codes),
        ),
    )


def code_weights(weights: Tensor, codes: Tensor) -> Tensor:
    """Weights of drawings (M,), or of their codes (M, T) -> of all codes (M * T,)."""
    return (weights[:, None] if weights.ndim == 1 else weights).expand(codes.shape).flatten()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """(W or C, V), (W or C,) and, if any, weights (W or C,) -> their sum, of none of them zero."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    return F.cross_entropy(logits.float(), labels, reduction="none") @ weights


def total(losses: Sums, weights: LossWeights, labels: float) -> Tensor:
    """The loss of a step, a scalar: the weighted sums over one count of `labels`.

    It must be that of all batches of a step, on all processes, words and codes (in a flow, tokens of latents)
    together: then neither how rows are dealt out nor how unequal they are changes what is learned.
    """
    loss = weights.text * losses.text + weights.picture * losses.picture
    if losses.alignment is not None:
        loss = loss + weights.alignment * losses.alignment
    return loss / labels


def figures(losses: Sums, weights: LossWeights, words: float, codes: float) -> dict[str, Tensor]:
    """What is told of a step, or of an evaluation: the loss, and its parts each by labels of their own.

    `words` and `codes` are the labels of both kinds; a part without any is left out.
    """
    found = {"loss": total(losses, weights, words + codes)}
    if words:
        found["text_loss"] = losses.text / words
    if codes:
        found["picture_loss" if losses.alignment is None else "flow_loss"] = losses.picture / codes
        if losses.alignment is not None and weights.alignment:
            found["alignment_loss"] = losses.alignment / codes
    return found


class Objective(nn.Module):
    """`sums` as a module's forward, which is where torch's data-parallel wrappers hook in."""

    def __init__(self, model: Janus) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = sums(self.model, batch)
        return found.text, found.picture


def count(batch: Batch) -> Counts:
    """What a batch holds; to be asked before its targets are tokenized and it leaves the CPU."""
    rows = torch.arange(len(batch.document))[:, None] * (batch.document.shape[1] + 1)
    _, lengths = (rows + batch.document)[batch.document > 0].unique_consecutive(return_counts=True)
    return Counts(
        tokens=batch.document.numel(),
        pairs=int((lengths * (lengths + 1) // 2).sum()),
        seen=len(batch.pixels),
        tokenized=len(batch.targets),
        drawn=len(batch.codes),
        codes=int(batch.code_mask.sum()),
        word_labels=batch.text_labels,
        code_labels=batch.code_labels,
    )


@torch.no_grad()
def encode(model: Janus, targets: Tensor) -> Tensor:
    """Pictures to be drawn (M, 3, h, w) -> codes (M, grid, grid), in the tokenizer's own precision."""
    with torch.autocast(targets.device.type, enabled=False):
        return model.vq.encode(targets)
