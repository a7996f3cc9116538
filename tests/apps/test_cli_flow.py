"""The command line on a JanusFlow: the same words, its own options, and what each family refuses."""

import importlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import janus
from janus.apps import cli, info
from janus.config import FLOW_PRESETS
from janus.models.vae import SDXL
from janus.weights.load import inspect
from janus.weights.vae import RELEASED, load_vae


@pytest.fixture
def checkpoint(data: Path) -> str:
    return str(data / "janusflow" / "checkpoint")


@pytest.fixture
def vae(data: Path) -> str:
    return str(data / "janusflow" / "vae")


@pytest.fixture
def photograph(data: Path) -> str:
    return str(data / "photographs" / "chelsea.png")


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, and its cache empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_ask_prints_what_the_pipeline_answers(
    checkpoint: str, photograph: str, unreachable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an autoencoder."""
    arguments = ["ask", "What is it?", "-i", photograph, "-m", checkpoint, "--dtype", "float32"]
    assert cli.main([*arguments, "--max-new-tokens", "8"]) == 0
    answer = janus.load(checkpoint, dtype="float32").ask("What is it?", photograph, max_new_tokens=8)
    assert capsys.readouterr().out == answer.lstrip() + "\n"


def test_draw_writes_the_pipelines_pictures(checkpoint: str, vae: str, tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    common = ["draw", "a cat", "--seed", "3", "-m", checkpoint, "--vae", vae, "--dtype", "float32"]
    options = ["--steps", "3", "--method", "heun", "--guidance", "3", "-n", "2", "--size", "128"]
    options += ["-o", str(output)]
    assert cli.main([*common, *options]) == 0
    pipe = janus.load(checkpoint, dtype="float32", vae=vae)
    pictures = pipe.draw("a cat", seed=3, steps=3, method="heun", guidance=3, n=2, size=128)
    for number, picture in enumerate(pictures, start=1):
        with Image.open(output.with_stem(f"cat-{number}")) as written:
            assert written.tobytes() == picture.tobytes()
            assert written.info == {"prompt": "a cat", "seed": f"3, picture {number - 1}"}
    assert cli.main([*common, "--steps", "1", "--size", "64x96", "-o", str(output)]) == 0
    with Image.open(output) as written:
        assert written.size == (96, 64)


@pytest.mark.parametrize("size", ["", "x", "64x", "64x64x64", "-64", "64 by 64", "1e3"])
def test_sizes_that_are_none(
    size: str, checkpoint: str, vae: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["draw", "a cat", "-m", checkpoint, "--vae", vae, f"--size={size}"])
    assert f"{size!r} is no size: give a side in pixels, or HEIGHTxWIDTH" in capsys.readouterr().err


def test_reconstruct_writes_a_picture_of_the_models_size(
    checkpoint: str, vae: str, photograph: str, tmp_path: Path
) -> None:
    output = tmp_path / "again.png"
    arguments = ["reconstruct", photograph, "-o", str(output), "-m", checkpoint, "--vae", vae]
    assert cli.main([*arguments, "--dtype", "float32"]) == 0
    expected = janus.load(checkpoint, dtype="float32", vae=vae).reconstruct(photograph)
    assert expected.size == (64, 64)
    assert Image.open(output).tobytes() == expected.tobytes()


def test_info_states_the_flows_sizes(
    checkpoint: str, vae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "info.json"
    arguments = ["info", "-m", checkpoint, "--vae", vae, "--pictures", "3", "--json", str(file), "--check"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    facts = json.loads(file.read_text())
    model = janus.JanusFlow.from_pretrained(checkpoint, dtype="float32")
    autoencoder = load_vae(vae, dtype="float32")
    counts = [sum(part.numel() for part in each.parameters()) for each in (model, autoencoder)]
    assert [facts["parameters"]["total"], facts["autoencoder"]["parameters"]] == counts
    assert all(f"{count:,}" in printed for count in counts)
    assert facts["autoencoder"]["latents"] == [4, 8, 8]
    assert "draws 64 x 64 pixels from latents of 4 x 8 x 8, 16 tokens of the language model" in printed
    memory = facts["memory"]["float32"]
    assert [memory["weights"], memory["autoencoder"]] == [4 * count for count in counts]
    # Two rows for each of three pictures, 64 + 16 positions, keys and values of 3 layers of 4 heads of 16.
    assert memory["picture_caches"] == 3 * 2 * 80 * 2 * 3 * 4 * 16 * 4
    assert "every weight is a finite number" in printed


def test_info_check_reads_the_autoencoder_too(
    checkpoint: str, vae: str, unreachable: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(vae, tmp_path / "vae"))
    (file,) = damaged.glob("*.safetensors")
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"][:2] = torch.nan
    save_file(tensors, file)
    assert cli.main(["info", "-m", checkpoint, "--vae", str(damaged), "--check"]) == 1
    assert "autoencoder: decoder.conv_in.bias holds 2 numbers" in capsys.readouterr().out
    assert cli.main(["info", "-m", checkpoint, "--check"]) == 0
    assert "the autoencoder is not there, and was not checked" in capsys.readouterr().out


def test_info_knows_the_released_autoencoder_without_fetching_it(
    checkpoint: str, unreachable: None, tmp_path: Path
) -> None:
    file = tmp_path / "info.json"
    assert cli.main(["info", "-m", checkpoint, "--json", str(file)]) == 0
    told = json.loads(file.read_text())["autoencoder"]
    assert told["model"] == RELEASED
    assert told["parameters"] == 83_653_863
    assert told["config"]["channels"] == list(asdict(SDXL)["channels"])
    released = FLOW_PRESETS["JanusFlow-1.3B"]
    assert released.picture_size == 384
    assert info.drawn_tokens(released) == 576


def test_convert_writes_it_whole(checkpoint: str, vae: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    shutil.copytree(vae, source / "vae")
    plain, integers = tmp_path / "plain", tmp_path / "integers"
    assert cli.main(["convert", str(source), str(plain), "--layout", "deepseek"]) == 0
    original = janus.JanusFlow.from_pretrained(checkpoint, device="cpu").state_dict()
    returned = janus.JanusFlow.from_pretrained(plain, device="cpu").state_dict()
    assert all(torch.equal(tensor, returned[name]) for name, tensor in original.items())
    assert cli.main(["convert", str(source), str(integers), "--quantize", "int8"]) == 0
    assert inspect(integers).model.config.quantization == "int8"
    named = janus.load(checkpoint, device="cpu", dtype="float32", vae=vae).draw("a cat", seed=3, steps=2)
    (found,) = janus.load(plain, device="cpu", dtype="float32").draw("a cat", seed=3, steps=2)
    assert found.tobytes() == named[0].tobytes(), "with its own autoencoder, which went with it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "a cat", "--temperature", "1"], "temperature=1.0 is for models that draw by codes"),
        (["draw", "a cat", "--top-k", "5"], "top_k=5 is for models that draw by codes"),
        (["draw", "a cat", "--speculate", "4"], "speculate=4 is for models that draw by codes"),
        (["draw", "a cat", "--rows", "2"], "rows=2 is for models that draw by codes"),
        (["draw", "a cat", "--steps", "0"], "steps must be a whole number of at least 1, not 0"),
        (["draw", "a cat", "--method", "rk4"], "method must be one of euler, midpoint, heun, not 'rk4'"),
        (["draw", "a cat"], "the autoencoder of JanusFlow's pictures is not there: stabilityai/sdxl-vae: no"),
        # What can be told without it is told first.
        (["draw", "a cat", "--batch-size", "0"], "batch_size must be a whole number of at least 1, not 0"),
        (["draw", "a cat", "--size", "0"], "a side of size must be a whole number of at least 1, not 0"),
        (["draw", "a cat", "--vae", "./nowhere"], "is not there: ./nowhere: no such folder"),
        (["reconstruct", "{photograph}"], "(or --vae) names its folder"),
        (["info", "--vae", "./nowhere"], "./nowhere: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    checkpoint: str,
    photograph: str,
    unreachable: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.format(photograph=photograph) for argument in arguments]
    assert cli.main([*given, "-m", checkpoint]) == 2
    refused(capsys, message)
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "a cat", "--steps", "30"], "steps=30 is for a JanusFlow, and this model draws one code"),
        (["draw", "a cat", "--method", "heun"], "method='heun' is for a JanusFlow"),
        (["draw", "a cat", "--vae", "some/where"], "vae=some/where is for a JanusFlow"),
        (["reconstruct", "{photograph}", "--vae", "some/where"], "vae=some/where is for a JanusFlow"),
        (["info", "--vae", "some/where"], "vae=some/where is for a JanusFlow"),
        (["eval", "shapes", "--vae", "some/where"], "vae=some/where is for a JanusFlow"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_janus_refuses_what_is_a_flows(
    arguments: list[str],
    message: str,
    data: Path,
    photograph: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.format(photograph=photograph) for argument in arguments]
    assert cli.main([*given, "-m", str(data / "januspro" / "checkpoint")]) == 2
    refused(capsys, message)


def refused(capsys: pytest.CaptureFixture[str], message: str) -> None:
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("janus: error: ")
    assert error.count("\n") == 1


def test_transformers_layout_is_refused_before_a_weight_is_read(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loading = importlib.import_module("janus.weights.load")  # as an attribute it is the function
    monkeypatch.setattr(loading, "fill", lambda *given: pytest.fail("weights were read"))
    assert cli.main(["convert", checkpoint, str(tmp_path / "there"), "--layout", "transformers"]) == 2
    refused(capsys, "the layout transformers has no names for a JanusFlow: name the layout deepseek")
    assert not (tmp_path / "there").exists()


def test_eval_judges_a_flow(
    checkpoint: str, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of random weights gets nothing right but by chance; every task is done and counted."""
    monkeypatch.setattr("janus.evaluation.shapes.MOST_ANSWER_TOKENS", 2)
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copied"))
    (copied / "generation_config.json").write_text('{"num_inference_steps": 1}')
    file = tmp_path / "scores.json"
    arguments: list[Any] = ["eval", "shapes", "-m", copied, "--vae", vae, "--samples", 2, "--json", file]
    assert cli.main([*map(str, arguments), "--dtype", "float32"]) == 0
    written = json.loads(file.read_text())
    assert written["details"]["drawing"]["both"]["all"]["total"] == 4
    assert set(written) >= {"reconstruction", "drawing", "answers"}
