"""What both dialects of `config.json` say alike: the language model, the dtype, an adapter's kind."""

from typing import Any, cast, get_args

from janus.config import AdapterKind, LanguageConfig
from janus.kernels.quantized_linear import GROUPS
from janus.weights.json_object import JsonObject

METHOD = "janus"  # of quantization, beside those that others have names for
DTYPES = ("bfloat16", "float16", "float32", "float64")


def parse_language(section: JsonObject, *, tied: bool) -> LanguageConfig:
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
    if section.stated("head_dim"):
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


def parse_dtype(*sections: JsonObject) -> str:
    """The precision that a config states, under either of the names that transformers has used."""
    for section in sections:
        for key in ("dtype", "torch_dtype"):
            if section.stated(key):
                section.require(key, *DTYPES)
                return cast(str, section.values[key])
    return "float32"


def parse_quantization(top: JsonObject) -> str | None:
    """How the language model's weights are quantized, if they are; by this library's own method alone."""
    section = top.section("quantization_config")
    if not section.values:
        return None
    section.require("quant_method", METHOD)
    section.require("bits", 8, 4)
    if section.values["bits"] == 8:
        return "int8"
    section.require("group_size", GROUPS[0])
    return "int4"


def format_quantization(quantization: str | None) -> dict[str, Any]:
    if quantization is None:
        return {}
    sizes = {"bits": 8} if quantization == "int8" else {"bits": 4, "group_size": GROUPS[0]}
    return {"quantization_config": {"quant_method": METHOD, **sizes}}


def parse_adapter_kind(section: JsonObject, key: str) -> AdapterKind:
    section.require(key, *get_args(AdapterKind), absent="mlp_gelu")
    return cast(AdapterKind, section.text(key) or "mlp_gelu")


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
