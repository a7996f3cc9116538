"""The architecture in a recipe: the name of a preset, or a table of sizes like those of `janus.config`.

A table may begin from a `preset` and say only what differs. What follows from other sizes need not be said:
the widths of adapters, the image head's, the head width and the number of key-value heads. Nor what all
released models have alike. A table with a `uvit` is a JanusFlow; one of `vq` alone is a VQ tokenizer, and one
of `vae` alone the autoencoder of a JanusFlow's latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from janus.config import (
    FLOW_PRESETS,
    PRESETS,
    AdapterConfig,
    AnyConfig,
    JanusConfig,
    JanusFlowConfig,
    LanguageConfig,
    UViTConfig,
    VisionConfig,
    VQConfig,
)
from janus.models.vae import SDXL, VAEConfig
from janus.training.recipe.fields import RecipeError, UnknownKey, annotated, describe, fit, show, unknown

PARTS: dict[str, type] = {
    "vision": VisionConfig,
    "vision_adapter": AdapterConfig,
    "vq": VQConfig,
    "code_adapter": AdapterConfig,
    "language": LanguageConfig,
}
FLOW_PARTS: dict[str, type] = {"vision": VisionConfig, "uvit": UViTConfig, "language": LanguageConfig}
ALONE: dict[str, type] = {"vq": VQConfig, "vae": VAEConfig}
CLASSES = PARTS | FLOW_PARTS | ALONE
KEYS = ("preset", *PARTS, "image_head_width", "dtype")
FLOW_KEYS = ("preset", *FLOW_PARTS, "dtype")
Architecture = AnyConfig | VQConfig | VAEConfig
# What the released models have alike, and small ones as well.
ALIKE = {
    "vision": ("mlp_ratio", "select_layer", "norm_eps"),
    "vision_adapter": ("kind", "depth"),
    "vq": ("code_width", "residual_blocks"),
    "code_adapter": ("kind", "depth"),
    "language": ("norm_eps", "rope_theta", "tied_head"),
    "uvit": (
        "latent_channels",
        "kernel_size",
        "padding",
        "encoder_blocks",
        "decoder_blocks",
        "encoder_norm_eps",
        "decoder_norm_eps",
    ),
    "vae": ("residual_blocks", "latent_channels", "groups", "force_upcast"),
}
DERIVED = {
    "vision_adapter": ("input_width", "output_width"),
    "code_adapter": ("input_width", "output_width"),
    "language": ("kv_heads", "head_width"),
    "uvit": ("decoder_width", "time_width"),
}
UNSAID = ("extra",)  # what a config keeps of a file, and no recipe says


def parse_architecture(value: Any) -> Architecture:
    """What a recipe says of the architecture; RecipeError with the key, or ValueError, for what cannot be."""
    if isinstance(value, Architecture):
        return value
    if isinstance(value, str):
        return _preset(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{show(value)} is neither a preset's name nor a table of sizes")
    if set(value) in ({"vq"}, {"vae"}):
        (part,) = value
        _check_table(value, (part,))
        return _part(part, {**_alike(part), **value[part]})
    try:
        preset = _preset(value["preset"]) if "preset" in value else None
    except ValueError as error:
        raise RecipeError(("preset",), str(error)) from None
    if isinstance(preset, JanusFlowConfig) or (preset is None and "uvit" in value):
        return _flow(value, preset)
    return _janus(value, preset)


def _check_table(table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key, inner in table.items():
        if key not in known:
            raise UnknownKey((key,), unknown(key, known))
        if key in CLASSES and not isinstance(inner, Mapping):
            raise RecipeError((key,), f"{show(inner)} is not a table of sizes")


def _preset(name: Any) -> AnyConfig:
    presets: dict[str, AnyConfig] = {**PRESETS, **FLOW_PRESETS}
    if not isinstance(name, str) or name not in presets:
        raise ValueError(f"{show(name)} {unknown(name, tuple(presets))}")
    return presets[name]


def _janus(table: Mapping[str, Any], preset: AnyConfig | None) -> JanusConfig:
    _check_table(table, KEYS)
    parts = _parts(table, PARTS, preset)
    width = table.get("image_head_width", parts["language"].width)
    return JanusConfig(
        **parts,
        image_head_width=fit(int, width, ("image_head_width",), {"least": 1}),
        dtype=_dtype(table, preset),
    )


def _flow(table: Mapping[str, Any], preset: AnyConfig | None) -> JanusFlowConfig:
    _check_table(table, FLOW_KEYS)
    return JanusFlowConfig(**_parts(table, FLOW_PARTS, preset), dtype=_dtype(table, preset))


def _dtype(table: Mapping[str, Any], preset: AnyConfig | None) -> str:
    dtype = table.get("dtype", "float32" if preset is None else preset.dtype)
    return str(fit(str, dtype, ("dtype",), {}))


def _parts(table: Mapping[str, Any], classes: Mapping[str, type], preset: AnyConfig | None) -> dict[str, Any]:
    """The configs of a model's parts by name: the preset's, changed as the table says, or the table's."""
    sizes: dict[str, dict[str, Any]] = {}
    for part, cls in classes.items():
        base = _alike(part) if preset is None else _numbers(getattr(preset, part))
        kept = {key: number for key, number in base.items() if key not in DERIVED.get(part, ())}
        sizes[part] = {**kept, **table.get(part, {})}
        _check_keys(part, cls, sizes[part])
    _derive(sizes)
    return {part: _part(part, sizes[part]) for part in classes}


def _alike(part: str) -> dict[str, Any]:
    owner: Any = FLOW_PRESETS["JanusFlow-1.3B"] if part == "uvit" else PRESETS["Janus-Pro-1B"]
    released = SDXL if part == "vae" else getattr(owner, part)
    return {key: getattr(released, key) for key in ALIKE[part]}


def _numbers(config: Any) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in fields(config) if each.name not in UNSAID}


def _check_keys(part: str, cls: type, sizes: Mapping[str, Any]) -> None:
    """Keys that there are, and no other; those that follow from others may be missing still."""
    known = tuple(each.name for each in fields(cls) if each.name not in UNSAID)
    for key in sizes:
        if key not in known:
            raise UnknownKey((part, key), unknown(key, known))
    for key in known:
        follows = key in DERIVED.get(part, ()) or (
            key == "decoder_multipliers" and "encoder_multipliers" in sizes
        )
        if key not in sizes and not follows:
            hint = next(hint for each, hint in annotated(cls) if each.name == key)
            raise RecipeError((part, key), f"is missing: give {describe(hint, {})}, or begin from a preset")


def _derive(sizes: dict[str, dict[str, Any]]) -> None:
    """Fill in, in place, what follows from the sizes of other parts."""
    language = sizes["language"]
    language.setdefault("kv_heads", language["heads"])
    if "head_width" not in language:
        width, heads = (
            fit(int, language[key], ("language", key), {"least": 1}) for key in ("width", "heads")
        )
        if width % heads:
            text = f"is missing: width {width} is not a multiple of {heads} heads, so give it"
            raise RecipeError(("language", "head_width"), text)
        language["head_width"] = width // heads
    for adapter, source, width in (
        ("vision_adapter", "vision", "width"),
        ("code_adapter", "vq", "code_width"),
    ):
        if adapter in sizes:
            sizes[adapter].setdefault("input_width", sizes[source][width])
            sizes[adapter].setdefault("output_width", language["width"])
    if "uvit" in sizes:
        sizes["uvit"].setdefault("decoder_width", sizes["uvit"]["width"])
        sizes["uvit"].setdefault("time_width", language["width"])


def _part(part: str, sizes: Mapping[str, Any]) -> Any:
    cls = CLASSES[part]
    sizes = dict(sizes)
    if part == "vq" and "encoder_multipliers" in sizes:
        sizes.setdefault("decoder_multipliers", sizes["encoder_multipliers"])
    if part == "vae":
        sizes.setdefault("scaling_factor", 1.0)  # until it is measured, when training is over
    _check_keys(part, cls, sizes)
    values = {
        each.name: fit(hint, sizes[each.name], (part, each.name), {})
        for each, hint in annotated(cls)
        if each.name not in UNSAID
    }
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError((part,), str(error)) from None


def render_architecture(config: Architecture) -> str | dict[str, Any]:
    """What `parse_architecture` reads back: the name of the preset it equals, or a table of all sizes."""
    if isinstance(config, VQConfig):
        return {"vq": _plain(config)}
    if isinstance(config, VAEConfig):
        return {"vae": _plain(config)}
    for name, preset in (*PRESETS.items(), *FLOW_PRESETS.items()):
        if config == preset:
            return name
    if config.quantization is not None:
        raise ValueError(f"a model quantized to {config.quantization} is not trained: load it unquantized")
    if isinstance(config, JanusFlowConfig):
        return {**{part: _plain(getattr(config, part)) for part in FLOW_PARTS}, "dtype": config.dtype}
    parts = {part: _plain(getattr(config, part)) for part in PARTS}
    return {**parts, "image_head_width": config.image_head_width, "dtype": config.dtype}


def _plain(config: Any) -> dict[str, Any]:
    return {
        key: list(number) if isinstance(number, tuple) else number for key, number in _numbers(config).items()
    }
