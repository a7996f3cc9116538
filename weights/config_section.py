"""What both dialects of `config.json` share: typed access that names a wrong key, and Llama."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast, get_args

from janus.config import AdapterKind, LanguageConfig

LARGEST = 2**31 - 1  # no size of a model is above it, and tensors cannot count much further
DTYPES = ("bfloat16", "float16", "float32", "float64")


class Section:
    """One JSON object of a config, which names the whole path of a key when its value is wrong."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def fail(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}{key} = {json.dumps(self.values.get(key))}: {problem}")

    def section(self, key: str) -> Section:
        """The object under `key`; an empty one where it is absent."""
        values = self.values.get(key)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise self.fail(key, "must be an object")
        return Section(values, f"{self.path}{key}.")

    def whole(self, key: str, default: int) -> int:
        """The whole number under `key`; the default where it is absent or null, as for transformers."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
            raise self.fail(key, "must be a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        # JSON as Python reads it knows NaN and Infinity.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self.fail(key, "must be a number")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.fail(key, "must be a string")
        return value

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(key, list(default))
        if not isinstance(value, list) or not all(
            isinstance(x, int) and not isinstance(x, bool) for x in value
        ):
            raise self.fail(key, "must be a list of whole numbers")
        return tuple(value)

    def require(self, key: str, *honoured: object, absent: object = None) -> None:
        """Raise unless the value is one of those that this library computes;

        `absent` stands for a missing key.
        """
        value = self.values.get(key, absent)
        if value not in honoured:
            raise self.fail(
                key, f"cannot be honoured; supported: {', '.join(json.dumps(x) for x in honoured)}"
            )


def parse_language(section: Section, *, tied: bool) -> LanguageConfig:
    section.require("model_type", "llama", absent="llama")
    section.require("hidden_act", "silu", absent="silu")
    section.require("attention_bias", False, absent=False)
    section.require("mlp_bias", False, absent=False)
    section.require("pretraining_tp", 1, absent=1)
    # Transformers 5 keeps under rope_parameters what older files keep beside the sizes.
    rope = section.section("rope_parameters")
    for scaling in (section.section("rope_scaling"), rope):
        scaling.require("rope_type", "default", absent="default")
        scaling.require("type", "default", absent="default")
    width = section.whole("hidden_size", 4096)
    heads = section.whole("num_attention_heads", 32)
    kv_heads = section.whole("num_key_value_heads", heads)
    if section.values.get("head_dim") is not None:
        head_width = section.whole("head_dim", 0)
    elif heads <= 0 or width % heads:
        raise section.fail("num_attention_heads", f"hidden_size {width} is not a multiple of it")
    else:
        head_width = width // heads
    return LanguageConfig(
        vocabulary=section.whole("vocab_size", 32000),
        width=width,
        mlp_width=section.whole("intermediate_size", 11008),
        layers=section.whole("num_hidden_layers", 32),
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", section.number("rope_theta", 10000.0)),
        window=section.whole("max_position_embeddings", 2048),
        tied_head=tied,
    )


def parse_dtype(*sections: Section) -> str:
    """The precision that a config states, under either of the names that transformers has used."""
    for section in sections:
        for key in ("dtype", "torch_dtype"):
            if section.values.get(key) is not None:
                section.require(key, *DTYPES)
                return section.text(key, "")
    return "float32"


def parse_adapter_kind(section: Section, key: str) -> AdapterKind:
    section.require(key, *get_args(AdapterKind), absent="mlp_gelu")
    return cast(AdapterKind, section.text(key, "mlp_gelu"))


def format_language(language: LanguageConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": language.vocabulary,
        "hidden_size": language.width,
        "intermediate_size": language.mlp_width,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width,
        "max_position_embeddings": language.window,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": language.tied_head,
    }
