"""Janus as transformers has it, `JanusForConditionalGeneration`, used as its own `generate` uses it.

Attention is its default (torch's scaled_dot_product_attention). Drawing has a `StaticCache` just long enough
and runs the body of the loop in `JanusForConditionalGeneration.generate`; answering has a `DynamicCache` and
runs that of `GenerationMixin._sample`, greedily, with the head on the last position only. The loops' bodies
are repeated here because `generate` prepares anew at each call what a step does not need. Between steps the
cache is cut back to where it was. The weights are ours, shared under the names of `janus.weights.names`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from janus.models.janus import Janus
from janus.weights.config_files import format_config
from janus.weights.save import named_tensors
from timer import Call


def build(model: Janus) -> Any:
    """Transformers' modules around the weights of ours. Those of images must be what its class can be."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a model that its class cannot be
        values = format_config(
            model.config, "transformers", dtype=str(model.dtype).removeprefix("torch."), image_token_id=0
        )
    with torch.device("meta"):
        theirs = JanusForConditionalGeneration(JanusConfig.from_dict(values))
    missing, unexpected = theirs.load_state_dict(
        named_tensors(model, "transformers"), strict=False, assign=True
    )
    if missing or unexpected:
        raise ValueError(f"missing {missing[:10]}, unexpected {unexpected[:10]} in transformers' Janus")
    compute_buffers(theirs, model.device)
    return theirs.eval()


def compute_buffers(theirs: nn.Module, device: torch.device) -> None:
    """What its classes compute when they are made, on the meta device till here."""
    for name, module in list(theirs.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        if "rotary" in type(module).__name__.lower():
            parent, _, leaf = name.rpartition(".")
            with torch.device(device):
                setattr(theirs.get_submodule(parent), leaf, type(module)(module.config))
        else:
            module.position_ids = torch.arange(module.num_positions, device=device).expand(1, -1)
    left = [name for name, tensor in theirs.state_dict(keep_vars=True).items() if tensor.is_meta]
    left += [name for name, tensor in theirs.named_buffers() if tensor.is_meta]
    if left:
        raise ValueError(f"{left[:10]} of transformers' Janus have no values")


def filled(cache: Any, keys: Tensor, values: Tensor) -> Any:
    """The cache, with keys and values (layers, R, G, K, d) of what came before."""
    for layer, (its_keys, its_values) in enumerate(zip(keys, values, strict=True)):
        cache.update(its_keys.contiguous(), its_values.contiguous(), layer)
    return cache


def picture_step(theirs: Any, keys: Tensor, values: Tensor, codes: Tensor, *, guidance: float) -> Call:
    """One code of each picture: the past of either kind of row, (layers, 2, G, K, d), and (P,) codes."""
    from transformers import LogitsProcessorList, StaticCache
    from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor

    past = keys.shape[3]
    cache = StaticCache(config=theirs.config.get_text_config(decoder=True), max_cache_len=past + 1)
    filled(cache, *(part.repeat_interleave(len(codes), dim=1) for part in (keys, values)))
    processors = LogitsProcessorList([ClassifierFreeGuidanceLogitsProcessor(guidance)])
    rows = 2 * len(codes)
    ids = torch.zeros(len(codes), past, dtype=torch.long, device=codes.device)
    mask = torch.ones(rows, past + 1, dtype=torch.long, device=codes.device)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        for layer in cache.layers:
            layer.cumulative_length.fill_(past)
        embeds = theirs.prepare_embeddings_for_image_generation(torch.cat((codes, codes))[:, None])
        options = {"past_key_values": cache, "attention_mask": mask, "use_cache": True}
        given = theirs.prepare_inputs_for_generation(
            inputs_embeds=embeds, input_ids=ids, is_first_iteration=True, **options
        )
        outputs = theirs.model.language_model(**given)
        theirs._update_model_kwargs_for_generation(outputs, options)
        scores = theirs.model.generation_head(outputs.last_hidden_state[:, -1, :].clone())
        chosen = torch.multinomial(torch.softmax(processors(ids, scores), dim=-1), num_samples=1).squeeze(-1)
        return *scores.chunk(2), chosen

    return call


def picture(theirs: Any, prompts: Tensor, *, guidance: float, pad_id: int) -> Call:
    """Whole pictures from prompts (P, L) of equal length, by its own `generate`."""
    from transformers import GenerationConfig

    theirs.generation_config = GenerationConfig(
        bos_token_id=int(prompts[0, 0]),
        eos_token_id=int(prompts[0, 0]),
        pad_token_id=pad_id,
        generation_kwargs={"boi_token_id": int(prompts[0, -1])},
    )

    def call() -> tuple[Tensor, Tensor]:
        codes = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_mode="image",
            do_sample=True,
            guidance_scale=guidance,
        )
        return codes, theirs.model.vqmodel.decode(codes)

    return call


def text_step(theirs: Any, keys: Tensor, values: Tensor, token: Tensor) -> Call:
    """One word: (layers, 1, G, K, d) of the past and the word (1,) before it."""
    from transformers import DynamicCache

    past = keys.shape[3]
    cache = filled(DynamicCache(config=theirs.config.get_text_config(decoder=True)), keys, values)
    ids = token.new_zeros(1, past + 1)
    ids[:, -1] = token
    mask = torch.ones_like(ids)

    def call() -> tuple[Tensor, Tensor]:
        if cache.get_seq_length() > past:
            cache.crop(past - cache.get_seq_length())
        options = {"past_key_values": cache, "attention_mask": mask, "use_cache": True, "logits_to_keep": 1}
        given = theirs.prepare_inputs_for_generation(ids, next_sequence_length=1, **options)
        return _chosen(theirs, theirs(**given, return_dict=True), options)

    return call


def _chosen(theirs: Any, outputs: Any, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    theirs._update_model_kwargs_for_generation(outputs, options)
    logits = outputs.logits[:, -1, :].to(copy=True, dtype=torch.float32)
    return logits, torch.argmax(logits, dim=-1)


def prefill(theirs: Any, embeds: Tensor) -> Call:
    """A prompt (1, S, D), and the first word of its answer."""
    from transformers import DynamicCache

    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    ids = mask[:, :0]

    def call() -> tuple[Tensor, Tensor]:
        cache = DynamicCache(config=theirs.config.get_text_config(decoder=True))
        options = {"past_key_values": cache, "attention_mask": mask, "use_cache": True, "logits_to_keep": 1}
        given = theirs.prepare_inputs_for_generation(
            ids, inputs_embeds=embeds, is_first_iteration=True, **options
        )
        return _chosen(theirs, theirs(**given, return_dict=True), options)

    return call


def vision_encode(theirs: Any, pixels: Tensor) -> Call:
    return lambda: theirs.model.get_image_features(pixels, return_dict=True).pooler_output


def vq_decode(theirs: Any, codes: Tensor) -> Call:
    """Codes (P, h, w) to pixels."""
    return lambda: theirs.model.vqmodel.decode(codes.flatten(1))


def train_step(theirs: Any, words: Tensor) -> Call:
    """Its own loss of each word (1, S) after those before it."""
    from bench_train_step import training

    shown = theirs.model.language_model.norm.weight, theirs.model.language_model.embed_tokens.weight
    return training(theirs, lambda: theirs(input_ids=words, labels=words, use_cache=False).loss, shown)
