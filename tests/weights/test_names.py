"""The tables of names: against the released models' own lists, one-to-one, against transformers' model."""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.config import PRESETS, JanusConfig, VisionConfig
from janus.models.janus import Janus
from janus.weights.config_files import format_config
from janus.weights.load import empty_model, parameter_names, part_sizes
from janus.weights.names import LAYOUTS, Layout, is_dropped, match, source, sources

RELEASED = ["Janus-1.3B", "Janus-Pro-1B", "Janus-Pro-7B"]
POOLING = "vision_model.vision_tower.attn_pool."
STATISTICS = "gen_vision_model.quantize.codebook_used"
Shapes = dict[str, tuple[int, ...]]


@cache
def meta_model(name: str) -> Janus:
    return empty_model(PRESETS[name])


def foreign_shapes(model: Janus, layout: Layout) -> Shapes:
    """The names that the tables lead to, with the shapes that they must have there."""
    state = model.state_dict()
    found: Shapes = {}
    for name, where in sources(parameter_names(model), layout).items():
        shape = tuple(state[name].shape)
        shape = shape[1:] if where.squeeze else shape
        sizes = part_sizes(model, name, shape[0], len(where.names))
        found.update((part, (size, *shape[1:])) for part, size in zip(where.names, sizes, strict=True))
    return found


def read_manifest(shared: Path, name: str) -> Shapes:
    listed = json.loads((shared / "oracle" / "manifests" / f"{name}.json").read_text())
    return {tensor: tuple(shape) for tensor, shape in listed.items()}


# The released models


@pytest.mark.parametrize("name", RELEASED)
def test_every_released_tensor_is_one_of_ours_or_dropped(name: str, shared: Path) -> None:
    manifest = read_manifest(shared, name)
    model = meta_model(name)
    ours = foreign_shapes(model, "deepseek")
    assert {key: shape for key, shape in manifest.items() if key in ours} == ours
    left_over = manifest.keys() - ours.keys()
    assert all(is_dropped(key, "deepseek", model.config.vision) for key in left_over)
    assert Counter(key.startswith(POOLING) for key in left_over) == {True: 13, False: 1}
    assert STATISTICS in left_over


@pytest.mark.parametrize("name", RELEASED)
def test_nothing_that_the_model_needs_may_be_dropped(name: str) -> None:
    model = meta_model(name)
    for layout in LAYOUTS:
        names = foreign_shapes(model, layout)
        assert not [key for key in names if is_dropped(key, layout, model.config.vision)]


NUMBERS = {  # of the released Janus-1.3B and Janus-Pro, counted in the original's modules
    "vision": (316_283_904, 316_283_904),
    "vision_adapter": (6_295_552, 20_979_712),
    "vq": (71_948_939 - 65_536, 71_948_939 - 65_536),  # but for the statistics that are no parameter
    "code_adapter": (4_214_784, 16_818_176),
    "image_head": (37_767_168, 83_906_560),
    "code_embedding": (131_072, 131_072),
    "language": (1_652_656_128, 6_910_365_696),
}


@pytest.mark.parametrize("column", [0, 1], ids=["1B", "7B"])
@pytest.mark.parametrize("part", NUMBERS)
def test_number_of_parameters(part: str, column: int, shared: Path) -> None:
    name = ("Janus-Pro-1B", "Janus-Pro-7B")[column]
    expected = NUMBERS[part][column]
    if part == "vision":
        pooling = (shape for key, shape in read_manifest(shared, name).items() if key.startswith(POOLING))
        expected -= sum(torch.Size(shape).numel() for shape in pooling)
    parameters = getattr(meta_model(name), part).parameters()
    assert sum(parameter.numel() for parameter in parameters) == expected


# Other architectures

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "depth-1": {"vision_adapter": {"depth": 1}, "code_adapter": {"depth": 1}},
    "depth-3": {"vision_adapter": {"depth": 3}, "code_adapter": {"depth": 3}},
    "depths-4-and-2": {"vision_adapter": {"depth": 4}},
    "linear": {"vision_adapter": {"kind": "linear"}, "code_adapter": {"kind": "linear"}},
    "identity": {
        "vision": {"width": 48},
        "vision_adapter": {"kind": "identity", "input_width": 48},
        "vq": {"code_width": 48},
        "code_adapter": {"kind": "identity", "input_width": 48},
    },
    "tied": {"language": {"tied_head": True}},
    "vq-2-levels": {"vq": {"encoder_multipliers": (1, 2), "decoder_multipliers": (1, 1)}},
    "vq-6-levels": {"vq": {"encoder_multipliers": (1,) * 6, "decoder_multipliers": (1, 1, 2, 2, 2, 4)}},
    "twelve-layers": {"vision": {"layers": 12}, "language": {"layers": 12}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_no_two_of_our_names_share_a_foreign_one(
    case: str, layout: Layout, make_config: Callable[..., JanusConfig]
) -> None:
    model = empty_model(make_config(**ARCHITECTURES[case]))
    names = parameter_names(model)
    foreign = [name for where in sources(names, layout).values() for name in where.names]
    assert max(Counter(foreign).values()) == 1
    # Every parameter has a source, and the head counts as one exactly where it is not the word table.
    assert len(names) == len(list(model.parameters()))
    assert not any("{" in name or "*" in name for name in foreign)


@pytest.mark.parametrize(
    ("ours", "deepseek", "transformers"),
    [
        (
            "vision_adapter.4.bias",
            "aligner.layers.4.bias",
            "model.aligner.hidden_layers.1.bias",
        ),
        ("vision_adapter.weight", "aligner.layers.weight", "model.aligner.fc1.weight"),
        (
            "vq.decoder.levels.10.res.2.nin_shortcut.bias",
            "gen_vision_model.decoder.conv_blocks.10.res.2.nin_shortcut.bias",
            "model.vqmodel.decoder.up.10.block.2.nin_shortcut.bias",
        ),
        (
            "vq.encoder.mid.1.proj_out.weight",
            "gen_vision_model.encoder.mid.1.proj_out.weight",
            "model.vqmodel.encoder.mid.attn_1.proj_out.weight",
        ),
        (
            "language.layers.23.mlp_norm.weight",
            "language_model.model.layers.23.post_attention_layernorm.weight",
            "model.language_model.layers.23.post_attention_layernorm.weight",
        ),
    ],
)
def test_names_that_numbers_and_kinds_make_difficult(ours: str, deepseek: str, transformers: str) -> None:
    assert source(ours, "deepseek").names == (deepseek,)
    assert source(ours, "transformers").names == (transformers,)


def test_fused_projection_is_three_there_in_order() -> None:
    where = source("vision.blocks.7.attn.qkv.bias", "transformers")
    stem = "model.vision_model.encoder.layers.7.self_attn."
    assert where.names == (f"{stem}q_proj.bias", f"{stem}k_proj.bias", f"{stem}v_proj.bias")


def test_name_without_a_row_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError, match=r"no row of the deepseek table fits nothing\.weight"):
        source("nothing.weight", "deepseek")


def test_dots_in_patterns_are_dots() -> None:
    assert match("a.{}.*", "a.12.b.c") is not None
    assert match("a.{}.*", "axy12.b") is None
    assert match("a.{}.*", "a.b.c") is None


TOWER = VisionConfig(
    image_size=32, patch_size=16, width=8, layers=5, heads=2, mlp_ratio=2, select_layer=3, norm_eps=1e-6
)


@pytest.mark.parametrize(
    ("layout", "name", "dropped"),
    [
        ("deepseek", "vision_model.vision_tower.blocks.3.norm1.weight", True),
        ("deepseek", "vision_model.vision_tower.blocks.2.norm1.weight", False),
        ("deepseek", "vision_model.vision_tower.blocks.5.norm1.weight", False),  # which the tower never had
        ("transformers", "model.vision_model.encoder.layers.3.mlp.fc1.bias", True),
        ("transformers", "model.vision_model.encoder.layers.2.mlp.fc1.bias", False),
        ("deepseek", "language_model.model.layers.11.self_attn.rotary_emb.inv_freq", True),
        ("deepseek", STATISTICS, True),
        ("transformers", STATISTICS, False),
        ("transformers", "model.vision_model.embeddings.position_ids", True),
        ("deepseek", "vision_model.vision_tower.head.weight", False),
    ],
)
def test_what_a_checkpoint_may_hold_besides(layout: Layout, name: str, dropped: bool) -> None:
    assert is_dropped(name, layout, TOWER) is dropped


# Transformers' own model

HELD_BY_TRANSFORMERS = ["depth-1", "depth-3", "depths-4-and-2", "tied", "twelve-layers"]


@pytest.mark.parametrize("case", ["small", *HELD_BY_TRANSFORMERS])
def test_transformers_builds_the_same_names_from_our_config(
    case: str, make_config: Callable[..., JanusConfig]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = empty_model(make_config(**ARCHITECTURES.get(case, {})))
    written = format_config(model.config, "transformers", dtype="float32")
    with torch.device("meta"):
        theirs = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**written))
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    if model.config.language.tied_head:
        assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
        del shapes["lm_head.weight"]
    assert shapes == foreign_shapes(model, "transformers")


def test_layouts_tell_themselves_apart() -> None:
    """The rule that other tools use: no name of one layout fits the other's language model."""
    model = meta_model("Janus-Pro-1B")
    deepseek, theirs = (foreign_shapes(model, layout) for layout in LAYOUTS)
    assert not deepseek.keys() & theirs.keys()
    assert not [name for name in theirs if re.match(r"language_model\.model\.", name)]
    assert not [name for name in deepseek if name.startswith("model.")]
