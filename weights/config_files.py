"""`config.json` in its two dialects: the released `multi_modality`, and transformers' `janus`.

Absent keys mean the released sizes, or Llama's defaults for the language model. A value that cannot be
honored raises with its key; keys that say nothing to this library are kept and written again in the same
dialect.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus.config import AnyConfig, JanusFlowConfig
from janus.weights import config_deepseek, config_janusflow, config_transformers
from janus.weights.json_object import JsonObject, parse_object
from janus.weights.names import Layout, naming_of

MODEL_TYPES: dict[str, Layout] = {"multi_modality": "deepseek", "janus": "transformers"}


def read_config(folder: Path) -> tuple[AnyConfig, Layout]:
    """The architecture that a checkpoint folder states, and the layout that it is written in.

    Raises FileNotFoundError without a `config.json`, ValueError for one that is broken, of another model, or
    asks for what this library does not compute.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not a checkpoint folder")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    values = parse_object(text, str(path))
    try:
        return parse_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_config(values: Mapping[str, Any]) -> tuple[AnyConfig, Layout]:
    """As `read_config`, of the JSON object itself."""
    top = JsonObject(values)
    layout = MODEL_TYPES.get(top.text("model_type") or "")
    if layout is None:
        raise top.fail("model_type", f"not a Janus checkpoint; supported: {', '.join(MODEL_TYPES)}")
    if layout == "transformers":
        if top.stated("quantization_config"):
            raise top.fail("quantization_config", "weights quantized by transformers are not read")
        return config_transformers.parse(top), layout
    if "vision_gen_enc_config" in values:  # the one model type is that of both
        return config_janusflow.parse(top), layout
    return config_deepseek.parse(top), layout


def format_config(
    config: AnyConfig, layout: Layout, *, dtype: str, image_token_id: int | None = None
) -> dict[str, Any]:
    """The JSON object that states this architecture. `dtype` is that of the weights beside it.

    Transformers' dialect also names the id of the image token. Where its model class cannot be this
    architecture a warning says so: what is written then is for this library's own reader.
    """
    if isinstance(config, JanusFlowConfig):
        naming_of(config, layout)  # raises where the layout has no JanusFlow
        new = config_janusflow.render(config, dtype)
    elif layout == "deepseek":
        new = config_deepseek.render(config, dtype)
    else:
        new = config_transformers.render(config, dtype, image_token_id)
    return _merge(config.extra.get(layout, {}), new)


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`, object by object: what `new` does not mention stays."""
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = (
            _merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
        )
    return merged
