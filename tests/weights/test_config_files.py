"""`config.json` in both dialects: read, written, and every way in which it can be wrong."""

import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.config import PRESETS, AdapterConfig, JanusConfig, LanguageConfig, VisionConfig, VQConfig
from janus.weights.config_files import format_config, parse_config, read_config
from janus.weights.names import LAYOUTS, Layout

EPSILONS = st.sampled_from([1e-5, 1e-6, 3e-7])


@st.composite
def adapters(draw: st.DrawFn, input_width: int, output_width: int) -> AdapterConfig:
    kinds = ["linear", "mlp_gelu"] + ["identity"] * (input_width == output_width)
    return AdapterConfig(
        kind=draw(st.sampled_from(kinds)),
        depth=draw(st.integers(1, 5)),
        input_width=input_width,
        output_width=output_width,
    )


@st.composite
def configs(draw: st.DrawFn) -> JanusConfig:
    """Any architecture that either dialect can state."""
    kv_heads = draw(st.integers(1, 4))
    heads = kv_heads * draw(st.integers(1, 4))
    head_width = 2 * draw(st.integers(1, 40))
    # The attention may be narrower or wider than the model: head_width is a number of its own.
    width = draw(st.sampled_from([heads * head_width, 64, 80]))
    vision_heads = draw(st.integers(1, 4))
    vision_width = draw(st.sampled_from([width * vision_heads, 16 * vision_heads]))
    levels = draw(st.integers(1, 6))
    multipliers = st.lists(st.integers(1, 4), min_size=levels, max_size=levels).map(tuple)
    code_width = draw(st.sampled_from([4, 8, width]))
    layers = draw(st.integers(1, 30))
    return JanusConfig(
        vision=VisionConfig(
            image_size=draw(st.integers(32, 500)),
            patch_size=draw(st.integers(1, 32)),
            width=vision_width,
            layers=layers,
            heads=vision_heads,
            mlp_ratio=draw(st.sampled_from([1, 2.5, 3.7362, 4, 4.0])),
            select_layer=draw(st.integers(-layers, layers + 2)),
            norm_eps=1e-6,
        ),
        vision_adapter=draw(adapters(vision_width, width)),
        vq=VQConfig(
            codes=draw(st.integers(1, 20000)),
            code_width=code_width,
            channels=32 * draw(st.integers(1, 8)),
            encoder_multipliers=draw(multipliers),
            decoder_multipliers=draw(multipliers),
            residual_blocks=draw(st.integers(1, 4)),
            latent_channels=draw(st.integers(1, 300)),
        ),
        code_adapter=draw(adapters(code_width, width)),
        image_head_width=draw(st.sampled_from([width, 17])),
        language=LanguageConfig(
            vocabulary=draw(st.integers(1, 200000)),
            width=width,
            mlp_width=draw(st.integers(1, 20000)),
            layers=draw(st.integers(1, 40)),
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            norm_eps=draw(EPSILONS),
            rope_theta=draw(st.sampled_from([10000.0, 5e5, 123.5])),
            window=draw(st.integers(1, 40000)),
            tied_head=draw(st.booleans()),
        ),
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32", "float64"])),
    )


def as_built(config: JanusConfig, layout: Layout) -> JanusConfig:
    """What a dialect can say of a config: transformers' has no `select_layer`, only the blocks it leaves."""
    if layout == "deepseek":
        return config
    vision = replace(config.vision, layers=config.vision.depth, select_layer=-1)
    return replace(config, vision=vision)


def written(config: JanusConfig, layout: Layout) -> dict[str, Any]:
    """The config as it stands in a file; without the warning, which has a test of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = format_config(config, layout, dtype=config.dtype)
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60)
@given(config=configs())
def test_what_is_written_is_read_back(layout: Layout, config: JanusConfig) -> None:
    values = written(config, layout)
    read, found = parse_config(values)
    assert found == layout
    assert read == as_built(config, layout)
    assert written(read, layout) == values


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40)
@given(before=configs(), after=configs())
def test_changed_architecture_leaves_no_old_key_behind(
    layout: Layout, before: JanusConfig, after: JanusConfig
) -> None:
    """A config that was read from a file and then changed is written without what contradicts it."""
    changed = replace(after, extra=parse_config(written(before, layout))[0].extra)
    assert parse_config(written(changed, layout))[0] == as_built(after, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20)
@given(config=configs())
def test_other_dialect_and_back(layout: Layout, config: JanusConfig) -> None:
    other: Layout = "transformers" if layout == "deepseek" else "deepseek"
    there = parse_config(written(config, other))[0]
    assert parse_config(written(there, layout))[0] == as_built(config, "transformers")


def test_vision_epsilon_that_the_released_layout_cannot_state(
    make_config: Callable[..., JanusConfig],
) -> None:
    config = make_config(vision={"norm_eps": 1e-5})
    with pytest.raises(ValueError, match=r"1e-6.*1e-05"):
        format_config(config, "deepseek", dtype="float32")
    assert parse_config(written(config, "transformers"))[0] == config


# Keys that say nothing to this library, and keys that are absent


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_keys_are_kept_in_their_own_dialect(
    layout: Layout, make_config: Callable[..., JanusConfig]
) -> None:
    values = written(make_config(), layout)
    values["transformers_version"] = "4.33.1"
    values["vision_config"]["somebody"] = {"added": [1, 2]}
    config, _ = parse_config(values)
    assert written(config, layout) == values
    other = written(config, "transformers" if layout == "deepseek" else "deepseek")
    assert "transformers_version" not in other
    assert "somebody" not in other["vision_config"]


def test_writing_leaves_what_was_read_as_it_was(make_config: Callable[..., JanusConfig]) -> None:
    values = written(make_config(), "deepseek")
    before = deepcopy(values)
    config, _ = parse_config(values)
    format_config(config, "deepseek", dtype="float16")
    assert values == before


@pytest.mark.parametrize("name", ["Janus-1.3B", "Janus-Pro-1B", "Janus-Pro-7B"])
def test_released_config_is_written_with_nothing_lost(name: str, shared: Path) -> None:
    released = json.loads((shared / "oracle" / "manifests" / f"{name}.config.json").read_text())
    config, layout = parse_config(released)
    again = written(config, layout)

    def contained(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(key in whole and contained(value, whole[key]) for key, value in part.items())
        return part == whole

    assert contained(released, again)
    # The sizes that no released file states are not stated by ours either.
    assert again["vision_config"]["params"].keys() == released["vision_config"]["params"].keys()
    assert again["gen_vision_config"]["params"].keys() == released["gen_vision_config"]["params"].keys()


def test_absent_keys_of_the_language_model_are_llamas_defaults() -> None:
    """The 7B's file states no widths: they are those that LlamaConfig has without being told."""
    values = written(PRESETS["Janus-Pro-7B"], "deepseek")
    values["language_config"] = {
        "vocab_size": 102400,
        "num_hidden_layers": 30,
        "max_position_embeddings": 16384,
    }
    config, _ = parse_config(values)
    assert config == PRESETS["Janus-Pro-7B"]
    del values["language_config"]["vocab_size"], values["language_config"]["max_position_embeddings"]
    bare = parse_config(values)[0].language
    assert (bare.vocabulary, bare.window, bare.norm_eps, bare.rope_theta, bare.tied_head) == (
        32000,
        2048,
        1e-6,
        10000.0,
        False,
    )


def test_absent_keys_of_the_released_parts() -> None:
    values = written(PRESETS["Janus-Pro-1B"], "deepseek")
    values["gen_vision_config"] = {"cls": "VQ-16", "params": None}
    values["gen_head_config"]["params"] = {}
    del values["torch_dtype"], values["language_config"]["torch_dtype"]
    config, _ = parse_config(values)
    assert config == replace(PRESETS["Janus-Pro-1B"], dtype="float32")
    assert parse_config(written(config, "deepseek"))[0] == config


def test_absent_keys_of_transformers_dialect_are_its_own_defaults() -> None:
    text = {"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 102400, "num_attention_heads": 16}
    sizes = {"num_hidden_layers": 24, "max_position_embeddings": 16384, "dtype": "bfloat16"}
    config, layout = parse_config({"model_type": "janus", "text_config": {**text, **sizes}})
    tied = replace(PRESETS["Janus-Pro-1B"].language, tied_head=True)
    assert layout == "transformers"
    assert config == replace(PRESETS["Janus-Pro-1B"], language=tied)


@pytest.mark.parametrize("nested", [True, False], ids=["rope_parameters", "beside-the-sizes"])
def test_rope_theta_of_old_and_new_transformers(
    nested: bool, make_config: Callable[..., JanusConfig]
) -> None:
    values = written(make_config(), "transformers")
    text = values["text_config"]
    del text["rope_theta"], text["rope_parameters"]
    if nested:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 77.0}
    else:
        text |= {"rope_theta": 77.0, "rope_scaling": None}
    assert parse_config(values)[0].language.rope_theta == 77.0


def test_dtype_under_either_name_and_in_either_place(make_config: Callable[..., JanusConfig]) -> None:
    values = written(make_config(), "deepseek")
    del values["torch_dtype"]
    values["language_config"]["torch_dtype"] = "float16"
    assert parse_config(values)[0].dtype == "float16"
    values["dtype"] = "bfloat16"
    assert parse_config(values)[0].dtype == "bfloat16"


# What transformers' own class cannot be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": 40}, "image_head_width is 40, not 48"),
        (
            {"vq": {"encoder_multipliers": (1, 1, 1, 1), "decoder_multipliers": (1, 1, 1, 1)}},
            "grid of codes is 8, not 4",
        ),
        ({"vq": {"decoder_multipliers": (1, 1, 1, 1, 1)}}, "vq.decoder_multipliers is"),
        ({"vision_adapter": {"kind": "linear"}}, "vision_adapter.kind is linear, not mlp_gelu"),
        ({"code_adapter": {"kind": "linear"}}, "code_adapter.kind is linear, not mlp_gelu"),
    ],
    ids=["head", "grid", "decoder", "vision-adapter", "code-adapter"],
)
def test_warning_where_only_this_library_can_read_it(
    changes: dict[str, Any], words: str, make_config: Callable[..., JanusConfig]
) -> None:
    with pytest.warns(UserWarning, match="transformers' own Janus cannot load this model") as caught:
        format_config(make_config(**changes), "transformers", dtype="float32")
    assert words in str(caught[0].message)


def test_no_warning_where_transformers_can(make_config: Callable[..., JanusConfig]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        format_config(make_config(), "transformers", dtype="float32")
        format_config(make_config(head=40), "deepseek", dtype="float32")
        values = format_config(make_config(), "transformers", dtype="float32", image_token_id=483)
    assert values["image_token_id"] == 483


def test_read_config_tells_the_layout(checkpoint: Path) -> None:
    config, layout = read_config(checkpoint)
    assert layout == "deepseek"
    assert (config.vision.width, config.image_head_width, config.language.vocabulary) == (48, 80, 640)
