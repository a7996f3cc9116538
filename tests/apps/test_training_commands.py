"""The commands of training as a user meets them: what they print, what they write, and how they fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import janus
from janus.apps import cli
from janus.training import commands
from janus.training.data.example import picture_target
from janus.training.data.pretokenize import fingerprint
from janus.training.data.sources import JsonLines
from janus.training.log import read_log

REPOSITORY = Path(__file__).resolve().parents[2]

RECIPE = """
task = "sft"
train = ["language", "image_head"]
steps = 3
batch = 2
precision = "float32"
[model]
checkpoint = "{checkpoint}"
[data]
sequence_length = 120
workers = 0
sources = [{{ task = "drawing", path = "{data}" }}]
[optimizer]
lr = 1e-3
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
"""


@pytest.fixture
def checkpoint(data: Path) -> str:
    return str(data / "januspro" / "checkpoint")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Five drawings of one color each."""
    for number in range(5):
        Image.new("RGB", (70, 64), (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    rows = [{"prompt": f"color {number}", "image": f"{number}.png"} for number in range(5)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def recipe(rows: Path, checkpoint: str) -> Path:
    file = rows.with_name("mine.toml")
    file.write_text(RECIPE.format(checkpoint=checkpoint, data=rows))
    return file


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go into the folder where a command is given."""
    monkeypatch.chdir(tmp_path)


def train(*arguments: object) -> int:
    return cli.main(["train", *map(str, arguments), "--device", "cpu"])


def test_train_writes_a_run_that_loads_and_goes_on(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe, "steps=2") == 0
    run = Path("runs", "mine")
    shown = capsys.readouterr()
    assert shown.out == f"{run}\n"
    assert [line[:8] for line in shown.err.splitlines()] == ["step 1/2", "step 2/2"]
    assert janus.load(run, device="cpu").draw("color 1", seed=0)[0].size == (64, 64)
    assert train(recipe) == 0
    assert [record["step"] for record in read_log(run / "log.jsonl")] == [1, 2, 3]


def test_out_names_the_folder(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, "steps=1", "--out", tmp_path / "here") == 0
    assert (tmp_path / "here" / "model.safetensors").exists()


def test_a_dry_run_tells_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert train(recipe, "--dry-run") == 0
    assert "forward and backward of the longest batch (drawing rows)" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no recipe is called nothing"),
        (["mine.toml", "optimizer.lrr=1"], "override optimizer.lrr=1: optimizer.lrr: is unknown"),
        (["mine.toml", "steps=none"], "steps"),
        (["mine.toml", "data.sources.0.path=gone.jsonl"], "gone.jsonl does not exist"),
        (["mine.toml", "batch=3", "accumulate=2"], "batch: 3 is not a multiple of accumulate = 2"),
        (
            ["mine.toml", "log.samples_every=1", 'log.pictures=[{picture = "gone.png"}]'],
            "log.pictures: gone.png is not a file",
        ),
        (
            ["mine.toml", "lora.rank=4"],
            "learns as a whole, and by the adapters of lora: take it out of one of them",
        ),
        (
            ["mine.toml", "log.samples_every=1", 'log.pictures=[{picture = "rows.jsonl"}]'],
            "log.pictures: rows.jsonl is not a picture",
        ),
        (["mine.toml", "--out", "rows.jsonl"], "rows.jsonl is a file: give a folder with --out"),
        (["mine.toml", "--out", "rows.jsonl/run"], "rows.jsonl/run cannot be made"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("janus: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_gradients_that_are_no_numbers_are_told_in_one_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("janus.training.run.clip", lambda parameters, limit: torch.tensor(torch.inf))
    assert train(recipe) == 2
    assert "gradients of step 0 are not finite" in capsys.readouterr().err


def test_torchrun_trains_with_two_processes_of_which_one_speaks(recipe: Path, tmp_path: Path) -> None:
    """And a mistake ends both."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*start, "-m", "janus", "train", *map(str, arguments), "--device", "cpu"],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=300,
        )

    done = run(recipe, "steps=1", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two'}\n"
    assert done.stderr.count("step 1/1") == 1
    assert json.loads(next((tmp_path / "two").glob("checkpoints/*/state.json")).read_text())["ranks"] == 2
    refused = run(recipe, "batch=3", "--out", tmp_path / "never")
    assert refused.returncode != 0
    assert "batch 3 cannot be shared out to 2 processes" in refused.stderr


def test_plot_draws_runs(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        assert train(recipe, "steps=2", "--out", name) == 0
    capsys.readouterr()
    assert cli.main(["plot", "one", "two", "-o", "both.png"]) == 0
    assert capsys.readouterr().out == "both.png\n"
    assert Image.open(tmp_path / "both.png").width > 500
    assert cli.main(["plot", "never"]) == 2
    assert "never" in capsys.readouterr().err


def test_data_check_lists_what_is_wrong(
    rows: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check", str(rows), "-m", checkpoint]) == 0
    assert "5 rows (5 drawing)" in capsys.readouterr().out
    with rows.open("a") as file:
        file.write('{"prompt": "x", "image": "gone.png"}\n')
    assert cli.main(["data", "check", str(rows), "-m", checkpoint, "--limit", "10"]) == 1
    shown = capsys.readouterr().out
    assert f"{rows}:6" in shown
    assert "6 rows over the limit" in shown
    assert cli.main(["data", "check", str(rows), "-m", checkpoint, "--skip-bad"]) == 0
    assert json.loads(rows.with_name("rejects.jsonl").read_text())["line"] == 6
    assert cli.main(["data", "check", str(rows)]) == 2
    assert "name the model that the data are for: a hub id or a folder with -m" in capsys.readouterr().err


def test_pretokenize_writes_codes_that_training_reads(
    rows: Path, recipe: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretokenize", str(rows), "-o", "codes", "-m", checkpoint, "--shard-rows", "2"]) == 0
    assert capsys.readouterr().out == "codes\n"
    manifest = json.loads(Path("codes", "manifest.json").read_text())
    vq = janus.Janus.from_pretrained(checkpoint, device="cpu", dtype="float32").vq
    assert manifest["fingerprint"] == fingerprint(vq)
    assert manifest["rows"] == 5
    assert train(recipe, "--out", "pictures") == 0
    assert train(recipe, "data.sources.0.path=codes", "--out", "coded") == 0
    lines, codes = (
        JsonLines(Path("codes", "00000.jsonl")),
        load_file(Path("codes", "00000.safetensors"))["codes"],
    )
    processor = janus.Processor.from_pretrained(checkpoint)
    for number in range(2):
        picture = picture_target(rows.parent / f"{number}.png", processor, 64)
        assert lines.raw(number)["prompt"] == f"color {number}"
        assert torch.equal(codes[number], vq.encode(picture[None]).flatten().int())
    # A source of another name comes in another order; what is learned is of the same five pictures.
    coded, pictures = (read_log(Path(run, "log.jsonl"))[0]["loss"] for run in ("coded", "pictures"))
    assert coded == pytest.approx(pictures, rel=0.1)


def test_processes_that_tokenize_take_their_shares(
    rows: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = commands.pretokenize(str(rows), Path("codes"), model=checkpoint, device="cpu", shard_rows=2)
        assert done == 0
        shards = sorted(file.name for file in Path("codes").glob("*.safetensors"))
        assert shards == [f"{number:05}.safetensors" for number in ((0, 2) if rank == "0" else (0, 1, 2))]


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom janus.apps.cli import build_parser\nbuild_parser().format_help()\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.stdout == "False\n"
