"""What every model of the family does: pictures and words in, words out.

B rows, S positions, D width, N pictures, T features per picture, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from janus.config import AnyConfig
from janus.models.llama import KeyValueCache, Llama
from janus.models.siglip import SigLIP

if TYPE_CHECKING:
    from janus.weights.names import Layout


class MultimodalModel(nn.Module):
    """SigLIP, an adapter and Llama; how it draws is for the class itself, which also builds the parts.

    `files` holds the small files of its checkpoint, by name.
    """

    config: AnyConfig
    vision: SigLIP
    vision_adapter: nn.Module
    language: Llama

    def __init__(self, config: AnyConfig) -> None:
        super().__init__()
        self.config = config
        self.files: Mapping[str, bytes] = {}

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, T, D): SigLIP and its adapter, the language model's input."""
        return self.vision_adapter(self.vision(pixels.to(self.dtype)))

    def embed(
        self, input_ids: Tensor, pixels: Tensor | None = None, image_mask: Tensor | None = None
    ) -> Tensor:
        """(B, S) ids, (N, 3, H, W), (B, S) bool -> (B, S, D).

        Words, and where the mask is true the pictures' features, in reading order. ValueError where the mask
        marks more or fewer positions than these fill.
        """
        words = self.language.embed(input_ids.clamp_min(0))  # negative ids mark pictures for the original too
        marked = 0 if image_mask is None else int(image_mask.sum())
        pictures = 0 if pixels is None else len(pixels)
        features = self.config.seen_tokens
        if marked != pictures * features:
            raise ValueError(
                f"image_mask marks {marked} positions, but {pictures} pictures of "
                f"{features} features fill {pictures * features}"
            )
        if pixels is None or image_mask is None or not pictures:
            return words
        return words.masked_scatter(image_mask.bool()[..., None], self.encode_images(pixels).to(words.dtype))

    def hidden_states(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        documents: Tensor | None = None,
    ) -> Tensor:
        """(B, S, D) -> (B, S, D), after the final norm.

        The mask, (B, S), is false at padding, whose rows come out zero; beside a cache it may be (B, K),
        of all that the cache holds and these. `documents` (B, S), in place of mask and cache, number the
        documents of each row, of which none sees another, and are 0 at padding. ValueError for a mask of
        another shape, and for documents beside mask or cache.
        """
        return self.language(embeds, attention_mask, cache, documents=documents)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return self.language.head(hidden)

    @property
    def dtype(self) -> torch.dtype:
        return self.language.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.language.embed.weight.device

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """The model of a local folder or hub id, in either layout; see `janus.weights.load`.

        ValueError where the checkpoint is that of another class.
        """
        from janus.weights.load import load

        model = load(
            path, device=device, dtype=dtype, quantize=quantize, revision=revision, token=token, kind=cls
        )
        assert isinstance(model, cls)
        return model

    def save_pretrained(
        self, path: str | Path, *, layout: Layout = "deepseek", max_shard_size: int | str | None = None
    ) -> None:
        """Write weights, config and the tokenizer's and processor's files; see `janus.weights.save`."""
        from janus.weights.save import save

        save(self, path, layout=layout, max_shard_size=max_shard_size)
