"""The loop with which the original's README draws by a flow, in our words, around transformers' Llama.

The whole sequence is computed at every step, the prompt's positions too: what the loop has of a cache never
comes to hold any. Unconditional rows follow the conditional ones; they are as long, and masked but for their
first token. The U-ViT is ours as its class makes it, plain PyTorch, with the same weights. Source: the
JanusFlow part of README.md of deepseek-ai/Janus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from janus.models.janusflow import JanusFlow
from janus.weights.save import named_tensors
from peers import transformers_janus
from timer import Call

LLAMA = "language_model.model."  # how the names of its tensors begin


@dataclass(frozen=True)
class OriginalFlow:
    """Transformers' Llama, which the original runs as well, and our plain U-ViT, around the same weights."""

    model: JanusFlow
    llama: Any


def build(model: JanusFlow) -> OriginalFlow:
    from transformers import LlamaConfig, LlamaModel

    language = model.config.language
    config = LlamaConfig(
        vocab_size=language.vocabulary,
        hidden_size=language.width,
        intermediate_size=language.mlp_width,
        num_hidden_layers=language.layers,
        num_attention_heads=language.heads,
        num_key_value_heads=language.kv_heads,
        head_dim=language.head_width,
        max_position_embeddings=language.window,
        rms_norm_eps=language.norm_eps,
        rope_theta=language.rope_theta,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        llama = LlamaModel(config)
    ours = named_tensors(model, "deepseek")
    weights = {name.removeprefix(LLAMA): ours[name] for name in ours if name.startswith(LLAMA)}
    llama.load_state_dict(weights, assign=True)
    transformers_janus.compute_buffers(llama, model.device)
    return OriginalFlow(model, llama.eval())


def flow_step(
    theirs: OriginalFlow,
    prompts: Tensor,
    latents: Tensor,
    *,
    time: float,
    steps: int,
    guidance: float,
    pad_id: int,
) -> Call:
    """One of `steps` steps from latents (P, c, h, w) at a time in [0, 1], after prompts (P, L) of one length.

    -> the guided velocity, and the latents after the step.
    """
    model, count = theirs.model, len(prompts)
    tokens = torch.cat((prompts, prompts))
    tokens[count:, 1:] = pad_id
    embeds = model.language.embed(tokens)[:, :-1]  # the time's token takes the place of the last
    positions = latents.shape[2] * latents.shape[3] // 4 + 1
    mask = torch.ones(2 * count, embeds.shape[1] + positions, dtype=torch.long, device=prompts.device)
    mask[count:, 1 : embeds.shape[1]] = 0
    t = torch.full((2 * count,), 1000.0 * time, device=latents.device).to(latents.dtype)
    length = latents.new_tensor(1 / steps)

    def call() -> tuple[Tensor, Tensor]:
        embedded = model.embed_latents(torch.cat((latents, latents)), t)
        outputs = theirs.llama(
            inputs_embeds=torch.cat((embeds, embedded.tokens), dim=1), attention_mask=mask, use_cache=True
        )
        velocity = model.decode_velocity(outputs.last_hidden_state, embedded)
        with_prompt, without = velocity.chunk(2)
        guided = guidance * with_prompt - (guidance - 1.0) * without
        return guided, latents + length * guided

    return call
