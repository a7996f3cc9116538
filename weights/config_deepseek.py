"""The released dialect of `config.json`, `model_type: multi_modality`: parts of a class and parameters.

Here that of Janus and Janus-Pro, and what JanusFlow's (`config_janusflow`) has in common with it.
"""

from collections.abc import Mapping
from typing import Any

from janus.config import SIGLIP_PRESETS, AdapterConfig, JanusConfig, LanguageConfig, VisionConfig, VQConfig
from janus.weights.config_language import (
    format_language,
    format_quantization,
    parse_adapter_kind,
    parse_dtype,
    parse_language,
    parse_quantization,
)
from janus.weights.json_object import JsonObject

# What the original's VQ-16 is built with, whatever its config says; the keys are this library's extension.
RELEASED_VQ: dict[str, Any] = {
    "ch": 128,
    "encoder_ch_mult": [1, 1, 2, 2, 4],
    "decoder_ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "z_channels": 256,
}
CLASSES = {
    "vision": "CLIPVisionTower",
    "aligner": "MlpProjector",
    "gen_vision": "VQ-16",
    "gen_aligner": "MlpProjector",
    "gen_head": "vision_head",
}


def parse_parts(top: JsonObject, classes: Mapping[str, str]) -> dict[str, JsonObject]:
    """The parameters of each part, which must be of its class."""
    sections = {part: top.section(f"{part}_config") for part in classes}
    for part, cls in classes.items():
        if not sections[part].values:
            raise ValueError(f"{part}_config is missing")
        sections[part].require("cls", cls)
    return {part: section.section("params") for part, section in sections.items()}


def parse_llama(top: JsonObject) -> tuple[LanguageConfig, str]:
    """The language model, and the dtype that its section or the top object states."""
    section = top.section("language_config")
    if not section.values:
        raise ValueError("language_config is missing")
    tied = section.flag("tie_word_embeddings", False)
    return parse_language(section, tied=tied), parse_dtype(top, section)


def parse_vision(params: JsonObject) -> VisionConfig:
    params.require("model_name", *SIGLIP_PRESETS)
    params.require("pixel_mean", None)
    params.require("pixel_std", None)
    preset = SIGLIP_PRESETS[params.values["model_name"]]
    # An absent image_size or select_layer means what it means to the original's CLIPVisionTower: 336 and -2.
    return VisionConfig(
        image_size=params.whole("image_size", 336),
        patch_size=params.whole("patch_size", preset["patch_size"]),
        width=params.whole("width", preset["width"]),
        layers=params.whole("layers", preset["layers"]),
        heads=params.whole("heads", preset["heads"]),
        mlp_ratio=params.number("mlp_ratio", preset["mlp_ratio"]),
        select_layer=params.whole("select_layer", -2),
        norm_eps=1e-6,
    )


def parse(top: JsonObject) -> JanusConfig:
    """The architecture that the top object states; ValueError for what cannot be honored."""
    params = parse_parts(top, CLASSES)
    language, dtype = parse_llama(top)
    vision = parse_vision(params["vision"])
    codes = params["gen_vision"].whole("image_token_size", 16384)
    head = params["gen_head"]
    if head.whole("image_token_size", codes) != codes:
        raise head.fail("image_token_size", f"must equal gen_vision_config.params.image_token_size, {codes}")
    if head.whole("n_embed", language.width) != language.width:
        raise head.fail("n_embed", f"must equal the language model's hidden_size, {language.width}")

    def adapter(part: str, input_width: int) -> AdapterConfig:
        section = params[part]
        return AdapterConfig(
            kind=parse_adapter_kind(section, "projector_type"),
            depth=section.whole("depth", 1),
            input_width=section.whole("input_dim", input_width),
            output_width=section.whole("n_embed", language.width),
        )

    code_width = params["gen_vision"].whole("n_embed", 8)
    return JanusConfig(
        vision=vision,
        vision_adapter=adapter("aligner", vision.width),
        vq=VQConfig(
            codes=codes,
            code_width=code_width,
            channels=params["gen_vision"].whole("ch", RELEASED_VQ["ch"]),
            encoder_multipliers=params["gen_vision"].wholes(
                "encoder_ch_mult", RELEASED_VQ["encoder_ch_mult"]
            ),
            decoder_multipliers=params["gen_vision"].wholes(
                "decoder_ch_mult", RELEASED_VQ["decoder_ch_mult"]
            ),
            residual_blocks=params["gen_vision"].whole("num_res_blocks", RELEASED_VQ["num_res_blocks"]),
            latent_channels=params["gen_vision"].whole("z_channels", RELEASED_VQ["z_channels"]),
        ),
        code_adapter=adapter("gen_aligner", code_width),
        image_head_width=head.whole("image_token_embed", language.width),
        language=language,
        dtype=dtype,
        quantization=parse_quantization(top),
        extra={"deepseek": top.values},
    )


def _adapter(part: str, adapter_config: AdapterConfig) -> dict[str, Any]:
    params = {
        "depth": adapter_config.depth,
        "input_dim": adapter_config.input_width,
        "n_embed": adapter_config.output_width,
        "projector_type": adapter_config.kind,
    }
    return {"cls": "MlpProjector", "model_type": part, "params": params}


def _params(source: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The parameters of a part in the file that the config was read from, if any."""
    return (source.get(f"{part}_config") or {}).get("params") or {}


def _unless_implied(
    written: dict[str, Any], implied: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """The released files do not state these sizes: only what their absence does not say is written."""
    return {key: value for key, value in written.items() if value != implied[key] or key in before}


def format_top(quantization: str | None, dtype: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the parts; `source` is the file that the config was read from."""
    return {
        "model_type": "multi_modality",
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": dtype,
        **({"dtype": dtype} if "dtype" in source else {}),
        **format_quantization(quantization),
    }


def format_vision(vision: VisionConfig, part: str, source: Mapping[str, Any]) -> dict[str, Any]:
    if vision.norm_eps != 1e-6:
        raise ValueError(
            f"the released layout fixes SigLIP's norm epsilon at 1e-6, and this model has {vision.norm_eps}"
        )
    sizes = {
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.layers,
        "heads": vision.heads,
        "mlp_ratio": vision.mlp_ratio,
    }
    before = _params(source, part)
    name = before.get("model_name", "siglip_large_patch16_384")
    params = {
        "image_size": vision.image_size,
        "model_name": name,
        "select_feature": "same",
        "select_layer": vision.select_layer,
        **_unless_implied(sizes, SIGLIP_PRESETS[name], before),
    }
    return {"cls": "CLIPVisionTower", "model_type": part, "params": params}


def format_llama(language: LanguageConfig, dtype: str, source: Mapping[str, Any]) -> dict[str, Any]:
    # Transformers 5 may have written these a second time, under names that take precedence.
    again = {"dtype": dtype, "rope_parameters": {"rope_theta": language.rope_theta}}
    before = source.get("language_config") or {}
    return {
        **format_language(language),
        "torch_dtype": dtype,
        **{key: value for key, value in again.items() if key in before},
    }


def render(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """The keys of this dialect that state the architecture."""
    vq = config.vq
    head = {
        "image_token_embed": config.image_head_width,
        "image_token_size": vq.codes,
        "n_embed": config.language.width,
    }
    source = config.extra.get("deepseek", {})
    vq_sizes = {
        "ch": vq.channels,
        "encoder_ch_mult": list(vq.encoder_multipliers),
        "decoder_ch_mult": list(vq.decoder_multipliers),
        "num_res_blocks": vq.residual_blocks,
        "z_channels": vq.latent_channels,
    }

    return {
        **format_top(config.quantization, dtype, source),
        "vision_config": format_vision(config.vision, "vision", source),
        "aligner_config": _adapter("aligner", config.vision_adapter),
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {
                "image_token_size": vq.codes,
                "n_embed": vq.code_width,
                **_unless_implied(vq_sizes, RELEASED_VQ, _params(source, "gen_vision")),
            },
        },
        "gen_aligner_config": _adapter("gen_aligner", config.code_adapter),
        "gen_head_config": {"cls": "vision_head", "model_type": "gen_head", "params": head},
        "language_config": format_llama(config.language, dtype, source),
    }
