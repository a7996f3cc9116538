"""JanusFlow's `config.json`: the released dialect, with a U-ViT in place of the picture tokenizer.

Its unknown keys do nothing in the original either (the encoder's `elementwize_affine` is a slip of the pen);
they are kept. What is absent means what it means to the original's classes.
"""

from math import ceil
from typing import Any

from janus.config import LATENT_PATCH, JanusFlowConfig, UViTConfig
from janus.weights.config_deepseek import (
    format_llama,
    format_top,
    format_vision,
    parse_llama,
    parse_parts,
    parse_vision,
)
from janus.weights.config_language import parse_quantization
from janus.weights.json_object import JsonObject

CLASSES = {
    "vision_und_enc": "CLIPVisionTower",
    "vision_gen_enc": "ShallowUViTEncoder",
    "vision_gen_dec": "ShallowUViTDecoder",
}


def parse(top: JsonObject) -> JanusFlowConfig:
    """The architecture that the top object states; ValueError for what cannot be honored."""
    params = parse_parts(top, CLASSES)
    language, dtype = parse_llama(top)
    return JanusFlowConfig(
        vision=parse_vision(params["vision_und_enc"]),
        uvit=_parse_uvit(params["vision_gen_enc"], params["vision_gen_dec"]),
        language=language,
        dtype=dtype,
        quantization=parse_quantization(top),
        extra={"deepseek": top.values},
    )


def _parse_uvit(encoder: JsonObject, decoder: JsonObject) -> UViTConfig:
    for section in (encoder, decoder):
        for switch in ("elementwise_affine", "use_bias", "use_mid_block"):
            section.require(switch, True, absent=True)
    encoder.require("stride", LATENT_PATCH, absent=4)
    decoder.require("upsamples", 1, absent=2)
    latent_channels, time_width = encoder.whole("input_channels", 3), encoder.whole("hidden_size", 2048)
    width = _one_width(encoder)
    for key, value, other, default in (
        ("out_channels", latent_channels, "vision_gen_enc_config.params.input_channels", 3),
        ("hidden_size", time_width, "vision_gen_enc_config.params.hidden_size", 2048),
    ):
        if decoder.whole(key, default) != value:
            raise decoder.fail(key, f"must equal {other}, {value}")
    if _one_width(decoder) != width:
        raise decoder.fail("block_out_channels", f"must be those of the encoder, [{width}]")
    kernel_size = encoder.whole("kernel_size", 7)
    return UViTConfig(
        latent_channels=latent_channels,
        width=width,
        decoder_width=decoder.whole("in_channels", 768),
        time_width=time_width,
        kernel_size=kernel_size,
        padding=encoder.whole("padding", ceil(kernel_size - LATENT_PATCH)),
        encoder_blocks=encoder.whole("layers_in_middle", 2),
        decoder_blocks=decoder.whole("layers_in_middle", 2),
        encoder_norm_eps=encoder.number("norm_eps", 1e-6),
        decoder_norm_eps=decoder.number("norm_eps", 1e-6),
    )


def _one_width(section: JsonObject) -> int:
    widths = section.wholes("block_out_channels", (768,))
    if len(widths) != 1:
        raise section.fail("block_out_channels", "must be a list of one whole number")
    return widths[0]


def render(config: JanusFlowConfig, dtype: str) -> dict[str, Any]:
    """The keys of this dialect that state the architecture."""
    uvit = config.uvit
    source = config.extra.get("deepseek", {})
    common = {
        "block_out_channels": [uvit.width],
        "hidden_size": uvit.time_width,
        "use_bias": True,
        "use_mid_block": True,
    }
    encoder = common | {
        "input_channels": uvit.latent_channels,
        "kernel_size": uvit.kernel_size,
        "stride": LATENT_PATCH,
        "padding": uvit.padding,
        "layers_in_middle": uvit.encoder_blocks,
        "norm_eps": uvit.encoder_norm_eps,
    }
    decoder = common | {
        "in_channels": uvit.decoder_width,
        "out_channels": uvit.latent_channels,
        "upsamples": 1,
        "layers_in_middle": uvit.decoder_blocks,
        "norm_eps": uvit.decoder_norm_eps,
        "elementwise_affine": True,
    }
    return {
        **format_top(config.quantization, dtype, source),
        "vision_und_enc_config": format_vision(config.vision, "vision_und_enc", source),
        "vision_gen_enc_config": _part("vision_gen_enc", encoder),
        "vision_gen_dec_config": _part("vision_gen_dec", decoder),
        "language_config": format_llama(config.language, dtype, source),
    }


def _part(part: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"cls": CLASSES[part], "model_type": part, "params": params}
