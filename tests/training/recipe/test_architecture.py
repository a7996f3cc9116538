"""The architecture in a recipe: presets, tables that say what differs, and what follows from other sizes."""

from dataclasses import replace
from typing import Any

import pytest

from janus.config import FLOW_PRESETS, PRESETS, JanusConfig, JanusFlowConfig, VQConfig
from janus.models.vae import SDXL, VAEConfig
from janus.training.recipe.architecture import parse_architecture, render_architecture
from janus.training.recipe.fields import RecipeError

PRO = PRESETS["Janus-Pro-1B"]
SMALL: dict[str, Any] = {
    "vision": {"image_size": 64, "patch_size": 8, "width": 96, "layers": 2, "heads": 3},
    "vq": {"codes": 128, "channels": 32, "encoder_multipliers": [1, 2], "latent_channels": 16},
    "language": {"vocabulary": 300, "width": 64, "mlp_width": 160, "layers": 2, "heads": 4, "window": 256},
}


FLOW = {
    "vision": SMALL["vision"],
    "uvit": {"width": 48},
    "language": SMALL["language"],
}
VAE = {"channels": [32, 64], "groups": 8}


def changed(part: str, **sizes: Any) -> dict[str, Any]:
    return {**SMALL, part: {**SMALL.get(part, {}), **sizes}}


@pytest.mark.parametrize("name", [*PRESETS, *FLOW_PRESETS])
def test_presets_by_name(name: str) -> None:
    preset = (PRESETS | FLOW_PRESETS)[name]
    assert parse_architecture(name) == preset
    assert parse_architecture({"preset": name}) == preset
    assert render_architecture(preset) in (name, "Janus-1.3B")  # of two that are alike, the first


def test_what_follows_need_not_be_said() -> None:
    config = parse_architecture(SMALL)
    assert isinstance(config, JanusConfig)
    assert (config.vision_adapter.input_width, config.vision_adapter.output_width) == (96, 64)
    assert (config.code_adapter.input_width, config.code_adapter.output_width) == (8, 64)
    assert (config.language.kv_heads, config.language.head_width, config.image_head_width) == (4, 16, 64)
    assert config.vq.decoder_multipliers == config.vq.encoder_multipliers == (1, 2)
    assert config.dtype == "float32"
    assert config.vision.norm_eps == PRO.vision.norm_eps


def test_a_table_says_what_differs_from_a_preset() -> None:
    config = parse_architecture({"preset": "Janus-Pro-1B", "language": {"layers": 2, "width": 1024}})
    assert config == replace(
        PRO,
        language=replace(PRO.language, layers=2, width=1024, head_width=64),
        vision_adapter=replace(PRO.vision_adapter, output_width=1024),
        code_adapter=replace(PRO.code_adapter, output_width=1024),
        image_head_width=1024,
    )


def test_what_follows_may_be_said_otherwise() -> None:
    config = parse_architecture({**changed("language", kv_heads=2, head_width=8), "image_head_width": 80})
    assert isinstance(config, JanusConfig)
    assert (config.language.kv_heads, config.language.head_width, config.image_head_width) == (2, 8, 80)


def test_a_tokenizer_alone() -> None:
    config = parse_architecture({"vq": SMALL["vq"]})
    assert isinstance(config, VQConfig)
    assert (config.codes, config.code_width, config.residual_blocks) == (128, 8, 2)


def test_a_flow_has_a_uvit() -> None:
    config = parse_architecture(FLOW)
    assert isinstance(config, JanusFlowConfig)
    assert (config.uvit.time_width, config.uvit.decoder_width) == (64, 48)
    assert (config.uvit.latent_channels, config.uvit.encoder_blocks) == (4, 2)
    preset = FLOW_PRESETS["JanusFlow-1.3B"]
    wider = parse_architecture({"preset": "JanusFlow-1.3B", "uvit": {"width": 512, "decoder_width": 768}})
    assert wider == replace(preset, uvit=replace(preset.uvit, width=512))


def test_an_autoencoder_alone() -> None:
    config = parse_architecture({"vae": VAE})
    assert isinstance(config, VAEConfig)
    assert config == replace(SDXL, channels=(32, 64), groups=8, scaling_factor=1.0)  # until it is measured


@pytest.mark.parametrize(
    "config",
    [
        PRO,
        PRESETS["Janus-Pro-7B"],
        parse_architecture(SMALL),
        parse_architecture({"vq": SMALL["vq"]}),
        parse_architecture(FLOW),
        parse_architecture({"vae": VAE}),
        replace(SDXL, extra={"sample_size": 1024}),
    ],
    ids=["preset", "larger", "small", "tokenizer", "flow", "autoencoder", "sdxl"],
)
def test_what_is_rendered_parses_to_the_same(config: JanusConfig | VQConfig) -> None:
    assert parse_architecture(render_architecture(config)) == config
    assert parse_architecture(config) is config


def test_presets_are_rendered_by_name() -> None:
    assert render_architecture(PRESETS["Janus-Pro-7B"]) == "Janus-Pro-7B"


def test_a_quantized_model_is_not_rendered() -> None:
    with pytest.raises(ValueError, match=r"^a model quantized to int8 is not trained: load it unquantized$"):
        render_architecture(replace(PRO, quantization="int8"))


MISTAKES: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "no-preset": ("Janus-Pro-2B", (), '"Janus-Pro-2B" is unknown: did you mean Janus-Pro-7B?'),
    "no-table": (7, (), "7 is neither a preset's name nor a table of sizes"),
    "preset": (
        {"preset": "Large"},
        ("preset",),
        '"Large" is unknown: there are Janus-1.3B, Janus-Pro-1B, Jan',
    ),
    "preset-type": ({"preset": 1}, ("preset",), "1 is unknown: there are"),
    "part": ({**SMALL, "languge": {}}, ("languge",), "is unknown: did you mean language?"),
    "part-type": ({**SMALL, "vision": 3}, ("vision",), "3 is not a table of sizes"),
    "key": (changed("language", blocks=3), ("language", "blocks"), "is unknown: there are vocabulary, width"),
    "missing": (
        {key: SMALL[key] for key in ("vq", "language")},
        ("vision", "image_size"),
        "is missing: give a whole number, or begin from a preset",
    ),
    "type": (changed("vision", width="96"), ("vision", "width"), '"96" is not a whole number'),
    "bool": (changed("vision", layers=True), ("vision", "layers"), "true is not a whole number"),
    "list": (
        changed("vq", encoder_multipliers=[1, "2"]),
        ("vq", "encoder_multipliers", 1),
        '"2" is not a whole number',
    ),
    "range": (changed("vision", width=-96), ("vision",), "VisionConfig.width must be positive, not -96"),
    "contradiction": (
        changed("vision", heads=5),
        ("vision",),
        "vision: width 96 is not a multiple of 5 heads",
    ),
    "heads": (
        changed("language", heads=3),
        ("language", "head_width"),
        "is missing: width 64 is not a multiple of 3 heads, so give it",
    ),
    "heads-type": (
        changed("language", heads=0),
        ("language", "heads"),
        "0 is not a whole number of at least 1",
    ),
    "between": (
        changed("vision_adapter", output_width=8),
        (),
        "the vision adapter's output and the language width must be equal: 8 and 64",
    ),
    "flow-part": ({**FLOW, "vq": {}}, ("vq",), "is unknown: there are preset, vision, uvit, language, dtype"),
    "flow-preset": ({"preset": "JanusFlow-1.3B", "vq": {}}, ("vq",), "is unknown: there are preset, vision"),
    "uvit-of-a-janus": ({"preset": "Janus-1.3B", "uvit": {}}, ("uvit",), "is unknown: there are preset"),
    "uvit": ({**FLOW, "uvit": {"width": 47}}, ("uvit",), "uvit: a time has a sine for each cosine"),
    "time": (
        {**FLOW, "uvit": {"width": 48, "time_width": 8}},
        (),
        "the width of the time's embedding, which is a token, and the language width must be equal: 8 and 64",
    ),
    "vae": ({"vae": {"groups": 8}}, ("vae", "channels"), "is missing: give a list"),
    "vae-extra": ({"vae": {**VAE, "extra": 1}}, ("vae", "extra"), "is unknown: there are channels"),
    "vae-table": ({"vae": 8}, ("vae",), "8 is not a table of sizes"),
    "vae-groups": ({"vae": {**VAE, "groups": 7}}, ("vae",), "vae: channels must be multiples of 7"),
    "head": (
        {**SMALL, "image_head_width": "x"},
        ("image_head_width",),
        '"x" is not a whole number of at lea',
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_their_key(case: str) -> None:
    value, path, text = MISTAKES[case]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared below
        parse_architecture(value)
    found = (
        (caught.value.path, caught.value.text)
        if isinstance(caught.value, RecipeError)
        else ((), str(caught.value))
    )
    assert found[0] == path
    assert found[1].startswith(text)
    assert "\n" not in str(caught.value)
