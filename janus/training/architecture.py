"""The architecture in a recipe: the name of a preset, or a table of sizes like those of `janus.config`.

A table may begin from a `preset` and say only what differs. What follows from other sizes need not be said:
the widths of adapters, the image head's, the head width and the number of key-value heads. Nor what all
released models have alike. A table of `vq` alone is a VQ tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from janus.config import PRESETS, AdapterConfig, JanusConfig, LanguageConfig, VisionConfig, VQConfig
from janus.training.recipe_fields import RecipeError, UnknownKey, annotated, describe, fit, show, unknown

PARTS: dict[str, type] = {
    "vision": VisionConfig,
    "vision_adapter": AdapterConfig,
    "vq": VQConfig,
    "code_adapter": AdapterConfig,
    "language": LanguageConfig,
}
KEYS = ("preset", *PARTS, "image_head_width", "dtype")
# What the released models have alike, and small ones as well.
ALIKE = {
    "vision": ("mlp_ratio", "select_layer", "norm_eps"),
    "vision_adapter": ("kind", "depth"),
    "vq": ("code_width", "residual_blocks"),
    "code_adapter": ("kind", "depth"),
    "language": ("norm_eps", "rope_theta", "tied_head"),
}
DERIVED = {
    "vision_adapter": ("input_width", "output_width"),
    "code_adapter": ("input_width", "output_width"),
    "language": ("kv_heads", "head_width"),
}


def parse_architecture(value: Any) -> JanusConfig | VQConfig:
    """What a recipe says of the architecture; RecipeError with the key, or ValueError, for what cannot be."""
    if isinstance(value, JanusConfig | VQConfig):
        return value
    if isinstance(value, str):
        return _preset(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{show(value)} is neither a preset's name nor a table of sizes")
    for key, table in value.items():
        if key not in KEYS:
            raise UnknownKey((key,), unknown(key, KEYS))
        if key in PARTS and not isinstance(table, Mapping):
            raise RecipeError((key,), f"{show(table)} is not a table of sizes")
    if set(value) == {"vq"}:
        return _part("vq", {**_alike("vq"), **value["vq"]})
    return _janus(value)


def _preset(name: Any) -> JanusConfig:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"{show(name)} {unknown(name, tuple(PRESETS))}")
    return PRESETS[name]


def _janus(table: Mapping[str, Any]) -> JanusConfig:
    try:
        preset = _preset(table["preset"]) if "preset" in table else None
    except ValueError as error:
        raise RecipeError(("preset",), str(error)) from None
    sizes: dict[str, dict[str, Any]] = {}
    for part, cls in PARTS.items():
        base = _alike(part) if preset is None else _numbers(getattr(preset, part))
        kept = {key: number for key, number in base.items() if key not in DERIVED.get(part, ())}
        sizes[part] = {**kept, **table.get(part, {})}
        _check_keys(part, cls, sizes[part])
    _derive(sizes)
    parts: dict[str, Any] = {part: _part(part, sizes[part]) for part in PARTS}
    width = table.get("image_head_width", parts["language"].width)
    dtype = table.get("dtype", "float32" if preset is None else preset.dtype)
    return JanusConfig(
        **parts,
        image_head_width=fit(int, width, ("image_head_width",), {"least": 1}),
        dtype=fit(str, dtype, ("dtype",), {}),
    )


def _alike(part: str) -> dict[str, Any]:
    released = getattr(PRESETS["Janus-Pro-1B"], part)
    return {key: getattr(released, key) for key in ALIKE[part]}


def _numbers(config: Any) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in fields(config)}


def _check_keys(part: str, cls: type, sizes: Mapping[str, Any]) -> None:
    """Keys that there are, and no other; those that follow from others may be missing still."""
    known = tuple(each.name for each in fields(cls))
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
        sizes[adapter].setdefault("input_width", sizes[source][width])
        sizes[adapter].setdefault("output_width", language["width"])


def _part(part: str, sizes: Mapping[str, Any]) -> Any:
    cls = PARTS[part]
    sizes = dict(sizes)
    if part == "vq" and "encoder_multipliers" in sizes:
        sizes.setdefault("decoder_multipliers", sizes["encoder_multipliers"])
    _check_keys(part, cls, sizes)
    values = {each.name: fit(hint, sizes[each.name], (part, each.name), {}) for each, hint in annotated(cls)}
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError((part,), str(error)) from None


def render_architecture(config: JanusConfig | VQConfig) -> str | dict[str, Any]:
    """What `parse_architecture` reads back: the name of the preset it equals, or a table of all sizes."""
    if isinstance(config, VQConfig):
        return {"vq": _plain(config)}
    for name, preset in PRESETS.items():
        if config == preset:
            return name
    if config.quantization is not None:
        raise ValueError(f"a model quantised to {config.quantization} is not trained: load it unquantised")
    parts = {part: _plain(getattr(config, part)) for part in PARTS}
    return {**parts, "image_head_width": config.image_head_width, "dtype": config.dtype}


def _plain(config: Any) -> dict[str, Any]:
    return {
        key: list(number) if isinstance(number, tuple) else number for key, number in _numbers(config).items()
    }
