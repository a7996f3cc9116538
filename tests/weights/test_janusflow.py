"""JanusFlow's checkpoints: config and names against the released model's, saved and read back, damaged."""

import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import janus.weights
from janus.config import FLOW_PRESETS, JanusFlowConfig, LanguageConfig, UViTConfig, VisionConfig
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.weights.config_files import format_config, parse_config, read_config
from janus.weights.load import empty_model, load, parameter_names
from janus.weights.names import is_dropped, naming_of, sources
from janus.weights.save import named_tensors

load_module = importlib.import_module("janus.weights.load")  # the package has a function of that name

RELEASED = FLOW_PRESETS["JanusFlow-1.3B"]
POOLING = "vision_und_enc_model.vision_tower.attn_pool."
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    return data / "janusflow" / "checkpoint"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


@pytest.fixture
def released() -> dict[str, Any]:
    """A whole config, without the keys that only some tests set."""
    values = json.loads(json.dumps(format_config(RELEASED, "deepseek", dtype="bfloat16")))
    del values["language_config"]["head_dim"]
    return values


def manifest(shared: Path) -> Shapes:
    listed = json.loads((shared / "oracle" / "manifests" / "JanusFlow-1.3B.json").read_text())
    return {name: tuple(shape) for name, shape in listed.items()}


@cache
def released_shapes() -> Shapes:
    """The names and shapes that a checkpoint of the released size must hold."""
    return {
        name: tuple(tensor.shape) for name, tensor in named_tensors(empty_model(RELEASED), "deepseek").items()
    }


def assert_equal(left: JanusFlow, right: JanusFlow) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# Names


def test_every_released_tensor_is_one_of_ours_or_dropped(shared: Path) -> None:
    theirs, ours = manifest(shared), released_shapes()
    assert {name: shape for name, shape in theirs.items() if name in ours} == ours
    left_over = theirs.keys() - ours.keys()
    assert all(is_dropped(name, "deepseek_flow", RELEASED.vision) for name in left_over)
    assert Counter(name.startswith(POOLING) for name in left_over) == {True: 13}


NUMBERS = {  # of the released JanusFlow-1.3B, counted in the original's modules
    "vision_adapter": 2_099_200,
    "begin_embedding": 2_048,
    "encoder": 21_614_336,
    "latent_adapter": 1_574_912,
    "decoder": 50_561_296,
    "velocity_norm": 2_048,
    "velocity_adapter": 1_573_632,
    "language": 1_652_656_128,
}


def test_number_of_parameters() -> None:
    counts: Counter[str] = Counter()
    for name, parameter in empty_model(RELEASED).named_parameters():
        counts[name.split(".")[0]] += parameter.numel()
    assert {part: counts[part] for part in NUMBERS} == NUMBERS
    assert counts.keys() - NUMBERS.keys() == {"vision"}


def test_no_two_of_our_names_share_a_foreign_one_and_none_is_dropped() -> None:
    names = parameter_names(empty_model(RELEASED))
    foreign = [name for where in sources(names, "deepseek_flow").values() for name in where.names]
    assert max(Counter(foreign).values()) == 1
    assert not any("{" in name or "*" in name for name in foreign)
    assert not [name for name in foreign if is_dropped(name, "deepseek_flow", RELEASED.vision)]


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("vision_und_enc_model.vision_tower.blocks.24.norm1.weight", False),  # which the tower never had
        ("vision_und_enc_model.vision_tower.blocks.23.norm1.weight", False),
        ("vision_und_enc_model.vision_tower.attn_pool.latent", True),
        ("vision_model.vision_tower.attn_pool.latent", False),
        ("language_model.model.layers.11.self_attn.rotary_emb.inv_freq", True),
        ("vision_gen_enc_model.in_conv.weight", False),
    ],
)
def test_what_a_checkpoint_may_hold_besides(name: str, dropped: bool) -> None:
    assert is_dropped(name, "deepseek_flow", RELEASED.vision) is dropped


def test_only_the_released_layout_has_names() -> None:
    assert naming_of(RELEASED, "deepseek") == "deepseek_flow"
    with pytest.raises(ValueError, match="the layout transformers has no names for a JanusFlow"):
        naming_of(RELEASED, "transformers")


# The config


def test_preset_is_what_the_released_config_says(shared: Path) -> None:
    values = json.loads((shared / "oracle" / "manifests" / "JanusFlow-1.3B.config.json").read_text())
    assert parse_config(values) == (RELEASED, "deepseek")


def test_sizes_of_the_small_checkpoint(checkpoint: Path) -> None:
    config, layout = read_config(checkpoint)
    assert isinstance(config, JanusFlowConfig)
    assert layout == "deepseek"
    assert config.vision == replace(RELEASED.vision, image_size=64, width=56, layers=3, heads=4)
    assert config.uvit == replace(RELEASED.uvit, width=48, decoder_width=48, time_width=64)
    assert (config.language.width, config.language.layers, config.dtype) == (64, 3, "float32")


def test_what_is_absent_is_what_the_originals_classes_say(released: dict[str, Any]) -> None:
    # Their stride of 4, kernel of 7 and two upsamplings are not what this library computes.
    released["vision_gen_enc_config"]["params"] = {"stride": 2, "kernel_size": 3}
    released["vision_gen_dec_config"]["params"] = {"upsamples": 1}
    config, _ = parse_config(released)
    assert isinstance(config, JanusFlowConfig)
    assert config.uvit == replace(RELEASED.uvit, latent_channels=3, kernel_size=3, padding=1)
    released["vision_gen_enc_config"]["params"] = {}
    with pytest.raises(ValueError, match="stride = null: cannot be honored; supported: 2"):
        parse_config(released)


@st.composite
def configs(draw: st.DrawFn) -> JanusFlowConfig:
    size = st.integers(1, 500)
    heads, kv = draw(st.sampled_from([(4, 2), (3, 1), (5, 5)]))
    width = heads * 2 * draw(st.integers(1, 9))
    kernel_size = draw(st.integers(1, 9))
    eps = st.floats(1e-8, 1e-3)
    return JanusFlowConfig(
        vision=VisionConfig(
            image_size=64,
            patch_size=draw(st.integers(1, 64)),
            width=8 * draw(size),
            layers=4,
            heads=4,
            mlp_ratio=draw(st.floats(0.5, 8)),
            select_layer=draw(st.integers(-4, 5)),
            norm_eps=1e-6,
        ),
        uvit=UViTConfig(
            latent_channels=draw(size),
            width=2 * draw(size),
            decoder_width=draw(size),
            time_width=width,
            kernel_size=kernel_size,
            padding=(kernel_size - 1) // 2,
            encoder_blocks=draw(st.integers(1, 9)),
            decoder_blocks=draw(st.integers(1, 9)),
            encoder_norm_eps=draw(eps),
            decoder_norm_eps=draw(eps),
        ),
        language=LanguageConfig(
            vocabulary=draw(size),
            width=width,
            mlp_width=draw(size),
            layers=draw(st.integers(1, 9)),
            heads=heads,
            kv_heads=kv,
            head_width=2 * draw(size),
            norm_eps=draw(eps),
            rope_theta=draw(st.floats(1, 1e6)),
            window=draw(size),
            tied_head=draw(st.booleans()),
        ),
        dtype=draw(st.sampled_from(["bfloat16", "float32"])),
        quantization=draw(st.sampled_from([None, "int8", "int4"])),
    )


@given(configs())
def test_what_is_written_is_read_back(config: JanusFlowConfig) -> None:
    values = json.loads(json.dumps(format_config(config, "deepseek", dtype=config.dtype)))
    assert parse_config(values) == (config, "deepseek")


def test_keys_that_say_nothing_survive(checkpoint: Path) -> None:
    before = json.loads((checkpoint / "config.json").read_text())
    config, _ = read_config(checkpoint)
    after = json.loads(json.dumps(format_config(config, "deepseek", dtype="float32")))
    assert after["transformers_version"] == "4.38.1"
    for part in ("vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"):
        assert after[part] == before[part]
    assert {key: after["language_config"][key] for key in before["language_config"]} == {
        **before["language_config"],
        "torch_dtype": "float32",
    }


ENCODER, DECODER = "vision_gen_enc_config.params.", "vision_gen_dec_config.params."
UNKNOWN = [
    ("vision_und_enc_config.cls", "SAMTower"),
    ("vision_gen_enc_config.cls", "UNet"),
    ("vision_gen_dec_config.cls", None),
    ("vision_und_enc_config.params.model_name", "sam_b"),
    (ENCODER + "stride", 4),
    (ENCODER + "use_bias", False),
    (ENCODER + "elementwise_affine", False),
    (ENCODER + "use_mid_block", 0.5),
    (ENCODER + "block_out_channels", [768, 768]),
    (ENCODER + "block_out_channels", []),
    (ENCODER + "block_out_channels", 768),
    (ENCODER + "block_out_channels", ["768"]),
    (ENCODER + "kernel_size", 2.5),
    (ENCODER + "padding", "same"),
    (ENCODER + "layers_in_middle", True),
    (ENCODER + "norm_eps", float("nan")),
    (ENCODER + "hidden_size", 2**31),
    (DECODER + "upsamples", 2),
    (DECODER + "out_channels", 3),
    (DECODER + "hidden_size", 1024),
    (DECODER + "block_out_channels", [512]),
    (DECODER + "in_channels", "768"),
    (DECODER + "use_mid_block", False),
    ("language_config.hidden_act", "gelu"),
    ("torch_dtype", "int8"),
    ("vision_gen_enc_config", "uvit"),
]


def set_key(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        values = values[parent]
    values[leaf] = value


@pytest.mark.parametrize(("key", "value"), UNKNOWN, ids=lambda x: str(x)[-30:])
def test_value_that_cannot_be_honored(key: str, value: Any, released: dict[str, Any]) -> None:
    set_key(released, key, value)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (key and value are checked below)
        parse_config(released)
    assert f"{key} = {json.dumps(value)}: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (ENCODER + "kernel_size", 5, "kernel_size 5 with padding 0 does not halve"),
        (ENCODER + "layers_in_middle", 0, "encoder_blocks must be from 1 to 1000, not 0"),
        (DECODER + "in_channels", 0, "decoder_width must be positive, not 0"),
        ("language_config.hidden_size", 1024, "must be equal: 2048 and 1024"),
    ],
)
def test_sizes_that_do_not_fit_each_other(
    key: str, value: Any, words: str, copied: Path, released: dict[str, Any]
) -> None:
    set_key(released, key, value)
    (copied / "config.json").write_text(json.dumps(released))
    with pytest.raises(ValueError, match=words) as raised:
        load(copied, device="cpu")
    assert str(raised.value).startswith(str(copied / "config.json"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["vision_und_enc", "vision_gen_dec", "language"])
@pytest.mark.parametrize("value", [None, {}], ids=["null", "empty"])
def test_part_that_is_missing(part: str, value: Any, released: dict[str, Any]) -> None:
    released[f"{part}_config"] = value
    with pytest.raises(ValueError, match=f"{part}_config is missing"):
        parse_config(released)


# Loading and saving


def test_another_class_is_refused_before_any_weight_is_read(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "fill", lambda *given: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="holds a JanusFlow, not a Janus"):
        Janus.from_pretrained(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="holds a Janus, not a JanusFlow"):
        JanusFlow.from_pretrained(data / "januspro" / "checkpoint", device="cpu")


def test_the_config_chooses_the_class(checkpoint: Path, data: Path, flow: JanusFlow) -> None:
    loaded = janus.weights.load(checkpoint, device="cpu", dtype="float32")
    assert isinstance(loaded, JanusFlow)
    assert not loaded.training
    assert_equal(loaded, flow)
    assert isinstance(load(data / "januspro" / "checkpoint", device="cpu"), Janus)


def test_what_is_saved_is_what_was_read(checkpoint: Path, flow: JanusFlow, tmp_path: Path) -> None:
    """Every bit of every tensor that is computed with, and every byte of the files beside them."""
    flow.save_pretrained(tmp_path / "once")
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "once" / "model.safetensors")
    assert {name for name in before if name not in after} == {name for name in before if POOLING in name}
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name
    side_files = {file.name for file in checkpoint.iterdir()} - {"config.json", "model.safetensors"}
    for name in side_files:
        assert (tmp_path / "once" / name).read_bytes() == (checkpoint / name).read_bytes()
    again = JanusFlow.from_pretrained(tmp_path / "once", device="cpu", dtype="float32")
    assert again.config == flow.config
    again.save_pretrained(tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes(), file.name


def test_shards(flow: JanusFlow, tmp_path: Path) -> None:
    flow.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert_equal(JanusFlow.from_pretrained(tmp_path, device="cpu", dtype="float32"), flow)


def test_transformers_layout_is_refused_before_anything_is_written(flow: JanusFlow, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the layout transformers has no names for a JanusFlow"):
        flow.save_pretrained(tmp_path / "new", layout="transformers")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_and_back(quantization: str, checkpoint: Path, tmp_path: Path) -> None:
    model = JanusFlow.from_pretrained(checkpoint, device="cpu", quantize=quantization)
    model.save_pretrained(tmp_path)
    again = JanusFlow.from_pretrained(tmp_path, device="cpu")
    assert again.config.quantization == quantization
    assert_equal(again, model)


def test_blocks_that_select_layer_leaves_are_not_missed(copied: Path, flow: JanusFlow) -> None:
    values = json.loads((copied / "config.json").read_text())
    set_key(values, "vision_und_enc_config.params.select_layer", -2)
    (copied / "config.json").write_text(json.dumps(values))
    model = JanusFlow.from_pretrained(copied, device="cpu", dtype="float32")
    assert len(model.vision.blocks) == 2
    assert torch.equal(model.begin_embedding, flow.begin_embedding)


# Weights that do not fit

Tensors = dict[str, Tensor]
DAMAGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda tensors: tensors.pop("beg_of_und_embed"), "missing: beg_of_und_embed"),
    "misshapen": (
        lambda tensors: tensors.update({"vision_gen_enc_aligner.bias": torch.zeros(3)}),
        r"misshapen: vision_gen_enc_aligner\.bias is \(3,\), not \(64,\)",
    ),
    "unexpected": (
        lambda tensors: tensors.update({"gen_embed.weight": torch.zeros(3)}),
        r"unexpected: gen_embed\.weight",
    ),
    "integers": (
        lambda tensors: tensors.update({"vision_gen_dec_aligner.bias": torch.zeros(48, dtype=torch.int8)}),
        r"not floating-point: vision_gen_dec_aligner\.bias",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_weights_that_do_not_fit_the_config(case: str, copied: Path) -> None:
    damage, words = DAMAGES[case]
    tensors = load_file(copied / "model.safetensors")
    damage(tensors)
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(ValueError, match=f"do not fit its config.json: {words}$") as raised:
        load(copied, device="cpu")
    assert "\n" not in str(raised.value)


def test_config_of_the_other_family_beside_the_weights(copied: Path, data: Path) -> None:
    shutil.copy(data / "januspro" / "checkpoint" / "config.json", copied / "config.json")
    with pytest.raises(ValueError, match=r"do not fit its config\.json: missing: .* and \d+ more") as raised:
        load(copied, device="cpu")
    assert "\n" not in str(raised.value)


@settings(max_examples=10)
@given(end=st.integers(0, 2_779_327))
def test_file_that_is_cut_off(end: int, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    shutil.copy(checkpoint / "config.json", folder)
    whole = (checkpoint / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:end])
    with pytest.raises(ValueError, match="is not a whole safetensors file") as raised:
        load(folder, device="cpu")
    assert "\n" not in str(raised.value)
