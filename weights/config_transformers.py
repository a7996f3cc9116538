"""Transformers' dialect of `config.json`, `model_type: janus`: three parts, adapters among them."""

import warnings
from collections.abc import Mapping
from typing import Any

from janus.config import AdapterConfig, JanusConfig, VisionConfig, VQConfig
from janus.weights.config_language import (
    format_language,
    parse_adapter_kind,
    parse_dtype,
    parse_language,
)
from janus.weights.json_object import JsonObject


def parse(top: JsonObject) -> JanusConfig:
    """The architecture that the top object states; ValueError for what cannot be honored."""
    vision, vq, text = (top.section(f"{part}_config") for part in ("vision", "vq", "text"))
    for section in (vision, vq):
        section.require("hidden_act", "gelu", absent="gelu")
    vision.require("attention_bias", True, absent=True)
    vision.require("use_qk_norm", False, absent=False)
    vision.require("num_channels", 3, absent=3)
    vq.require("double_latent", False, absent=False)
    vq.require("in_channels", 3, absent=3)
    vq.require("out_channels", 3, absent=3)
    language = parse_language(text, tied=top.flag("tie_word_embeddings", True))
    width = vision.whole("hidden_size", 1024)
    code_width = vq.whole("embed_dim", 8)
    multipliers = vq.wholes("channel_multiplier", (1, 1, 2, 2, 4))
    return JanusConfig(
        vision=VisionConfig(
            image_size=vision.whole("image_size", 384),
            patch_size=vision.whole("patch_size", 16),
            width=width,
            layers=vision.whole("num_hidden_layers", 24),
            heads=vision.whole("num_attention_heads", 16),
            mlp_ratio=vision.number("mlp_ratio", 4.0),
            select_layer=-1,
            norm_eps=vision.number("layer_norm_eps", 1e-6),
        ),
        vision_adapter=AdapterConfig(
            kind=parse_adapter_kind(vision, "projector_type"),
            depth=vision.whole("depth", 2),
            input_width=width,
            output_width=vision.whole("projection_dim", 2048),
        ),
        vq=VQConfig(
            codes=vq.whole("num_embeddings", 16384),
            code_width=code_width,
            channels=vq.whole("base_channels", 128),
            encoder_multipliers=multipliers,
            decoder_multipliers=vq.wholes("decoder_channel_multiplier", multipliers),
            residual_blocks=vq.whole("num_res_blocks", 2),
            latent_channels=vq.whole("latent_channels", 256),
        ),
        code_adapter=AdapterConfig(
            kind=parse_adapter_kind(vq, "projector_type"),
            depth=vq.whole("num_hidden_layers", 2),
            input_width=code_width,
            output_width=vq.whole("projection_dim", 2048),
        ),
        image_head_width=vq.whole("image_head_width", vq.whole("projection_dim", 2048)),
        language=language,
        dtype=parse_dtype(top, text),
        extra={"transformers": top.values},
    )


def _obstacles(config: JanusConfig) -> list[str]:
    """Why transformers' model class cannot be this architecture, if it cannot."""
    pairs = [
        ("image_head_width", config.image_head_width, config.language.width),
        ("vq.decoder_multipliers", config.vq.decoder_multipliers, config.vq.encoder_multipliers),
        ("grid of codes", config.grid, config.vision.image_size // config.vision.patch_size),
        ("vision_adapter.kind", config.vision_adapter.kind, "mlp_gelu"),
        ("code_adapter.kind", config.code_adapter.kind, "mlp_gelu"),
    ]
    return [f"{what} is {value}, not {needed}" for what, value, needed in pairs if value != needed]


def render(config: JanusConfig, dtype: str, image_token_id: int | None) -> dict[str, Any]:
    """The keys of this dialect that state the architecture; a warning where only this library reads them."""
    obstacles = _obstacles(config)
    if obstacles:
        warnings.warn(
            f"transformers' own Janus cannot load this model ({'; '.join(obstacles)}); this library can",
            stacklevel=5,  # the caller of save_pretrained
        )
    vision, vq = config.vision, config.vq
    before = {
        part: config.extra.get("transformers", {}).get(part) or {} for part in ("vision_config", "vq_config")
    }
    language = format_language(config.language)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": config.language.rope_theta}}
    return {
        "model_type": "janus",
        "architectures": ["JanusForConditionalGeneration"],
        "dtype": dtype,
        "tie_word_embeddings": config.language.tied_head,
        **({} if image_token_id is None else {"image_token_id": image_token_id}),
        "text_config": {**language, **rope, "dtype": dtype},
        "vision_config": {
            "model_type": "janus_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "mlp_ratio": vision.mlp_ratio,
            "layer_norm_eps": vision.norm_eps,
            "num_image_tokens": vision.tokens,
            "projection_dim": config.vision_adapter.output_width,
            "depth": config.vision_adapter.depth,
            **_unless(before["vision_config"], "projector_type", config.vision_adapter.kind, "mlp_gelu"),
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "num_embeddings": vq.codes,
            "embed_dim": vq.code_width,
            "base_channels": vq.channels,
            "channel_multiplier": list(vq.encoder_multipliers),
            "num_res_blocks": vq.residual_blocks,
            "latent_channels": vq.latent_channels,
            "num_patches": vision.image_size // vision.patch_size,
            "projection_dim": config.code_adapter.output_width,
            "num_hidden_layers": config.code_adapter.depth,
            "image_token_embed_dim": config.language.width,
            # Keys that transformers does not know: written only where its own cannot say it.
            **_unless(
                before["vq_config"],
                "decoder_channel_multiplier",
                list(vq.decoder_multipliers),
                list(vq.encoder_multipliers),
            ),
            **_unless(before["vq_config"], "projector_type", config.code_adapter.kind, "mlp_gelu"),
            **_unless(
                before["vq_config"],
                "image_head_width",
                config.image_head_width,
                config.code_adapter.output_width,
            ),
        },
    }


def _unless(before: Mapping[str, Any], key: str, value: object, implied: object) -> dict[str, object]:
    """Nothing where the key's absence says so already, and the file read from does not have it either."""
    return {} if value == implied and key not in before else {key: value}
