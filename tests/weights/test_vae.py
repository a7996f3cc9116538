"""The autoencoder's files: every form of one checkpoint gives one module; what is broken gives one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from janus.models.vae import SDXL, VAE, VAEConfig
from janus.weights import hub
from janus.weights import vae as vae_module
from janus.weights.vae import (
    RELEASED,
    WEIGHTS,
    check_vae_names,
    copy_vae,
    format_vae_config,
    load_vae,
    parse_vae_config,
    read_vae_config,
    save_vae,
    stored_names,
)

EditJson = Callable[[Path, dict[str, Any]], None]
ATTENTION = "encoder.mid_block.attentions.0"


@pytest.fixture(scope="module")
def original(data: Path) -> Path:
    """The small autoencoder in diffusers' layout; never written to."""
    return data / "janusflow" / "vae"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "vae"))


@pytest.fixture(scope="module")
def reference(original: Path) -> VAE:
    return load_vae(original, device="cpu")


def rename(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write the folder's weights anew, changed."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def fails(folder: Path, kind: type[Exception] = ValueError) -> str:
    """The one line with which loading fails; it holds the path."""
    with pytest.raises(kind) as raised:
        load_vae(folder, device="cpu")
    message = str(raised.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def assert_equal(left: VAE, right: VAE) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# Names


def test_the_released_names_and_shapes(shared: Path) -> None:
    manifest = json.loads((shared / "oracle" / "manifests" / "sdxl-vae.json").read_text())
    with torch.device("meta"):
        state = VAE(SDXL).state_dict()
    assert {stored_names(name)[0]: list(tensor.shape) for name, tensor in state.items()} == manifest
    assert sum(tensor.numel() for tensor in state.values()) == 83_653_863


def test_tensors_are_those_of_the_file(original: Path, reference: VAE) -> None:
    stored = load_file(original / WEIGHTS)
    state = reference.state_dict()
    assert {stored_names(name)[0] for name in state} == set(stored)
    for name, tensor in state.items():
        assert torch.equal(tensor, stored[stored_names(name)[0]]), name


def test_a_name_that_is_none_raises() -> None:
    with pytest.raises(KeyError, match="no row of the table fits mid"):
        stored_names("mid.weight")


OLD = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "convolutions"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_attention_of_earlier_releases(old: bool, convolutions: bool, folder: Path, reference: VAE) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = {}
        for name, tensor in tensors.items():
            part = next((part for part in OLD if f"attentions.0.{part}" in name), None)
            if part is not None:
                if old:
                    name = name.replace(part, OLD[part])
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[..., None, None].clone()
            changed[name] = tensor
        return changed

    rename(folder, change)
    assert_equal(load_vae(folder, device="cpu"), reference)


def test_both_names_of_one_tensor_raise(folder: Path) -> None:
    rename(folder, lambda held: {**held, f"{ATTENTION}.query.bias": held[f"{ATTENTION}.to_q.bias"].clone()})
    assert fails(folder).endswith(f"unexpected: {ATTENTION}.query.bias")


# Forms


@pytest.mark.parametrize("form", ["bin", "shards"])
def test_other_files_of_one_checkpoint(form: str, folder: Path, reference: VAE) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if form == "bin":
        torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    else:
        weight_map = {}
        for number in range(2):
            name = f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors"
            part = {key: tensors[key] for key in sorted(tensors)[number::2]}
            save_file(part, folder / name)
            weight_map.update(dict.fromkeys(part, name))
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(load_vae(folder, device="cpu"), reference)


def test_only_what_loading_takes_is_fetched() -> None:
    """The listing of the released repository: other layouts of the same weights stay there."""
    names = [
        ".gitattributes",
        "README.md",
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
        "sdxl_vae.safetensors",
    ]
    assert hub.needed(names) == ["config.json", WEIGHTS]


def test_a_janusflows_own_is_fetched_with_it() -> None:
    own = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    listing = [
        "config.json",
        "model.safetensors",
        *own,
        "vae/diffusion_pytorch_model.bin",
        "vae/old/x.safetensors",
    ]
    assert hub.needed(listing) == ["config.json", "model.safetensors", *own]
    assert hub.needed(listing, weights=False) == ["config.json", own[0]]
    # Without a config it is none.
    assert hub.needed(["config.json", "model.safetensors", own[1]]) == ["config.json", "model.safetensors"]


def test_reading_in_windows_changes_nothing(
    original: Path, reference: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_module, "WINDOW", 1000)
    assert_equal(load_vae(original, device="cpu"), reference)


def test_the_module_is_ready_and_the_file_is_left_alone(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    vae = load_vae(folder, device="cpu")
    assert not any(module.training for module in vae.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in vae.parameters())
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.fill_(3)
    assert (folder / WEIGHTS).read_bytes() == before


# Dtype


@pytest.mark.parametrize(
    ("asked", "upcast", "expected"),
    [
        (None, True, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        (torch.float64, True, torch.float64),
        ("float16", True, torch.float32),
        ("float16", False, torch.float16),
    ],
)
def test_dtype_asked_for(
    asked: Any, upcast: bool, expected: torch.dtype, folder: Path, edit_json: EditJson, reference: VAE
) -> None:
    edit_json(folder / "config.json", {"force_upcast": upcast})
    vae = load_vae(folder, device="cpu", dtype=asked)
    assert vae.dtype == expected
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name].to(expected)), name


def test_stored_halves_are_taken_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename(folder, lambda held: {name: tensor.bfloat16() for name, tensor in held.items()})
    monkeypatch.setattr("janus.devices.computes_bfloat16", lambda device: True)
    assert load_vae(folder, device="cpu").dtype == torch.bfloat16


def test_wrong_names_raise_before_anything_is_sought() -> None:
    with pytest.raises(ValueError, match="dtype 'int8' is not supported"):
        load_vae("no/such", dtype="int8")
    with pytest.raises(ValueError, match="device 'tpu9' is unknown"):
        load_vae("no/such", device="tpu9")


# Where it is


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_released_one_is_the_default(cache: Path, original: Path, reference: VAE) -> None:
    root = cache / f"models--{RELEASED.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(original, root / "snapshots" / ("0" * 40))
    assert_equal(load_vae(device="cpu"), reference)


def test_without_it_one_line_says_what_is_missing(cache: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        load_vae(device="cpu")
    message = str(raised.value)
    assert message.startswith(f"the autoencoder of JanusFlow's pictures is not there: {RELEASED}: no copy in")
    assert "\n" not in message


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "no such folder" in fails(tmp_path / "absent", FileNotFoundError)
    assert "has no config.json" in fails(tmp_path, FileNotFoundError)
    with pytest.raises(ValueError, match="name is empty"):
        load_vae("")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert f"holds no weights of an autoencoder, which {WEIGHTS} would be" in fails(folder, FileNotFoundError)


def test_a_model_is_no_autoencoder(data: Path) -> None:
    assert '_class_name = null: cannot be honored; supported: "AutoencoderKL"' in fails(
        data / "januspro" / "checkpoint"
    )


# Weights that do not fit


def test_up_to_ten_names_of_each_kind(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.mid_block")}
        kept["quant_conv.bias"] = torch.zeros(9)
        kept["post_quant_conv.weight"] = kept["post_quant_conv.weight"][:, :, 0, 0].clone()
        kept["post_quant_conv.bias"] = torch.zeros(4, dtype=torch.int8)
        return {
            **kept,
            **{f"loss.{number:02}": torch.zeros(1) for number in range(12)},
            "a\nb": torch.ones(1),
        }

    rename(folder, change)
    message = fails(folder)
    start, missing, unexpected, misshapen, others = (
        message.split(": ", 1)[0],
        *message.split(": ", 1)[1].split(". "),
    )
    assert start == f"the weights in {folder} do not fit its config.json"
    assert missing.startswith("missing: encoder.mid_block.resnets.0.norm1.weight, ")
    assert missing.endswith(" and 16 more")
    assert missing.count(",") == 9
    assert unexpected.startswith("unexpected: 'a\\nb', loss.00, ")
    assert unexpected.endswith(" and 3 more")
    assert misshapen == (
        "misshapen: quant_conv.bias is (9,), not (8,), post_quant_conv.weight is (4, 4), not (4, 4, 1, 1)"
    )
    assert others == "not floating-point: post_quant_conv.bias"


def test_a_config_of_other_sizes(folder: Path, edit_json: EditJson) -> None:
    edit_json(folder / "config.json", {"latent_channels": 8})
    assert "encoder.conv_out.weight is (8, 32, 3, 3), not (16, 32, 3, 3)" in fails(folder)
    edit_json(folder / "config.json", {"latent_channels": 4, "layers_per_block": 2})
    assert "missing: encoder.down_blocks.0.resnets.1.norm1.weight" in fails(folder)


def test_sizes_that_no_tensor_can_have(folder: Path, edit_json: EditJson) -> None:
    edit_json(folder / "config.json", {"block_out_channels": [2**40] * 4})
    with pytest.raises(ValueError, match="a size that torch cannot hold"):
        load_vae(folder, device="cpu")


@pytest.mark.parametrize("kept", [0, 4, 100, 5000, -1], ids=str)
def test_a_truncated_file(kept: int, folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    os.truncate(folder / WEIGHTS, kept % size)
    assert "is not a whole safetensors file" in fails(folder)


def test_files_that_hold_nothing(folder: Path, reference: VAE) -> None:
    with pytest.raises(ValueError, match=r"missing: encoder\.conv_in\.weight, .* and 170 more"):
        check_vae_names(reference, {}, folder)


# Configs


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '"AutoencoderKL"', "null", '{"a": ' * 2000, "\ufeff{}"],
    ids=["empty", "open", "list", "string", "null", "deep", "mark"],
)
def test_a_config_that_is_no_object(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in fails(folder)


def test_a_config_that_is_no_text(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    assert "config.json cannot be read" in fails(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("_class_name", None),
        ("act_fn", "gelu"),
        ("in_channels", 4),
        ("out_channels", 1),
        ("use_quant_conv", False),
        ("use_post_quant_conv", False),
        ("mid_block_add_attention", False),
        ("shift_factor", 0.1159),
        ("latents_mean", [0.0, 0.0, 0.0, 0.0]),
        ("latents_std", [1.0, 1.0, 1.0, 1.0]),
        ("block_out_channels", []),
        ("block_out_channels", 128),
        ("block_out_channels", [16, 16, 32, True]),
        ("down_block_types", ["DownEncoderBlock2D"] * 3),
        ("down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]),
        ("up_block_types", "UpDecoderBlock2D"),
        ("layers_per_block", 1.5),
        ("latent_channels", "4"),
        ("norm_num_groups", True),
        ("scaling_factor", "0.13025"),
        ("scaling_factor", float("nan")),
        ("force_upcast", 1),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_honored(key: str, value: Any, folder: Path, edit_json: EditJson) -> None:
    edit_json(folder / "config.json", {key: value})
    assert f"config.json: {key} = " in fails(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_num_groups": 7},
        {"norm_num_groups": 0},
        {"layers_per_block": 0},
        {"layers_per_block": 10**6},
        {"latent_channels": -4},
        {"scaling_factor": 0},
        {
            "block_out_channels": [8] * 20,
            "down_block_types": ["DownEncoderBlock2D"] * 20,
            "up_block_types": ["UpDecoderBlock2D"] * 20,
        },
    ],
    ids=str,
)
def test_sizes_that_cannot_be(changes: dict[str, Any], folder: Path, edit_json: EditJson) -> None:
    edit_json(folder / "config.json", changes)
    assert "config.json: vae: " in fails(folder)


def test_absent_keys_mean_what_they_mean_to_diffusers() -> None:
    assert parse_vae_config({"_class_name": "AutoencoderKL"}) == VAEConfig(
        channels=(64,),
        residual_blocks=1,
        latent_channels=4,
        groups=32,
        scaling_factor=0.18215,
        force_upcast=True,
    )


def test_the_released_config() -> None:
    values = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.20.0.dev0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    config = parse_vae_config(values)
    assert config == SDXL
    assert format_vae_config(config) == values


@given(
    st.builds(
        lambda groups, widths, **sizes: VAEConfig(
            groups=groups, channels=tuple(groups * width for width in widths), **sizes
        ),
        groups=st.integers(1, 64),
        widths=st.lists(st.integers(1, 9), min_size=1, max_size=16),
        residual_blocks=st.integers(1, 1000),
        latent_channels=st.integers(1, 64),
        scaling_factor=st.floats(0, 100, exclude_min=True),
        force_upcast=st.booleans(),
    )
)
def test_every_config_survives_its_json(config: VAEConfig) -> None:
    assert parse_vae_config(json.loads(json.dumps(format_vae_config(config)))) == config


# Saving


def test_what_is_saved_is_what_was_loaded(original: Path, reference: VAE, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "vae"
    save_vae(reference, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", WEIGHTS]
    assert_equal(load_vae(folder, device="cpu"), reference)
    # Keys that say nothing here among them.
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (original / "config.json").read_text()
    )
    stored, held = load_file(folder / WEIGHTS), load_file(original / WEIGHTS)
    assert stored.keys() == held.keys()
    assert all(torch.equal(tensor, held[name]) for name, tensor in stored.items())


@pytest.mark.parametrize("stale", [WEIGHTS, "model.safetensors", f"{WEIGHTS}.index.json"])
def test_a_copy_does_not_stand_beside_the_weights_of_another(
    stale: str, folder: Path, reference: VAE, tmp_path: Path
) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    there = tmp_path / "there" / "vae"
    there.mkdir(parents=True)
    (there / stale).write_bytes(b"of another")
    (there / "notes.txt").write_text("mine")
    copy_vae(folder, there.parent)
    names = {file.name for file in there.iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.bin", "notes.txt"}
    assert_equal(load_vae(there, device="cpu"), reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_are_saved_at_their_own_dtype(dtype: torch.dtype, original: Path, tmp_path: Path) -> None:
    save_vae(load_vae(original, device="cpu").to(dtype), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {dtype}


def test_others_may_read_what_is_saved(reference: VAE, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_vae(reference, tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_what_was_there(
    folder: Path, reference: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise OSError("no space left")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr("janus.weights.write.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_vae(reference, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_is_no_place_to_save(reference: VAE, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: name a folder to save into"):
        save_vae(reference, tmp_path / "file")


def test_reading_the_config_alone(original: Path) -> None:
    config = read_vae_config(original)
    assert (config.channels, config.groups, config.factor) == ((16, 16, 32, 32), 8, 8)
    assert config.extra["sample_size"] == 128
