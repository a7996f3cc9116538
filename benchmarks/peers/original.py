"""The loop with which the original's README draws, in our words, around transformers' Llama and plain heads.

One row in two has no prompt, a picture's two being neighbors; `past_key_values` are a `DynamicCache`, which
concatenates; softmax and multinomial choose, and the chosen codes are embedded for both rows. Source:
generation_inference.py of deepseek-ai/Janus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus.inference.draw_batch import unconditional
from janus.models.janus import Janus
from peers import transformers_janus
from timer import Call

TEMPERATURE = 1.0


@dataclass(frozen=True)
class Original:
    """Transformers' Llama, which the original runs as well, and our plain heads, around the same weights."""

    model: Janus
    llama: Any


def build(model: Janus) -> Original:
    return Original(model, transformers_janus.build(model).model.language_model)


def _choose(theirs: Original, hidden: Tensor, guidance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (2 P, D) -> logits of both kinds of row, codes (P,), embeddings to feed (2 P, 1, D)."""
    logits = theirs.model.image_logits(hidden)
    with_prompt, without = logits[0::2], logits[1::2]
    guided = without + guidance * (with_prompt - without)
    codes = torch.multinomial(torch.softmax(guided / TEMPERATURE, dim=-1), num_samples=1)
    both = torch.cat((codes, codes), dim=1).view(-1)
    return with_prompt, without, codes[:, 0], theirs.model.embed_codes(both)[:, None]


def picture_step(theirs: Original, keys: Tensor, values: Tensor, codes: Tensor, *, guidance: float) -> Call:
    """One code of each picture: the past of either kind of row, (layers, 2, G, K, d), and (P,) codes."""
    from transformers import DynamicCache

    past = keys.shape[3]
    alternating = [part.repeat(1, len(codes), 1, 1, 1) for part in (keys, values)]
    cache = transformers_janus.filled(DynamicCache(config=theirs.llama.config), *alternating)
    embeds = theirs.model.embed_codes(codes.repeat_interleave(2))[:, None]

    def call() -> tuple[Tensor, Tensor, Tensor]:
        """Begins, as the loop's body does, where the codes have been embedded, and ends there."""
        if cache.get_seq_length() > past:
            cache.crop(past - cache.get_seq_length())
        outputs = theirs.llama(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        with_prompt, without, chosen, _ = _choose(theirs, outputs.last_hidden_state[:, -1, :], guidance)
        return with_prompt, without, chosen

    return call


def picture(theirs: Original, prompts: Tensor, *, guidance: float, pad_id: int) -> Call:
    """Whole pictures from prompts (P, L) of equal length."""
    model = theirs.model
    steps, grid = model.config.picture_tokens, model.config.grid

    def call() -> tuple[Tensor, Tensor]:
        rows = [row for prompt in prompts.tolist() for row in (prompt, unconditional(tuple(prompt), pad_id))]
        embeds = model.language.embed(torch.tensor(rows, device=prompts.device))
        codes = torch.zeros(len(prompts), steps, dtype=torch.long, device=prompts.device)
        past = None
        for step in range(steps):
            outputs = theirs.llama(inputs_embeds=embeds, use_cache=True, past_key_values=past)
            past = outputs.past_key_values
            *_, codes[:, step], embeds = _choose(theirs, outputs.last_hidden_state[:, -1, :], guidance)
        return codes, model.vq.decode(codes.unflatten(1, (grid, grid)))

    return call
