"""Loading, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench_load
import load_memory
import models
from janus.config import JanusConfig
from janus.weights.config_files import read_config
from janus.weights.load import load
from janus.weights.read import contents, weight_files
from machine import resident

SCRIPT = Path(load_memory.__file__)


@pytest.fixture
def config(data: Path) -> JanusConfig:
    return read_config(data / "januspro" / "checkpoint")[0]


def test_the_command_measures_one_loading(data: Path) -> None:
    folder = data / "januspro" / "checkpoint"
    command = [sys.executable, str(SCRIPT), str(folder), "--dtype", "float32", "--with", "janus", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"weights", "peak", "load", "touch"}
    numbers = found["weights"] // 4
    assert 1_000_000 < numbers < 2_500_000  # README: 1.6 million
    if sys.platform == "linux":
        assert found["peak"] > 0


@pytest.mark.parametrize("loader", ["plain", "janus"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_the_weights_are_those_that_are_loaded(loader: str, dtype: str, size: int, data: Path) -> None:
    """Whatever they are stored in; packed ones too, which are no parameters."""
    folder = data / "januspro" / "checkpoint"
    numbers = sum(each.numel() for each in load(folder, device="cpu").parameters())
    assert load_memory.measure(folder, dtype, loader)["weights"] == numbers * size


def test_without_a_dtype_they_are_of_the_one_that_is_chosen(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data / "januspro" / "checkpoint"
    both = []
    for computes in (False, True):
        monkeypatch.setattr("janus.devices.computes_bfloat16", lambda device, computes=computes: computes)
        both.append(load_memory.measure(folder, None, "plain")["weights"])
    assert both[0] == 2 * both[1]


def test_quantized_weights_count(data: Path, tmp_path: Path) -> None:
    model = load(data / "januspro" / "checkpoint", device="cpu", quantize="int4", dtype="bfloat16")
    model.save_pretrained(tmp_path)
    stored = sum(info.bytes for info in contents(weight_files(tmp_path)).values())
    for loader in ("plain", "janus"):
        assert load_memory.measure(tmp_path, "bfloat16", loader)["weights"] == stored


def test_what_cannot_be_loaded_is_told_in_one_line(tmp_path: Path) -> None:
    case = bench_load.CASES[0]
    with pytest.raises(RuntimeError, match=r"config\.json") as caught:
        bench_load.peak(case, (tmp_path,), "janus", torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_process_that_dies_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(bench_load.subprocess, "run", lambda *given, **options: killed)
    with pytest.raises(RuntimeError, match=r"^load_memory\.py ended with status -9$"):
        bench_load.peak(bench_load.CASES[0], (tmp_path,), "janus", torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_resident_memory_grows_with_what_is_touched() -> None:
    before = resident("VmRSS")
    held = torch.ones(1 << 24)
    assert 60 << 20 < resident("VmRSS") - before < 90 << 20
    assert resident("VmHWM") >= resident("VmRSS") - (1 << 20)
    assert held.sum() == 1 << 24
    assert resident("VmNothing") == 0


def test_a_checkpoint_is_written_once(
    config: JanusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "cache", tmp_path)
    case = replace(bench_load.CASES[0], model=config)
    with pytest.warns(UserWarning, match="transformers"):  # the small model is none that its class can be
        folder = models.checkpoint(case)
    assert read_config(folder)[1] == "transformers"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.checkpoint(case) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
