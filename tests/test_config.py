"""The architectures as data: the presets, what is computed from them, and the contradictions that raise."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from janus.config import PRESETS, SIGLIP_PRESETS, AdapterConfig, JanusConfig, VQConfig
from janus.weights.config_files import parse_config

PRO_1B = PRESETS["Janus-Pro-1B"]


@pytest.mark.parametrize("name", ["Janus-1.3B", "Janus-Pro-1B", "Janus-Pro-7B"])
def test_preset_is_what_the_released_config_says(name: str, shared: Path) -> None:
    released = json.loads((shared / "oracle" / "manifests" / f"{name}.config.json").read_text())
    config, layout = parse_config(released)
    assert config == PRESETS[name]
    assert layout == "deepseek"


def test_presets_differ_only_between_sizes() -> None:
    assert PRESETS["Janus-1.3B"] == PRO_1B
    assert PRESETS["Janus-Pro-7B"] != PRO_1B
    assert PRESETS["Janus-Pro-7B"].vq == PRO_1B.vq
    assert PRESETS["Janus-Pro-7B"].vision == PRO_1B.vision


def test_released_sizes_that_are_computed() -> None:
    assert PRO_1B.vision.tokens == 576
    assert PRO_1B.vision.depth == 24
    assert PRO_1B.vision.mlp_width == 4096
    assert (PRO_1B.vq.factor, PRO_1B.grid, PRO_1B.picture_tokens, PRO_1B.picture_size) == (16, 24, 576, 384)


def test_so400m_mlp_width_is_the_released_one() -> None:
    sizes = SIGLIP_PRESETS["siglip_so400m_patch14_384"]
    vision = replace(PRO_1B.vision, **sizes)
    assert (vision.tokens, vision.mlp_width) == (27**2, 4304)


def test_pixels_that_no_code_covers_are_not_drawn() -> None:
    """A picture size that the VQ tokenizer's factor does not divide is rounded down to one that it does."""
    config = replace(PRO_1B, vision=replace(PRO_1B.vision, image_size=378, patch_size=14))
    assert (config.grid, config.picture_tokens, config.picture_size) == (23, 23**2, 368)


@pytest.mark.parametrize(
    ("select_layer", "depth"),
    [(-1, 24), (-2, 23), (-24, 1), (1, 1), (5, 5), (24, 24), (30, 24), (0, 24)],
    ids=["all", "one-less", "first-by-end", "first", "five", "exactly-all", "beyond-all", "zero-is-all"],
)
def test_select_layer_decides_how_many_blocks_are_built(select_layer: int, depth: int) -> None:
    assert replace(PRO_1B.vision, select_layer=select_layer).depth == depth


@pytest.mark.parametrize("select_layer", [-25, -26, -1000])
def test_select_layer_that_leaves_nothing_raises(select_layer: int) -> None:
    with pytest.raises(ValueError, match=rf"select_layer {select_layer} leaves none of 24 layers"):
        replace(PRO_1B.vision, select_layer=select_layer)


@pytest.mark.parametrize("part", ["", "vision", "vision_adapter", "vq", "code_adapter", "language"])
def test_configs_are_frozen_and_keyword_only(part: str) -> None:
    config: Any = getattr(PRO_1B, part) if part else PRO_1B
    first = next(iter(config.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(config, first, 1)
    with pytest.raises(TypeError, match="positional"):
        type(config)(1)


CONTRADICTIONS: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "vision-heads": (lambda: replace(PRO_1B.vision, heads=7), ("1024", "7")),
    "patch-above-image": (lambda: replace(PRO_1B.vision, patch_size=400), ("384", "400")),
    "identity-widths": (
        lambda: AdapterConfig(kind="identity", depth=1, input_width=3, output_width=5),
        ("3", "5"),
    ),
    "vq-levels": (lambda: replace(PRO_1B.vq, decoder_multipliers=(1, 2)), ("5", "2")),
    "vq-no-levels": (
        lambda: replace(PRO_1B.vq, encoder_multipliers=(), decoder_multipliers=()),
        ("multipliers", "()"),
    ),
    "vq-zero-multiplier": (lambda: replace(PRO_1B.vq, encoder_multipliers=(1, 0)), ("(1, 0)",)),
    "vq-groups": (lambda: replace(PRO_1B.vq, channels=48), ("32", "48")),
    "kv-heads": (lambda: replace(PRO_1B.language, kv_heads=3), ("16", "3")),
    "odd-head": (lambda: replace(PRO_1B.language, head_width=127), ("even", "127")),
    "vision-to-adapter": (
        lambda: replace(PRO_1B, vision_adapter=replace(PRO_1B.vision_adapter, input_width=768)),
        ("1024", "768"),
    ),
    "adapter-to-language": (
        lambda: replace(PRO_1B, vision_adapter=replace(PRO_1B.vision_adapter, output_width=4096)),
        ("4096", "2048"),
    ),
    "code-to-adapter": (
        lambda: replace(PRO_1B, code_adapter=replace(PRO_1B.code_adapter, input_width=16)),
        ("8", "16"),
    ),
    "code-adapter-to-language": (
        lambda: replace(PRO_1B, code_adapter=replace(PRO_1B.code_adapter, output_width=64)),
        ("64", "2048"),
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_raises_naming_both_numbers(case: str) -> None:
    make, numbers = CONTRADICTIONS[case]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the numbers are checked below)
        make()
    for number in numbers:
        assert number in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision", "heads", 0),
        ("vision", "mlp_ratio", -1.0),
        ("vision", "norm_eps", 0.0),
        ("vq", "codes", 0),
        ("language", "kv_heads", 0),
        ("language", "rope_theta", 0.0),
        ("language", "window", 0),
        ("", "image_head_width", 0),
    ],
)
def test_number_that_must_be_positive(part: str, name: str, value: float) -> None:
    config: Any = getattr(PRO_1B, part) if part else PRO_1B
    with pytest.raises(ValueError, match=rf"{name} must be positive, not {value}"):
        replace(config, **{name: value})


@pytest.mark.parametrize("value", [-2, 0, 1001, 10**9])
@pytest.mark.parametrize(
    ("part", "name"),
    [("vision", "layers"), ("vision_adapter", "depth"), ("vq", "residual_blocks"), ("language", "layers")],
)
def test_number_of_modules_that_nobody_can_build(part: str, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be from 1 to 1000, not {value}"):
        replace(getattr(PRO_1B, part), **{name: value})


def test_levels_that_nobody_can_build() -> None:
    with pytest.raises(ValueError, match="17 levels are more than 16"):
        replace(PRO_1B.vq, encoder_multipliers=(1,) * 17, decoder_multipliers=(1,) * 17)


def test_what_a_config_was_read_from_takes_no_part_in_equality() -> None:
    assert replace(PRO_1B, extra={"deepseek": {"anything": 1}}) == PRO_1B
    assert "anything" not in repr(replace(PRO_1B, extra={"deepseek": {"anything": 1}}))


def test_architectures_are_compared_by_value() -> None:
    def make(codes: int) -> JanusConfig:
        vq = VQConfig(
            codes=codes,
            code_width=8,
            channels=128,
            encoder_multipliers=(1, 1, 2, 2, 4),
            decoder_multipliers=(1, 1, 2, 2, 4),
            residual_blocks=2,
            latent_channels=256,
        )
        return replace(PRO_1B, vq=vq)

    assert make(16384) == PRO_1B
    assert make(8192) != PRO_1B
