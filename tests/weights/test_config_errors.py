"""A `config.json` that is broken or asks for what is not computed: one line naming file, key and value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from janus.config import PRESETS, JanusConfig
from janus.weights.config_files import format_config, parse_config, read_config


def set_key(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        values = values[parent]
    values[leaf] = value


RELEASED = [
    ("model_type", "llama"),
    ("model_type", 3),
    ("vision_config.cls", "SAMTower"),
    ("aligner_config.cls", "QFormer"),
    ("gen_vision_config.cls", "VQ-8"),
    ("gen_aligner_config.cls", None),
    ("gen_head_config.cls", "flow_head"),
    ("vision_config.params.model_name", "sam_b"),
    ("vision_config.params.model_name", ["siglip_large_patch16_384"]),
    ("vision_config.params.pixel_mean", [0.5, 0.5, 0.5]),
    ("vision_config.params.pixel_std", [0.5, 0.5, 0.5]),
    ("vision_config.params.image_size", "384"),
    ("vision_config.params.image_size", [384, 384]),
    ("vision_config.params.select_layer", 1.5),
    ("vision_config.params.mlp_ratio", float("nan")),
    ("vision_config.params", []),
    ("aligner_config.params.projector_type", "low_high_hybrid_split_mlp_gelu"),
    ("gen_aligner_config.params.projector_type", 1),
    ("aligner_config.params.depth", True),
    ("gen_vision_config.params.image_token_size", 1.0),
    ("gen_vision_config.params.encoder_ch_mult", 4),
    ("gen_vision_config.params.decoder_ch_mult", [1, True]),
    ("gen_head_config.params.image_token_size", 100),
    ("gen_head_config.params.n_embed", 100),
    ("language_config.model_type", "qwen2"),
    ("language_config.hidden_act", "gelu"),
    ("language_config.attention_bias", True),
    ("language_config.mlp_bias", True),
    ("language_config.pretraining_tp", 2),
    ("language_config.rope_scaling.type", "linear"),
    ("language_config.rope_scaling.rope_type", "yarn"),
    ("language_config.rope_scaling", "linear"),
    ("language_config.rms_norm_eps", "1e-6"),
    ("language_config.rms_norm_eps", float("inf")),
    ("language_config.tie_word_embeddings", "no"),
    ("language_config.num_attention_heads", 7),
    ("language_config.num_attention_heads", 0),
    ("language_config.vocab_size", 10**30),
    ("language_config.head_dim", "128"),
    ("torch_dtype", "int8"),
    ("language_config.torch_dtype", "float8"),
    ("language_config", "llama"),
]


@pytest.fixture
def released() -> dict[str, Any]:
    """A whole config of the released dialect, without the keys that only some tests set."""
    values = format_config(PRESETS["Janus-Pro-1B"], "deepseek", dtype="bfloat16")
    del values["language_config"]["head_dim"]
    return json.loads(json.dumps(values))


@pytest.mark.parametrize(("key", "value"), RELEASED, ids=lambda x: str(x)[:40])
def test_value_of_the_released_dialect_that_cannot_be_honored(
    key: str, value: Any, released: dict[str, Any]
) -> None:
    if key.startswith("language_config.rope_scaling."):
        released["language_config"]["rope_scaling"] = {}
    if key == "language_config.torch_dtype":
        del released["torch_dtype"]
    set_key(released, key, value)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (key and value are checked below)
        parse_config(released)
    assert f"{key} = {json.dumps(value)}: " in str(raised.value)
    assert "\n" not in str(raised.value)


TRANSFORMERS = [
    ("vision_config.hidden_act", "gelu_pytorch_tanh"),
    ("vision_config.attention_bias", False),
    ("vision_config.use_qk_norm", True),
    ("vision_config.num_channels", 1),
    ("vision_config.image_size", [64, 64]),
    ("vision_config.projector_type", "resampler"),
    ("vq_config.hidden_act", "relu"),
    ("vq_config.double_latent", True),
    ("vq_config.in_channels", 1),
    ("vq_config.out_channels", 4),
    ("vq_config.channel_multiplier", "1,1,2"),
    ("text_config.hidden_act", "gelu"),
    ("text_config.model_type", "mistral"),
    ("text_config.rope_parameters.rope_type", "llama3"),
    ("text_config.rope_parameters.rope_theta", "10000"),
    ("dtype", "int8"),
    ("text_config", 1),
]


@pytest.mark.parametrize(("key", "value"), TRANSFORMERS, ids=lambda x: str(x)[:40])
def test_value_of_transformers_dialect_that_cannot_be_honored(
    key: str, value: Any, make_config: Callable[..., JanusConfig]
) -> None:
    values = json.loads(json.dumps(format_config(make_config(), "transformers", dtype="float32")))
    set_key(values, key, value)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (key and value are checked below)
        parse_config(values)
    assert f"{key} = {json.dumps(value)}: " in str(raised.value)


@pytest.mark.parametrize(
    "part", ["vision_config", "aligner_config", "gen_vision_config", "gen_head_config", "language_config"]
)
@pytest.mark.parametrize("value", [..., None, {}], ids=["absent", "null", "empty"])
def test_part_that_is_missing(part: str, value: Any, released: dict[str, Any]) -> None:
    if value is ...:
        del released[part]
    else:
        released[part] = value
    with pytest.raises(ValueError, match=f"{part} is missing"):
        parse_config(released)


def test_numbers_that_contradict_each_other_name_both(released: dict[str, Any]) -> None:
    released["aligner_config"]["params"]["n_embed"] = 1000
    with pytest.raises(ValueError, match="1000 and 2048"):
        parse_config(released)


def test_config_without_a_model_type() -> None:
    with pytest.raises(
        ValueError, match="model_type = null: not a Janus checkpoint; supported: multi_modality"
    ):
        parse_config({})


BROKEN = {
    "empty": b"",
    "cut": b'{"model_type": "multi_mod',
    "words": b"<html>Not found</html>",
    "list": b"[1, 2]",
    "string": b'"multi_modality"',
    "null": b"null",
    "binary": bytes(range(256)) * 4,
    "utf-16": '{"model_type": "multi_modality"}'.encode("utf-16"),
    "nested": b"[" * 200_000,
    "nested-closed": b'{"model_type": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "endless-number": b'{"model_type": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("case", BROKEN)
def test_file_that_is_no_config_is_one_line_with_its_path(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BROKEN[case])
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the path is checked below)
        read_config(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))
    assert "\n" not in str(raised.value)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json: it is not a checkpoint folder"):
        read_config(tmp_path)


def test_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_wrong_value_in_a_file_names_the_file_too(copied: Path, edit_json: Callable[..., None]) -> None:
    edit_json(copied / "config.json", {"language_config.hidden_act": "relu"})
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the path is checked below)
        read_config(copied)
    assert str(raised.value).startswith(f"{copied / 'config.json'}: language_config.hidden_act")
