"""From a batch to its two losses: words through the text head, codes through the image head.

B rows of L positions, D width; N pictures that are seen and M that are drawn, T codes of each; W positions
that predict a word, C that predict a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from janus.models.janus import Janus
from janus.training.data.outline import IGNORE
from janus.training.data.packing import Batch
from janus.training.flops import Counts
from janus.training.recipe_sections import LossWeights


@dataclass(frozen=True)
class Sums:
    """Cross-entropies summed over the positions of a batch, in nats and float32."""

    text: Tensor
    picture: Tensor


def assemble(model: Janus, batch: Batch) -> Tensor:
    """The language model's input (B, L, D): words, features of pictures that are seen, codes that are drawn.

    Every part of the model has its turn, of an empty batch if need be: then the gradients of what learns are
    zeros and not absent, and processes of which one sees pictures and another none still meet in the same
    collectives. Raises ValueError where the masks mark more or fewer positions than the pictures fill.
    """
    words = model.language.embed(batch.ids.masked_fill(batch.image_mask, 0))
    features = model.encode_images(batch.pixels)
    codes = model.embed_codes(batch.codes[:, :-1])  # the last code of a picture is only predicted
    for name, mask, inputs in (("image", batch.image_mask, features), ("code", batch.code_mask, codes)):
        filled = inputs.shape[0] * inputs.shape[1]
        if int(mask.sum()) != filled:
            raise ValueError(f"{name}_mask marks {int(mask.sum())} positions, and its pictures fill {filled}")
        words = words.masked_scatter(mask[..., None], inputs.to(words.dtype))
    return words


def sums(model: Janus, batch: Batch) -> Sums:
    """The losses of a batch whose pictures are all tokenised; heads are applied where labels are, only."""
    hidden = model.hidden_states(assemble(model, batch), documents=batch.document)
    words = batch.labels != IGNORE
    return Sums(
        text=_cross_entropy(model.text_logits(hidden[words]), batch.labels[words]),
        picture=_cross_entropy(model.image_logits(hidden[batch.code_labels_mask]), batch.codes.flatten()),
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(W or C, V) and (W or C,) -> their sum, of none of them zero."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def total(losses: Sums, weights: LossWeights, labels: float) -> Tensor:
    """The loss to go down: both weighted sums over one count of `labels`.

    It must be that of all batches of a step, on all processes, words and codes together: then neither how
    rows are dealt out nor how unequal they are changes what is learned.
    """
    return (weights.text * losses.text + weights.picture * losses.picture) / labels


class Objective(nn.Module):
    """`sums` as a module's forward, which is where torch's data-parallel wrappers hook in."""

    def __init__(self, model: Janus) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = sums(self.model, batch)
        return found.text, found.picture


def count(batch: Batch) -> Counts:
    """What a batch holds; to be asked before its targets are tokenised and it leaves the CPU."""
    ends = F.pad(batch.positions, (0, 1))[:, 1:] == 0
    lengths = (batch.positions[ends & (batch.document > 0)] + 1).long()
    return Counts(
        tokens=batch.document.numel(),
        pairs=int((lengths * (lengths + 1) // 2).sum()),
        seen=len(batch.pixels),
        tokenized=len(batch.targets),
        codes=int(batch.code_mask.sum()),
        word_labels=batch.text_labels,
        code_labels=batch.code_labels,
    )


@torch.no_grad()
def encode(model: Janus, targets: Tensor) -> Tensor:
    """Pictures to be drawn (M, 3, h, w) -> codes (M, grid, grid), in the tokenizer's own precision."""
    with torch.autocast(targets.device.type, enabled=False):
        return model.vq.encode(targets)
