"""The command: what it selects, prints and writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import plot
import run
from cases import Case
from machine import Ceilings, current_commit, identify, measure_ceilings, slug
from rows import Row, merge, read

REPOSITORY = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def names(selected: list[run.Selected]) -> list[str]:
    return [one.case.name for one in selected if one.runs]


@pytest.fixture
def only_fake(fake: Any, hasty: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command knows no other benchmark, and does not measure the machine."""
    monkeypatch.setattr(run, "benchmarks", lambda: [fake.module])
    monkeypatch.setattr(
        run, "measure_ceilings", lambda device, dtypes: Ceilings(1e9, dict.fromkeys(dtypes, 1e9))
    )
    return fake


def test_started_by_file_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "run.py"), "--list", "--only", "swiglu"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert lines
    assert all(re.fullmatch(r"swiglu +swiglu_\w+ +eager compiled janus.*", line) for line in lines)
    assert not list(tmp_path.iterdir())


def test_the_list_names_every_benchmark_and_runs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in run.benchmarks():
        monkeypatch.setattr(module, "inputs", None)
    assert run.main(["--list", "--device", "cpu"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    files = {file.stem.removeprefix("bench_") for file in (REPOSITORY / "benchmarks").glob("bench_*.py")}
    assert listed == files >= {"attention", "codebook", "swiglu"}


def test_names_of_cases_are_unique_and_end_in_their_dtype() -> None:
    cases: list[Case] = [case for module in run.benchmarks() for case in module.CASES]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert re.fullmatch(r"[a-z]\w*_(bf16|fp16|fp32)", case.name)
        assert case.name.endswith(
            {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[case.dtype]
        )
    headlines = [case.headline for case in cases if case.headline]
    assert len(set(headlines)) == len(headlines)


def test_every_benchmark_has_cases_for_a_cpu_and_small_ones() -> None:
    for module in run.benchmarks():
        assert any(case.cpu for case in module.CASES)
        if module.__name__ not in (
            "bench_flow",
            "bench_load",
            "bench_train_step",
        ):  # nothing small about them
            assert any(case.cpu and case.quick for case in module.CASES)
        for case in module.CASES:
            cost = module.cost(case)
            assert cost.bytes > 0
            assert cost.flop > 0


def test_what_is_too_large_must_be_named_in_full(fake: Any) -> None:
    small, large, gpu_only = (case.name for case in fake.module.CASES)
    found = [fake.module]
    assert names(run.select(found, CPU)) == [small, large]
    assert names(run.select(found, GPU)) == [small, large, gpu_only]
    assert names(run.select(found, GPU, quick=True)) == [small]
    assert names(run.select(found, CPU, only=["fake"])) == [small, large]
    assert names(run.select(found, CPU, only=["double_4"], quick=True)) == []
    assert names(run.select(found, CPU, only=[large], quick=True)) == [large]
    assert names(run.select(found, CPU, only=["double_10", gpu_only])) == [small, gpu_only]


FAKES = ["eager", "einsum-wrong", "sdpa-failing", "cdist-nan", "flex-shape"]


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        (None, [*FAKES, "janus", "transformers"]),
        (["transformers"], ["janus", "transformers"]),
        (["einsum", "flex-shape"], ["einsum-wrong", "flex-shape", "janus"]),
        ([], ["janus"]),
    ],
)
def test_peers(fake: Any, peers: list[str] | None, expected: list[str]) -> None:
    (one,) = run.select([fake.module], CPU, only=["double_1024"], peers=peers)
    assert list(one.names) == expected


@pytest.mark.parametrize(
    ("device", "peers", "expected"),
    [
        (CPU, None, ["eager", "janus"]),
        (GPU, None, ["eager", "janus", "janus-compiled"]),
        (CPU, ["eager"], ["eager", "janus"]),
        (CPU, ["janus-compiled"], ["janus", "janus-compiled"]),
        (GPU, [], ["janus", "janus-compiled"]),
    ],
)
def test_one_of_ours_may_wait_to_be_asked_for_on_a_cpu(
    fake: Any, device: torch.device, peers: list[str] | None, expected: list[str]
) -> None:
    fake.module.ONLY_IF_ASKED_ON_CPU = ("janus-compiled",)
    fake.module.setup = lambda case, device: dict.fromkeys(["eager", "janus", "janus-compiled"])
    (one,) = run.select([fake.module], device, only=["double_1024"], peers=peers)
    assert list(one.names) == expected


@pytest.mark.parametrize(
    "case",
    [
        "picture_step_1b_bf16",
        "text_step_1b_bf16",
        "vq_decode_384_bf16",
        "vision_encode_1b_bf16",
        "prefill_606_1b_bf16",
    ],
)
def test_what_one_waits_for_is_measured_beside_transformers(case: str) -> None:
    (one,) = run.select(run.benchmarks(), CPU, only=[case], peers=["transformers"], quick=True)
    assert one.case.name == case
    assert {"janus", "transformers"} <= set(one.names)
    assert "janus-compiled" not in one.names


@pytest.mark.usefixtures("only_fake")
@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--only", "double,nonsense"], "'nonsense'"),
        (["--peers", "nonsense"], "'nonsense'"),
        (["--only", "double_4", "--quick"], "--quick"),
        (["--only", "double_8", "--device", "cpu"], "too large"),
        (["--device", "cpu", "--peers", "eager,cuvs"], "cuvs of --peers is not installed"),
        (["--device", "cpu", "--peers", "sdpa-math"], "sdpa-math of --peers is not installed"),
        (["--threads", "0"], "--threads must be a whole number of at least 1, not 0"),
        (["--threads", "-1", "--list"], "--threads must be a whole number of at least 1, not -1"),
        (["--device", "cpu", "--json", "."], "--json"),
        (["--device", "cpu", "--results", __file__], "--results"),
        (["--device", "cpu", "--cache", __file__], "--cache"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], value: str
) -> None:
    assert run.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert value in printed.err


@pytest.mark.usefixtures("only_fake")
def test_without_a_gpu_what_one_would_run_is_listed_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--device", "cuda", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert run.main(["--device", "cuda"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "--device cpu" in printed.err


@pytest.mark.usefixtures("only_fake")
def test_the_list_marks_what_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--device", "cpu", "--quick"]) == 0
    marked = {line.split()[1]: "named in full" in line for line in capsys.readouterr().out.splitlines()}
    assert marked == {"double_1024_fp32": False, "double_4096_fp32": True, "double_8192_bf16": True}


def test_odd_columns_are_found_before_the_work(
    only_fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{identify(CPU).name}.csv").write_text("machine,median\ncray-1,2\n")
    assert run.main(["--quick", "--device", "cpu", "--results", str(tmp_path)]) == 2
    assert "other columns" in capsys.readouterr().err
    assert only_fake.counts == {}


@pytest.mark.usefixtures("only_fake")
def test_a_peer_that_was_asked_for_and_never_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--device", "cpu", "--peers", "eager,sdpa"]) == 2
    printed = capsys.readouterr()
    assert "sdpa-failing did not run: RuntimeError: no kernel" in printed.out
    assert printed.err == "run.py: sdpa of --peers never ran: the notes above say why\n"


def test_a_model_is_forgotten_with_the_last_case_of_its_benchmark(
    only_fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def measure(benchmark: Any, case: Case, names: Any, session: Any) -> tuple[list[Row], list[str]]:
        log.append(case.name)
        return [], []

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run.models, "forget", lambda: log.append("forget"))
    assert run.main(["--device", "cpu", "--results", str(tmp_path)]) == 1  # nothing was measured
    assert log == ["double_1024_fp32", "double_4096_fp32", "forget"]


def test_rows_pictures_and_status(only_fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--quick", "--device", "cpu", "--peers", "eager", "--json", str(file)]
    assert run.main([*arguments, "--results", str(tmp_path / "results"), "--commit", "abc"]) == 0
    rows = json.loads(file.read_text())
    assert [row["implementation"] for row in rows] == ["eager", "janus"]
    for row in rows:
        assert set(row) == {field.name for field in fields(Row)}
        assert {"benchmark", "case", "implementation", "unit", "median"} <= set(row)
        assert (row["unit"], row["quick"], row["commit"], row["torch"]) == (
            "ms",
            True,
            "abc",
            torch.__version__,
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["date"])
        assert row["machine"] == slug(row["machine"])
    (kept,) = (tmp_path / "results").glob("*.csv")
    assert kept.stem == rows[0]["machine"]
    assert {Row(**row) for row in rows} == set(read(kept))
    pictures = {picture.name for picture in (tmp_path / "results" / kept.stem).iterdir()}
    assert pictures == {"fake-bars.png", "fake-roofline.png"}
    printed = capsys.readouterr().out
    assert re.search(r"^double_1024_fp32 +janus ", printed, re.MULTILINE)


@pytest.mark.usefixtures("only_fake")
def test_a_quick_run_keeps_nothing_unless_told_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.rows, "RESULTS", tmp_path)
    assert run.main(["--quick", "--device", "cpu", "--peers", "eager"]) == 0
    assert not list(tmp_path.iterdir())
    assert run.main(["--only", "double_1024", "--device", "cpu", "--peers", "eager"]) == 0
    assert len(list(tmp_path.glob("*.csv"))) == 1


def test_others_may_fail_but_ours_must_be_right(only_fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--device", "cpu"]) == 0
    assert "einsum-wrong is wrong" in capsys.readouterr().out
    setup = only_fake.module.setup
    only_fake.module.setup = lambda case, device: {
        **setup(case, device),
        "janus": lambda x: lambda: 3 * x,
    }
    assert run.main(["--quick", "--device", "cpu"]) == 1
    assert "janus is wrong" in capsys.readouterr().out


def test_threads_are_set(only_fake: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    file = tmp_path / "rows.json"
    try:
        arguments = ["--quick", "--device", "cpu", "--peers", "eager", "--threads", "1", "--json", str(file)]
        assert run.main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    assert {row["threads"] for row in json.loads(file.read_text())} == {1}


def test_pictures_of_many_implementations(tmp_path: Path, made: Callable[..., Row]) -> None:
    everything = [
        made(case=f"case_{case}_bf16", implementation=name, arithmetic=arithmetic, rate=rate)
        for case in range(5)
        for name in ("janus", "janus-triton", "janus-torch", *(f"peer-{number}" for number in range(9)))
        for arithmetic, rate in [("bf16", 1e12)]
    ]
    merge(tmp_path, everything)
    files = plot.draw(tmp_path, "cray-1", ["fake", "absent"])
    assert [Path(file).name for file in files] == ["fake-bars.png", "fake-roofline.png"]
    for file in files:
        assert Path(file).read_bytes().startswith(b"\x89PNG")


def test_a_roofline_has_the_roofs_of_all_runs_and_no_picture_of_loading(
    tmp_path: Path, made: Callable[..., Row]
) -> None:
    from matplotlib.figure import Figure

    rows = [
        made(bandwidth=1e9, date="2026-01-01", case="a_bf16"),
        made(bandwidth=2e9, date="2026-01-02", case="b_bf16"),
        made(bandwidth=2e9, date="2026-01-02", case="c_bf16"),
    ]
    figure = Figure()
    plot._roofline(figure, rows)
    (panel,) = figure.axes
    assert {line.get_label() for line in panel.lines} == {
        "1 GB/s, 0.01 TFLOP/s fp32",
        "2 GB/s, 0.01 TFLOP/s fp32",
    }
    merge(tmp_path, [made(benchmark="load", flop=1)])
    assert [Path(file).name for file in plot.draw(tmp_path, "cray-1", ["load"])] == ["load-bars.png"]


def test_without_matplotlib_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    (note,) = plot.draw(tmp_path, "cray-1", ["fake"])
    assert "matplotlib is not installed" in note


def test_the_machine_has_a_short_name_and_ceilings() -> None:
    machine = identify(CPU)
    assert re.fullmatch(r"[a-z0-9-]+-\d+-threads?", machine.name)
    assert len(machine.name) <= 60
    assert machine.cache > 0
    assert machine.commit == current_commit()
    assert re.fullmatch(r"[0-9a-f]{10}(-dirty)?|unknown", machine.commit)
    ceilings = measure_ceilings(CPU, [torch.float32, torch.bfloat16], small=True)
    assert ceilings.bandwidth > 0
    assert set(ceilings.rates) == {torch.float32, torch.bfloat16}
    assert ceilings.upload is None
    assert ceilings.busy > 0
    assert slug("NVIDIA H200 (SXM)") == "nvidia-h200-sxm"
