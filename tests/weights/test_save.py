"""Saving: what stands in the folder afterwards, and that no failure costs a checkpoint that was there."""

import errno
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from janus.models.janus import Janus
from janus.weights.load import load
from janus.weights.names import LAYOUTS, Layout
from janus.weights.save import named_tensors, save
from janus.weights.write import write_tensors

save_module = importlib.import_module("janus.weights.save")
Equal = Callable[[Janus, Janus], None]
INDEX = "model.safetensors.index.json"

pytestmark = pytest.mark.filterwarnings("ignore:transformers' own Janus cannot load")


@pytest.fixture(scope="module")
def model(make_config: Callable[..., Any], make_model: Callable[..., Janus]) -> Janus:
    return make_model(make_config())


@pytest.fixture(scope="module")
def other(make_config: Callable[..., Any], make_model: Callable[..., Janus]) -> Janus:
    """The same architecture with other weights."""
    return make_model(make_config(), seed=1)


def weight_names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if "safetensors" in file.name}


def read_shards(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(file) for file in sorted(folder.glob("model*.safetensors"))]


# What is written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_file_without_a_size(layout: Layout, model: Janus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, layout=layout)
    assert weight_names(tmp_path) == {"model.safetensors"}
    # Without this entry older versions of transformers refuse the file.
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    written = load_file(tmp_path / "model.safetensors")
    expected = named_tensors(model, layout)
    assert written.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [200_000, "200KB", "200 kb", "0.2MB"], ids=str)
def test_shards_and_their_index(
    size: int | str, layout: Layout, model: Janus, tmp_path: Path, assert_equal: Equal
) -> None:
    save(model, tmp_path, layout=layout, max_shard_size=size)
    shards = read_shards(tmp_path)
    count = len(shards)
    files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    assert count > 5
    assert weight_names(tmp_path) == {INDEX, *files}
    for shard in shards:
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 200_000
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"] == {
        name: file for file, shard in zip(files, shards, strict=True) for name in shard
    }
    assert index["metadata"]["total_size"] == sum(t.nbytes for shard in shards for t in shard.values())
    assert_equal(load(tmp_path, device="cpu", dtype="float32"), model)


@settings(max_examples=10)
@example(limit=1, layout="deepseek")  # below the very first tensor: still no empty file
@given(limit=st.integers(30_000, 3_000_000), layout=st.sampled_from(LAYOUTS))
def test_any_size_splits_in_order_and_wastes_nothing(limit: int, layout: Layout, model: Janus) -> None:
    named = named_tensors(model, layout)
    shards = save_module._shards(named, limit)
    assert [name for shard in shards for name in shard] == list(named)
    assert all(shards)
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    for shard, size in zip(shards, sizes, strict=True):
        assert len(shard) == 1 or size <= limit
    # No shard was closed while the next tensor would still have fitted.
    for size, following in zip(sizes, shards[1:], strict=False):
        assert size + next(iter(following.values())).nbytes > limit


def test_size_above_the_whole_needs_no_index(model: Janus, tmp_path: Path) -> None:
    save(model, tmp_path, max_shard_size="10GiB")
    assert weight_names(tmp_path) == {"model.safetensors"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_side_files_stand_beside_the_weights(layout: Layout, checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint, device="cpu").save_pretrained(tmp_path, layout=layout)
    names = {file.name for file in checkpoint.iterdir()}
    assert names <= {file.name for file in tmp_path.iterdir()}
    if layout == "deepseek":
        unchanged = names - {"config.json", "model.safetensors"}
        assert all((tmp_path / n).read_bytes() == (checkpoint / n).read_bytes() for n in unchanged)
    else:
        assert {"generation_config.json", "chat_template.jinja"} <= {file.name for file in tmp_path.iterdir()}
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["image_token_id"] == 483  # <image_placeholder> in its tokenizer.json


def test_config_states_the_precision_of_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    """Not that of the file which the model was read from."""
    load(checkpoint, device="cpu", dtype="float32").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["torch_dtype"], config["language_config"]["torch_dtype"]) == ("float32", "float32")
    assert config["transformers_version"] == "4.33.1"


def test_folder_is_made_with_its_parents(
    model: Janus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save_pretrained("~/a/b")
    assert (tmp_path / "a" / "b" / "config.json").is_file()


def test_nothing_but_the_checkpoint_is_left_in_the_folder(model: Janus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_files_may_be_read_by_whoever_the_umask_lets(model: Janus, tmp_path: Path) -> None:
    """safetensors itself writes for the owner alone."""
    (tmp_path / "usual").touch()
    model.save_pretrained(tmp_path / "folder", max_shard_size="1MB")
    usual = (tmp_path / "usual").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "folder").iterdir()} == {usual}


# Over what was there


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saving_over_the_files_that_the_model_was_loaded_from(
    layout: Layout, copied: Path, checkpoint: Path, assert_equal: Equal
) -> None:
    reference = load(checkpoint, device="cpu", dtype="bfloat16")
    model = load(copied, device="cpu", dtype="bfloat16")
    model.save_pretrained(copied, layout=layout)
    assert_equal(model, reference)
    assert_equal(load(copied, device="cpu", dtype="bfloat16"), reference)


@pytest.mark.parametrize(
    ("before", "after"), [("200KB", None), (None, "200KB"), ("200KB", "400KB"), ("400KB", "200KB")]
)
def test_files_of_an_earlier_checkpoint_are_gone(
    before: str | None, after: str | None, model: Janus, other: Janus, tmp_path: Path, assert_equal: Equal
) -> None:
    other.save_pretrained(tmp_path / "over", max_shard_size=before)
    for folder in (tmp_path / "over", tmp_path / "fresh"):
        model.save_pretrained(folder, max_shard_size=after)
    assert weight_names(tmp_path / "over") == weight_names(tmp_path / "fresh")
    assert_equal(load(tmp_path / "over", device="cpu"), model)


def test_side_files_of_an_earlier_checkpoint_are_gone(checkpoint: Path, tmp_path: Path) -> None:
    """They would say how this one draws and speaks."""
    model = load(checkpoint, device="cpu")
    model.files.pop("generation_config.json", None)
    assert "tokenizer.json" in model.files
    for name in ("generation_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("of another")
    model.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", *model.files}
    model.files = {}
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == names, "of one without any, the folder's stay"


def test_several_may_save_into_one_folder_at_once(model: Janus, tmp_path: Path, assert_equal: Equal) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(model.save_pretrained, tmp_path) for _ in range(12)]:
            done.result()
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]
    assert_equal(load(tmp_path, device="cpu", dtype=model.dtype), model)


def test_files_of_the_users_own_are_left_alone(model: Janus, tmp_path: Path) -> None:
    own = ["model-ema.safetensors", "model_lora.safetensors", "model.safetensors.bak", "notes.txt"]
    for name in own:
        (tmp_path / name).write_text(name)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    model.save_pretrained(tmp_path)
    assert all((tmp_path / name).read_text() == name for name in own)


def test_safetensors_win_over_an_earlier_bin(copied: Path, model: Janus, assert_equal: Equal) -> None:
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(tensors, copied / "pytorch_model.bin")
    model.save_pretrained(copied)
    assert_equal(load(copied, device="cpu"), model)


# Failures


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "hf"}, "layout 'hf' is unknown: name one of deepseek, transformers"),
        ({"max_shard_size": "big"}, "max_shard_size 'big' is not a size"),
        ({"max_shard_size": 0}, "max_shard_size 0 is not a size"),
        ({"max_shard_size": -5}, "max_shard_size -5 is not a size"),
        ({"max_shard_size": "5TB"}, "max_shard_size '5TB' is not a size"),
        ({"max_shard_size": ""}, "max_shard_size '' is not a size"),
        ({"max_shard_size": True}, "max_shard_size True is not a size"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_option_that_is_wrong_raises_before_anything_is_written(
    options: dict[str, Any], words: str, model: Janus, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the message is checked below)
        save(model, tmp_path / "folder", **options)
    assert words in str(raised.value)
    assert not (tmp_path / "folder").exists()


def test_what_the_layout_cannot_state_raises_before_anything_is_written(
    make_config: Callable[..., Any], make_model: Callable[..., Janus], tmp_path: Path
) -> None:
    model = make_model(make_config(vision={"norm_eps": 1e-5}))
    with pytest.raises(ValueError, match="norm epsilon"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_path_that_is_a_file(model: Janus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is a file: name a folder to save into"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("family", ["januspro", "janusflow"])
def test_the_autoencoder_of_another_is_not_taken_over(family: str, data: Path, tmp_path: Path) -> None:
    model = load(data / family / "checkpoint", device="cpu")
    shutil.copytree(data / "janusflow" / "vae", tmp_path / "vae")
    with pytest.raises(ValueError, match="of another model: remove it, or save elsewhere") as raised:
        model.save_pretrained(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'vae'} is the")
    assert [file.name for file in tmp_path.iterdir()] == ["vae"]


@pytest.mark.parametrize("fails_at", [1, 3])
@pytest.mark.parametrize("before", [None, "200KB"], ids=["one-file", "shards"])
@pytest.mark.parametrize("after", [None, "200KB"], ids=["to-one-file", "to-shards"])
def test_failure_in_the_middle_leaves_the_earlier_checkpoint_whole(
    after: str | None,
    before: str | None,
    fails_at: int,
    model: Janus,
    other: Janus,
    tmp_path: Path,
    assert_equal: Equal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one shard of the new may stand among those of the old: both have the same names and shapes."""
    other.save_pretrained(tmp_path, max_shard_size=before)
    files = {file.name for file in tmp_path.iterdir()}
    calls = 0

    def save_some(tensors: dict[str, Tensor], file: Path, **options: Any) -> None:
        nonlocal calls
        calls += 1
        file.write_bytes(b"half of it")
        if calls == fails_at or after is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("janus.weights.write.save_file", save_some)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path, max_shard_size=after)
    assert {file.name for file in tmp_path.iterdir()} == files
    assert_equal(load(tmp_path, device="cpu"), other)


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", errno.ENOSPC),
        ("Error while serializing: header too large", None),
    ],
    ids=["full", "other"],
)
def test_what_safetensors_cannot_write_is_an_error_of_the_system(
    said: str, number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own error is no OSError, which callers and the command line await."""

    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError(said)

    monkeypatch.setattr("janus.weights.write.save_file", fail)
    file = tmp_path / "model.safetensors"
    with pytest.raises(OSError, match="cannot be written") as raised:
        write_tensors({"a": torch.zeros(2)}, file)
    assert raised.value.errno == number
    reason = f"SafetensorError: {said}"
    remedy = "make room, or name another folder"
    assert str(raised.value) == f"{file} cannot be written ({reason}): {remedy}"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of files are the system's own")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: in a process of its own, for it holds for all of one."""
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from janus.weights.write import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_tensors({'a': torch.zeros(3000)}, Path(sys.argv[1]))\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True)
    assert run.returncode == errno.EFBIG, run.stderr
