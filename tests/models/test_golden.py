"""Every stage of the models against what the original code computed there.

`REPRODUCED` names the tensors and says how they come about; test_coverage.py checks that none is left out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus.inference.cache import StaticCache
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow

Golden = dict[str, Tensor]
Compute = Callable[[Any, Golden], Tensor]  # of a Janus; what is COMMON, of a JanusFlow too
CONVERSATIONS = ("und0", "und1", "und2", "und3")


def seen_by(module: nn.Module, run: Callable[[], Any], *, inputs: bool = False) -> Any:
    """What the module returned, or was given, while `run` ran."""
    seen: list[Any] = []

    def remember(module: nn.Module, given: tuple[Tensor, ...], result: Any) -> None:
        seen.append(given[0] if inputs else result)

    handle = module.register_forward_hook(remember)
    try:
        run()
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0]


def in_vision(
    choose: Callable[[Janus], nn.Module], model: Janus, golden: Golden, *, inputs: bool = False
) -> Tensor:
    return seen_by(choose(model), partial(model.vision, golden["vision.pixel_values"]), inputs=inputs)


def patches(model: Janus, golden: Golden) -> Tensor:
    """(N, D, h, w) from the convolution; the original's are (N, h w, D)."""
    return in_vision(lambda model: model.vision.patch_embed, model, golden).flatten(2).transpose(1, 2)


def pictures(name: str, golden: Golden) -> Tensor:
    """The pictures of a conversation without the rows that only pad the batch, (N, 3, S, S).

    Those of und3 are not stored: its first conversation has none, the others are und2's.
    """
    name = "und2" if name == "und3" else name
    return golden[f"{name}.pixel_values"][golden[f"{name}.images_emb_mask"].bool().any(-1)]


def embeds(name: str, model: Janus, golden: Golden) -> Tensor:
    mask = golden[f"{name}.images_seq_mask"].bool()
    return model.embed(golden[f"{name}.input_ids"], pictures(name, golden), mask)


def hidden(name: str, model: Janus, golden: Golden) -> Tensor:
    return model.hidden_states(embeds(name, model, golden), golden[f"{name}.attention_mask"].bool())


def last_logits(name: str, model: Janus, golden: Golden) -> Tensor:
    return model.text_logits(hidden(name, model, golden)[:, -4:])


def all_hidden(model: Janus, golden: Golden) -> Tensor:
    """The input, what each layer but the last leaves to be added up, and the result after the final norm."""
    run = partial(hidden, "und1", model, golden)
    layers = [sum(seen_by(layer, run)) for layer in list(model.language.layers)[:-1]]
    return torch.stack([embeds("und1", model, golden), *layers, run()])


def cached(model: Janus, golden: Golden) -> tuple[Tensor, StaticCache]:
    """Logits of und1 read up to its last 6 positions, then one position at a time; and the cache after it."""
    inputs = embeds("und1", model, golden)
    length = inputs.shape[1]
    cache = StaticCache(model.config.language, 1, length + 5, device=torch.device("cpu"), dtype=torch.float32)
    chunks = inputs.split([length - 6, *[1] * 6], dim=1)
    steps = [model.hidden_states(chunk, cache=cache)[:, -1] for chunk in chunks]
    assert cache.length == length
    return model.text_logits(torch.stack(steps, dim=1)), cache


def kept(kind: str, model: Janus, golden: Golden) -> Tensor:
    cache = cached(model, golden)[1]
    return getattr(cache, kind)[0, :, :, : cache.length]


def probe(name: str, choose: Callable[[Janus], nn.Module], model: Janus, golden: Golden) -> Tensor:
    """One block on inputs of about 1e-3, where a wrong eps of its norm shows at once."""
    return choose(model)(golden[f"eps_probe.{name}.in0"])


PROBES: dict[str, Callable[[Janus], nn.Module]] = {
    "llm": lambda model: model.language,
    "llm_final_norm": lambda model: model.language.norm,
    "vit_block0": lambda model: model.vision.blocks[0],
    "vit_norm": lambda model: model.vision.norm,
    "vq_decoder_norm_out": lambda model: model.vq.decoder.norm_out,
    "vq_encoder_mid0_resnet": lambda model: model.vq.encoder.mid[0],
    "vq_encoder_mid1_attn": lambda model: model.vq.encoder.mid[1],
}


def codes(golden: Golden) -> Tensor:
    return golden["vq.ids"].view(2, 8, 8)


REPRODUCED: dict[str, Compute] = {
    "vision.patch_embed": patches,
    "vision.pos_embed_added": partial(in_vision, lambda model: model.vision.blocks[0], inputs=True),
    "vision.block0": partial(in_vision, lambda model: model.vision.blocks[0]),
    "vision.block1": partial(in_vision, lambda model: model.vision.blocks[1]),
    "vision.block2": partial(in_vision, lambda model: model.vision.blocks[2]),
    "vision.final_norm": partial(in_vision, lambda model: model.vision.norm),
    "vision.features": lambda model, golden: model.vision(golden["vision.pixel_values"]),
    "vision.aligner_output": lambda model, golden: model.encode_images(golden["vision.pixel_values"]),
    **{f"{name}.inputs_embeds": partial(embeds, name) for name in CONVERSATIONS[:3]},
    **{f"{name}.last_hidden_state": partial(hidden, name) for name in CONVERSATIONS[:3]},
    **{f"{name}.logits_last4": partial(last_logits, name) for name in CONVERSATIONS},
    "und1.all_hidden_states": all_hidden,
    "und1.cached_step_logits": lambda model, golden: cached(model, golden)[0],
    "und1.kv_layer0_key": partial(kept, "keys"),
    "und1.kv_layer0_value": partial(kept, "values"),
    **{f"eps_probe.{name}.out": partial(probe, name, choose) for name, choose in PROBES.items()},
    "gen_head.logits": lambda model, golden: model.image_logits(golden["gen_head.input"]),
    "gen_embed.embedding": lambda model, golden: model.code_embedding(golden["gen_embed.ids"]),
    "gen_embed.aligned": lambda model, golden: model.embed_codes(golden["gen_embed.ids"]),
    "vq.encoder_output": lambda model, golden: model.vq.encoder(golden["vq.image"]),
    "vq.z_before_quantize": lambda model, golden: model.vq.latents(golden["vq.image"]),
    "vq.ids": lambda model, golden: model.vq.encode(golden["vq.image"]).flatten(),
    "vq.quant_straight_through": lambda model, golden: model.vq.quantize(golden["vq.z_before_quantize"])[0],
    "vq.codebook_entry": lambda model, golden: model.vq.lookup(codes(golden)),
    "vq.decode_from_quant": lambda model, golden: model.vq.decode_latents(
        golden["vq.quant_straight_through"]
    ),
    "vq.decode_code_pixels": lambda model, golden: model.vq.decode(codes(golden)),
    "vq.decode_code_pixels_int32ids_2d": lambda model, golden: model.vq.decode(codes(golden).int()),
    "vq.nonsquare_pixels_h2_w5": lambda model, golden: model.vq.decode(
        golden["vq.nonsquare_ids"].view(1, 2, 5)
    ),
    # The prompt as read for drawing: padding in the unconditional rows is attended to, so there is no mask.
    "imagegen.prompt_hidden_states": lambda model, golden: model.hidden_states(
        model.embed(golden["imagegen.prompt_tokens"])
    ),
}


@pytest.mark.parametrize("name", REPRODUCED)
@torch.no_grad()
def test_the_originals_tensor(
    name: str, model: Janus, golden: Golden, close: Callable[[Tensor, Tensor], None]
) -> None:
    close(REPRODUCED[name](model, golden), golden[name])


# What JanusFlow has in common with Janus; test_janusflow.py has the rest.
COMMON = [
    name
    for name in REPRODUCED
    if name.startswith(("vision.", "und", "eps_probe.llm", "eps_probe.vit")) and "aligner" not in name
]


@pytest.mark.parametrize("name", COMMON)
@torch.no_grad()
def test_the_originals_tensor_of_janusflow(
    name: str, flow: JanusFlow, flow_golden: Golden, close: Callable[[Tensor, Tensor], None]
) -> None:
    close(REPRODUCED[name](flow, flow_golden), flow_golden[name])


@torch.no_grad()
def test_codes_have_the_shape_of_the_grid(model: Janus, golden: Golden) -> None:
    encoded = model.vq.encode(golden["vq.image"])
    assert encoded.dtype == torch.int64
    assert torch.equal(encoded, codes(golden))


@torch.no_grad()
def test_padding_rows_are_exactly_zero(model: Janus, golden: Golden) -> None:
    padding = ~golden["und2.attention_mask"].bool()
    assert padding.any()
    assert not hidden("und2", model, golden)[padding].any()
