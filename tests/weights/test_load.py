"""Loading: every form of one checkpoint gives one model, at the device and dtype asked for, or raises."""

import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import janus.weights
from janus import devices
from janus.models.janus import Janus
from janus.weights.load import load

# `janus.weights.load` is the function; this is the module of that name.
load_module = importlib.import_module("janus.weights.load")
Equal = Callable[[Janus, Janus], None]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Janus:
    """The small checkpoint at its stored dtype."""
    return load(checkpoint, device="cpu", dtype="bfloat16")


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def rewrite(folder: Path, shards: int, suffix: str) -> None:
    """The folder's one file of weights as so many files of the other kind, with an index for several."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))


# One checkpoint in its forms


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_forms_of_one_checkpoint_are_one_model(
    shards: int, suffix: str, copied: Path, reference: Janus, assert_equal: Equal
) -> None:
    rewrite(copied, shards, suffix)
    assert_equal(load(copied, device="cpu", dtype="bfloat16"), reference)


def test_parameters_where_tensors_are_usual(copied: Path, reference: Janus, assert_equal: Equal) -> None:
    """`torch.save` of `dict(model.named_parameters())`."""
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(
        {name: torch.nn.Parameter(value) for name, value in tensors.items()}, copied / "pytorch_model.bin"
    )
    assert_equal(load(copied, device="cpu", dtype="bfloat16"), reference)


def test_shards_of_the_oracle(shared: Path, reference: Janus, assert_equal: Equal) -> None:
    folder = shared / "oracle" / "januspro" / "checkpoint_sharded_bin"
    assert_equal(load(folder, device="cpu", dtype="bfloat16"), reference)


def test_ways_to_load_are_one(checkpoint: Path, reference: Janus, assert_equal: Equal) -> None:
    assert_equal(Janus.from_pretrained(checkpoint, device="cpu", dtype="bfloat16"), reference)
    assert_equal(janus.weights.load(str(checkpoint), device="cpu", dtype=torch.bfloat16), reference)


def test_class_that_the_checkpoint_does_not_hold(checkpoint: Path) -> None:
    class Other(Janus):
        pass

    with pytest.raises(ValueError, match="holds a Janus, not a Other"):
        Other.from_pretrained(checkpoint, device="cpu")


def test_model_is_ready_to_run_and_to_train(reference: Janus) -> None:
    assert not any(module.training for module in reference.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in reference.parameters())
    assert all(parameter.device.type == "cpu" for parameter in reference.parameters())
    assert not list(reference.buffers())


def test_side_files_come_with_the_model(checkpoint: Path, reference: Janus) -> None:
    expected = {
        file.name: file.read_bytes() for file in checkpoint.glob("*.json") if file.name != "config.json"
    }
    assert {name: reference.files.get(name) for name in expected} == expected


def test_random_state_is_left_alone(checkpoint: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load(checkpoint, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


# Memory and files


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"], ids=["as stored", "converted"])
def test_files_stay_as_they_are_whatever_the_model_does(suffix: str, dtype: str, copied: Path) -> None:
    if suffix == "bin":
        rewrite(copied, 1, "bin")
    before = digests(copied)
    model = load(copied, device="cpu", dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    assert digests(copied) == before
    assert bool((load(copied, device="cpu", dtype=dtype).vq.codebook != 3).any())


def test_checkpoint_may_be_removed_while_the_model_lives(
    copied: Path, reference: Janus, assert_equal: Equal
) -> None:
    model = load(copied, device="cpu", dtype="bfloat16")
    (copied / "model.safetensors").unlink()
    assert_equal(model, reference)


@pytest.mark.parametrize("window", [1, 10_000])
def test_reading_in_windows_changes_nothing(
    window: int, checkpoint: Path, reference: Janus, assert_equal: Equal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "WINDOW", window)
    model = load(checkpoint, device="cpu", dtype="float32")
    assert model.dtype == torch.float32
    assert_equal(model.to(torch.bfloat16), reference)


# Device and dtype


@pytest.mark.parametrize(("computes", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_default_dtype_is_what_the_device_computes(
    computes: bool, expected: torch.dtype, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "computes_bfloat16", lambda _: computes)
    model = load(checkpoint, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["float32", "float64", torch.float16])
def test_dtype_asked_for(dtype: str | torch.dtype, checkpoint: Path, reference: Janus) -> None:
    model = load(checkpoint, device="cpu", dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert torch.equal(model.vq.codebook, reference.vq.codebook.to(wanted))


@pytest.mark.parametrize("dtype", ["int8", "half precision", torch.int32])
def test_dtype_that_is_none(dtype: Any, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="not supported: name bfloat16, float16, float32 or float64"):
        load(checkpoint, device="cpu", dtype=dtype)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_device_that_is_not_there(device: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=rf"device '{device}' is .*(janus doctor|name one like)"):
        load(checkpoint, device=device)


def test_stored_dtypes_may_be_mixed(copied: Path, reference: Janus) -> None:
    """All follow the word table."""
    tensors = load_file(copied / "model.safetensors")
    name = "language_model.model.norm.weight"
    save_file({**tensors, name: tensors[name].double()}, copied / "model.safetensors")
    model = load(copied, device="cpu", dtype=None)
    assert len({parameter.dtype for parameter in model.parameters()}) == 1
    assert torch.equal(model.language.norm.weight.float(), reference.language.norm.weight.float())


# Names that do not fit


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which any weight is read."""

    def read(*_: object) -> None:
        pytest.fail("weights were read although the names do not fit")

    monkeypatch.setattr(load_module, "read", read)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def complaint(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"do not fit its config\.json: ") as raised:
        load(folder, device="cpu")
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value).split("config.json: ")[1]


@pytest.mark.usefixtures("unread")
def test_missing_names(copied: Path) -> None:
    names = [f"aligner.layers.{index}.{leaf}" for index in (0, 2) for leaf in ("weight", "bias")]
    change(copied, lambda tensors: [tensors.pop(name) for name in names])
    assert complaint(copied) == f"missing: {', '.join(names)}"


@pytest.mark.usefixtures("unread")
def test_missing_names_beyond_ten_are_counted(copied: Path) -> None:
    def only_words(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("language_model.model.layers.")]:
            del tensors[name]

    change(copied, only_words)
    message = complaint(copied)
    assert message.count("language_model.model.layers.0.") + message.count("layers.1.") == 10
    assert message.endswith("and 17 more")  # nine in each of three layers


@pytest.mark.usefixtures("unread")
def test_unexpected_names(copied: Path) -> None:
    names = [f"lora.{number}" for number in range(12)]
    change(copied, lambda tensors: tensors.update({name: torch.zeros(1) for name in names}))
    message = complaint(copied)
    assert message.startswith("unexpected: lora.")
    assert message.count("lora.") == 10
    assert message.endswith("and 2 more")


@pytest.mark.usefixtures("unread")
def test_a_block_that_the_tower_does_not_have(copied: Path) -> None:
    """Above the layer that is selected there may be some; beyond the tower's own layers none."""
    name = "vision_model.vision_tower.blocks.99.norm1.weight"
    change(copied, lambda tensors: tensors.update({name: torch.zeros(1)}))
    assert complaint(copied) == f"unexpected: {name}"


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("shape", [(32, 64), (64, 49), (3072,), (1, 64, 48)], ids=str)
def test_misshapen_names_tell_both_shapes(shape: tuple[int, ...], copied: Path) -> None:
    """(3072,) has as many numbers as the right shape: it must not be taken for it."""
    name = "aligner.layers.0.weight"
    change(copied, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    assert complaint(copied) == f"misshapen: {name} is {shape}, not (64, 48)"


@pytest.mark.usefixtures("unread")
def test_all_kinds_are_told_at_once(copied: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["extra"] = tensors.pop("gen_embed.weight")
        tensors["aligner.layers.0.bias"] = torch.zeros(3)

    change(copied, edit)
    assert complaint(copied) == (
        "missing: gen_embed.weight. unexpected: extra. misshapen: aligner.layers.0.bias is (3,), not (64,)"
    )


@pytest.mark.filterwarnings("ignore:transformers' own Janus cannot load")
@pytest.mark.usefixtures("unread")
def test_weights_of_the_other_layout(copied: Path, tmp_path: Path, reference: Janus) -> None:
    reference.save_pretrained(tmp_path / "other", layout="transformers")
    (tmp_path / "other" / "model.safetensors").replace(copied / "model.safetensors")
    message = complaint(copied)
    assert "missing: vision_model.vision_tower." in message
    assert "unexpected: " in message


# What a checkpoint may hold besides


def test_blocks_beyond_select_layer_are_left_out(
    copied: Path, reference: Janus, edit_json: Callable[..., None]
) -> None:
    edit_json(copied / "config.json", {"vision_config.params.select_layer": -2})
    model = load(copied, device="cpu", dtype="bfloat16")
    assert len(model.vision.blocks) == 2
    for number, block in enumerate(model.vision.blocks):
        expected = reference.vision.blocks[number].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in block.state_dict().items())


def test_blocks_that_select_layer_needs_must_be_there(copied: Path, edit_json: Callable[..., None]) -> None:
    edit_json(copied / "config.json", {"vision_config.params.layers": 4})
    assert complaint(copied).startswith("missing: vision_model.vision_tower.blocks.3.")


def test_parts_that_nothing_computes_with_may_be_absent(
    copied: Path, reference: Janus, assert_equal: Equal
) -> None:
    def prune(tensors: dict[str, torch.Tensor]) -> None:
        unused = [name for name in tensors if "attn_pool" in name or "codebook_used" in name]
        assert len(unused) == 14
        for name in unused:
            del tensors[name]

    change(copied, prune)
    assert_equal(load(copied, device="cpu", dtype="bfloat16"), reference)
