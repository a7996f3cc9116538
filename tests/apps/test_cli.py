"""The command line as a user meets it: what it prints, what it writes, and how it fails."""

import base64
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import janus
from janus.apps import cli, info, use_commands
from janus.files import unfinished
from janus.inference import draw
from janus.weights.load import inspect, load

load_module = importlib.import_module("janus.weights.load")  # the package has a function of that name

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(data: Path) -> str:
    return str(data / "januspro" / "checkpoint")


@pytest.fixture
def photograph(data: Path) -> str:
    return str(data / "photographs" / "chelsea.png")


def test_ask_prints_what_the_pipeline_answers(
    checkpoint: str, photograph: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ask", "What is it?", "-i", photograph, "-m", checkpoint, "--dtype", "float32"]
    assert cli.main([*arguments, "--max-new-tokens", "8"]) == 0
    answer = janus.load(checkpoint, dtype="float32").ask("What is it?", photograph, max_new_tokens=8)
    assert capsys.readouterr().out == answer.lstrip() + "\n"
    shorter = ["ask", photograph, "What is it?", *arguments[4:], "--max-new-tokens", "8"]
    assert cli.main(shorter) == 0
    assert capsys.readouterr().out == answer.lstrip() + "\n"


def test_chat_answers_each_line_in_turn(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAnd now?\n\nnever read\n"))
    assert cli.main(["chat", "-m", checkpoint, "--dtype", "float32", "--max-new-tokens", "5"]) == 0
    pipe = janus.load(checkpoint, dtype="float32")
    messages = [{"role": "user", "content": "Hi"}]
    first = pipe.chat(messages, max_new_tokens=5)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    second = pipe.chat(messages, max_new_tokens=5)
    assert capsys.readouterr().out == f"{first.lstrip()}\n{second.lstrip()}\n"


def test_draw_writes_the_pipelines_pictures_with_their_prompt_and_seed(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "cat.png"
    arguments = ["draw", "a cat", "a dog", "-n", "2", "--seed", "3", "-o", str(output), "-m", checkpoint]
    assert cli.main([*arguments, "--dtype", "float32"]) == 0
    pictures = janus.load(checkpoint, dtype="float32").draw(["a cat", "a dog"], n=2, seed=3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for number, picture in enumerate(pictures, start=1):
        with Image.open(output.with_stem(f"cat-{number}")) as written:
            assert written.tobytes() == picture.tobytes()
            assert written.info["prompt"] == ("a cat", "a dog")[(number - 1) // 2]
            assert written.info["seed"].startswith("3,")


def test_the_package_itself_is_the_command() -> None:
    """`python -m janus`, which is how torchrun starts it."""
    run = subprocess.run(
        [sys.executable, "-m", "janus", "draw", "--help"], capture_output=True, cwd=REPOSITORY
    )
    assert run.returncode == 0
    assert b"--tensor-parallel" in run.stdout


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_of_parallel_processes_writes_and_prints(
    rank: str,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, asked = janus.load(checkpoint, dtype="float32"), []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(janus, "load", lambda *_, **options: asked.append(options) or pipe)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)  # there is none here
    output = tmp_path / "cat.png"
    assert cli.main(["draw", "a cat", "-o", str(output), "--tensor-parallel"]) == 0
    assert cli.main(["ask", "Hi", "--max-new-tokens", "3", "--tensor-parallel"]) == 0
    assert [options["tensor_parallel"] for options in asked] == [True, True]
    assert output.exists() == (rank == "0")
    assert bool(capsys.readouterr().out) == (rank == "0")


def test_draw_speculates(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[int] = []
    steps = draw.speculative_steps

    def noted(*given: Any, window: int, **options: Any) -> Any:
        windows.append(window)
        return steps(*given, window=window, **options)

    monkeypatch.setattr(draw, "speculative_steps", noted)
    common = ["draw", "a cat", "--seed", "3", "-m", checkpoint, "--dtype", "float32", "-o"]
    assert cli.main([*common, str(tmp_path / "one.png")]) == 0
    assert windows == []
    assert cli.main([*common, str(tmp_path / "other.png"), "--speculate", "4"]) == 0
    assert windows == [4]
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "other.png") as other:
        assert one.tobytes() == other.tobytes()


def test_draw_without_a_seed_names_the_one_it_took(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.png"
    common = ["draw", "a cat", "-m", checkpoint, "--dtype", "float32"]
    assert cli.main([*common, "-o", str(output)]) == 0
    seed = capsys.readouterr().out.split("seed ")[1].split(",")[0]
    assert cli.main([*common, "-o", str(tmp_path / "b.png"), "--seed", seed]) == 0
    assert Image.open(output).tobytes() == Image.open(tmp_path / "b.png").tobytes()


def test_every_file_is_checked_before_any_picture_is_drawn(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-2.png").mkdir()
    monkeypatch.setattr(janus, "load", lambda *given, **options: pytest.fail("a model was loaded"))
    assert cli.main(["draw", "a cat", "a dog", "-m", checkpoint, "-o", str(tmp_path / "a.png")]) == 2
    assert "a-2.png must be a file that ends in .png: name another with -o" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"janus {janus.__version__}\n"


def test_a_picture_may_be_in_the_command(checkpoint: str, photograph: str, tmp_path: Path) -> None:
    """As a data: URI, of which a path would lose a slash."""
    small = tmp_path / "small.png"
    Image.open(photograph).convert("RGB").resize((64, 64)).save(small)
    uri = f"data:image/png;base64,{base64.b64encode(small.read_bytes()).decode()}"
    assert "//" in uri
    for number, source in enumerate((str(small), uri)):
        output = str(tmp_path / f"{number}.png")
        assert cli.main(["reconstruct", source, "-o", output, "-m", checkpoint, "--dtype", "float32"]) == 0
    assert Image.open(tmp_path / "0.png").tobytes() == Image.open(tmp_path / "1.png").tobytes()


def test_reconstruct_writes_a_picture_of_the_models_size(
    checkpoint: str, photograph: str, tmp_path: Path
) -> None:
    output = tmp_path / "again.png"
    arguments = ["reconstruct", photograph, "-o", str(output), "-m", checkpoint, "--dtype", "float32"]
    assert cli.main(arguments) == 0
    expected = janus.load(checkpoint, dtype="float32").reconstruct(photograph)
    assert expected.size == (64, 64)
    assert Image.open(output).tobytes() == expected.tobytes()


def test_info_counts_what_the_model_holds(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "info.json"
    assert cli.main(["info", "-m", checkpoint, "--pictures", "3", "--json", str(file)]) == 0
    facts = json.loads(file.read_text())
    model = janus.Janus.from_pretrained(checkpoint, dtype="float32")
    assert facts["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["parameters"]["vq"] == sum(parameter.numel() for parameter in model.vq.parameters())
    assert facts["memory"]["float32"]["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    # Two rows for each of three pictures, 64 + 64 positions, keys and values of 3 layers of 4 heads of 16
    # numbers.
    assert facts["memory"]["bfloat16"]["picture_caches"] == 3 * 2 * 128 * 2 * 3 * 4 * 16 * 2
    assert f"{facts['parameters']['total']:,}" in capsys.readouterr().out


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_info_check_names_weights_that_are_no_numbers(
    value: float, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", "-m", checkpoint, "--check"]) == 0
    assert "every weight is a finite number" in capsys.readouterr().out
    model = janus.Janus.from_pretrained(checkpoint, dtype="float32")
    with torch.no_grad():
        model.language.layers[1].mlp.gate_up.weight[-1, :2] = value
    model.save_pretrained(tmp_path / "damaged")
    assert cli.main(["info", "-m", str(tmp_path / "damaged"), "--check"]) == 1
    assert "language_model.model.layers.1.mlp.up_proj.weight holds 2 numbers" in capsys.readouterr().out
    assert info.not_finite(tmp_path / "damaged") == {"language_model.model.layers.1.mlp.up_proj.weight": 2}


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_convert_there_and_back(
    dtype: str | None, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    options = ["--dtype", dtype] if dtype else []
    assert cli.main(["convert", checkpoint, there, "--layout", "transformers", *options]) == 0
    assert "janus: warning: transformers' own Janus cannot load this model" in capsys.readouterr().err
    assert cli.main(["convert", there, back, "--layout", "deepseek", "--max-shard-size", "1MB"]) == 0
    original = janus.Janus.from_pretrained(checkpoint, dtype=dtype or "bfloat16").state_dict()
    returned = janus.Janus.from_pretrained(back, dtype=dtype or "bfloat16").state_dict()
    assert all(torch.equal(tensor, returned[name]) for name, tensor in original.items())
    # Without --dtype the stored precision stays, whatever this machine computes best.
    stored = inspect(back).dtype
    assert stored == (torch.float32 if dtype else torch.bfloat16)


def test_convert_changes_no_number_where_dtypes_are_mixed(checkpoint: str, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(checkpoint, tmp_path / "mixed"))
    tensors = load_file(mixed / "model.safetensors")
    for name in tensors:
        if name.startswith("gen_vision_model."):
            tensors[name] = tensors[name].float() * (1 + 2**-12)  # as 16 bits do not have it
    save_file(tensors, mixed / "model.safetensors")
    assert cli.main(["convert", str(mixed), str(tmp_path / "there"), "--layout", "deepseek"]) == 0
    written = load_file(tmp_path / "there" / "model.safetensors")
    assert all(
        torch.equal(written[name], tensor.float()) for name, tensor in tensors.items() if name in written
    )


def test_what_float16_does_not_hold_is_not_written(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = Path(shutil.copytree(checkpoint, tmp_path / "large"))
    tensors = load_file(large / "model.safetensors")
    tensors["aligner.layers.0.bias"][3] = 1e5
    save_file(tensors, large / "model.safetensors")
    there = tmp_path / "there"
    assert cli.main(["convert", str(large), str(there), "--layout", "deepseek", "--dtype", "float16"]) == 2
    assert (
        "aligner.layers.0.bias holds numbers that float16 does not: name bfloat16" in capsys.readouterr().err
    )
    assert list(there.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layout", "deepseek", "--max-shard-size", "banana"], "max_shard_size 'banana' is not a size"),
        (["--layout", "transformers"], "this model is quantized to int8, which transformers cannot read"),
    ],
)
def test_convert_refuses_before_any_weight_is_read(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: str
) -> None:
    quantized, there = tmp_path / "quantized", tmp_path / "there"
    load(checkpoint, device="cpu", quantize="int8").save_pretrained(quantized)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "fill", lambda *given: pytest.fail("weights were read"))
        assert cli.main(["convert", str(quantized), str(there), *options]) == 2
    assert message in capsys.readouterr().err
    assert not there.exists()


def test_convert_goes_on_where_one_was_killed(checkpoint: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    unfinished(there / "model.safetensors").write_bytes(b"half of it")
    assert cli.main(["convert", checkpoint, str(there), "--layout", "deepseek"]) == 0
    assert not [file for file in there.iterdir() if file.name.startswith(".")]


def test_help_is_printed_whatever_the_output_can_spell() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-m", "janus", "--help"], capture_output=True, env=environment)
    assert run.returncode == 0, run.stderr


def test_convert_writes_into_new_or_empty_folders_only(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert cli.main(["convert", checkpoint, str(tmp_path), "--layout", "deepseek"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "Hi", "-m", "./nowhere"], "nowhere"),
        (["ask", "Hi", "-i", "absent.png", "-m", "{checkpoint}"], "absent.png is not a file"),
        (
            ["ask", "Hi", "-m", "{checkpoint}", "--temperature", "-1"],
            "temperature must be 0 (greedy) or more",
        ),
        (
            ["ask", "a.png", "-i", "What is it?" * 99, "-m", "{checkpoint}"],
            "What is it?What is it… is not a file: give",
        ),
        (["ask", "{photograph}", "-m", "{checkpoint}"], "is a picture, and nothing is asked: put a question"),
        (["ask", "What is it?", "{photograph}", "-m", "{checkpoint}"], "comes after the question: put pict"),
        (["ask", "Hi", "-i", "", "-m", "{checkpoint}"], "'' is not a file: give the path of a picture"),
        (["ask", "Hi", "-m", "{checkpoint}", "--revision", "v1"], "revision 'v1' is of models on the hub"),
        (
            ["draw", "a", "-m", "{checkpoint}", "-o", "/dev/null/a.png"],
            "(there is a file where a folder should be): name another with -o",
        ),
        (
            ["draw", "a", "-m", "{checkpoint}", "-o", "a" * 300 + ".png"],
            "(File name too long): name another with",
        ),
        (
            ["info", "-m", "{checkpoint}", "--json", "/dev/null/a.json"],
            "(there is a file where a folder should be): name another with --js",
        ),
        (
            ["doctor", "--json", "/dev/null/a.json"],
            "/dev/null/a.json cannot be written (there is a file where a folder should be): name",
        ),
        (
            ["convert", "{checkpoint}", "/dev/null/a", "--layout", "deepseek"],
            "/dev/null/a cannot be made (there is a file where a folder should be): name another destination",
        ),
        (["ask", "Hi", "-m", "{checkpoint}", "--dtype", "int7"], "dtype 'int7' is not supported"),
        (["ask", "Hi", "-m", "{checkpoint}", "--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["ask", "Hi", "-m", "{checkpoint}", "--max-new-tokens", "5000"], "over the context window of 1024"),
        (["draw", "a cat", "-m", "{checkpoint}", "-n", "0"], "n must be a whole number of at least 1"),
        (
            ["draw", "a cat", "-m", "{checkpoint}", "-o", "cat.jpg"],
            "cat.jpg must be a file that ends in .png",
        ),
        (
            ["draw", "a cat", "-m", "{checkpoint}", "--speculate", "-4"],
            "speculate (codes read at once, all but one of them guessed; 0 for none) must be a whole number",
        ),
        (["draw", "a cat", "-m", "{checkpoint}", "--rows", "2"], "prefix and rows go together"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    checkpoint: str,
    photograph: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(checkpoint=checkpoint, photograph=photograph) for argument in arguments]
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("janus: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("train sft --out runs/a steps=1 --dry-run batch=2", {"changes": ["steps=1", "batch=2"]}),
        ("train --dry-run sft", {"recipe": "sft", "changes": []}),
        ("ask cat.png -m small What?", {"picture": ["cat.png"], "question": "What?", "model": "small"}),
        ("draw circle -n 2 square", {"prompt": ["circle", "square"], "n": 2}),
    ],
)
def test_options_may_stand_between_arguments(line: str, wanted: dict[str, object]) -> None:
    options = vars(cli.build_parser().parse_args(line.split()))
    assert {name: options[name] for name in wanted} == wanted


def test_help_and_doctor_need_no_torch() -> None:
    """Where torch is broken, the command that says so must start."""
    blocked = (
        "import sys; sys.modules['torch'] = None\n"
        "from janus.apps.cli import main\n"
        "status = main(['doctor'])\n"
        "sys.exit(0 if status == 1 else 5)"
    )
    run = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.returncode == 0, run.stderr
    assert "cannot be imported" in run.stdout


def test_no_bar_where_output_is_not_a_terminal(
    checkpoint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["draw", "a cat", "-m", checkpoint, "-o", str(tmp_path / "cat.png")]) == 0
    assert capfd.readouterr().err == ""


def test_a_reader_that_has_seen_enough_is_no_error(checkpoint: str) -> None:
    command = [sys.executable, "-m", "janus.apps.cli", "info", "-m", checkpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as run:
        assert run.stdout is not None
        run.stdout.close()
        _, errors = run.communicate()
    assert run.returncode == 0
    assert errors == b""


@pytest.mark.parametrize("place", ["folder.png", "file/cat.png"])
def test_where_nothing_can_be_written_nothing_is_drawn(
    place: str,
    checkpoint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(use_commands, "load_pipeline", lambda *given: pytest.fail("the model was loaded"))
    assert cli.main(["draw", "a cat", "-m", checkpoint, "-o", str(tmp_path / place)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_answers_survive_an_output_without_their_letters(checkpoint: str) -> None:
    command = [
        sys.executable,
        "-m",
        "janus.apps.cli",
        "ask",
        "Hi",
        "-m",
        checkpoint,
        "--max-new-tokens",
        "24",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    run = subprocess.run(command, capture_output=True, cwd=REPOSITORY, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()


# --- quantized ---


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantize_loads_quantized(
    quantization: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", checkpoint, "--quantize", quantization]
    assert cli.main(["ask", "Hi", "--max-new-tokens", "5", *options]) == 0
    pipe = janus.load(checkpoint, quantize=quantization)
    assert capsys.readouterr().out == pipe.ask("Hi", max_new_tokens=5).lstrip() + "\n"
    output = tmp_path / "cat.png"
    assert cli.main(["draw", "a cat", "--seed", "3", "-o", str(output), *options]) == 0
    with Image.open(output) as picture:
        assert picture.tobytes() == pipe.draw("a cat", seed=3)[0].tobytes()


def test_convert_quantizes_and_info_tells(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(tmp_path / "there")
    assert cli.main(["convert", "--quantize", "int4", checkpoint, there]) == 0
    assert capsys.readouterr().out == f"{there}\n"
    assert inspect(there).model.config.quantization == "int4"
    report = tmp_path / "report.json"
    assert cli.main(["info", "-m", there, "--check", "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    assert f"{there} (deepseek layout, bfloat16, quantized to int4)" in printed
    assert "every weight is a finite number" in printed
    model = load(there, device="cpu")
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    told = json.loads(report.read_text())
    assert told["memory"]["bfloat16"]["weights"] == held
    assert told["parameters"] == info.parameters_by_part(inspect(checkpoint).model.config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name what to convert to: --layout deepseek or transformers, or --quantize int8 or int4"),
        (["--layout", "transformers", "--quantize", "int8"], "transformers cannot read weights that are"),
    ],
)
def test_convert_to_what(
    options: list[str], message: str, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", checkpoint, str(tmp_path / "there"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "there").exists()
