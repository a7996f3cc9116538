"""README's table comes from the files of results, and says so when it is old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import table
from rows import Row, merge

REPOSITORY = Path(__file__).resolve().parents[2]
README = "# A title\n\n<!-- performance -->\nold\n<!-- /performance -->\n\nThe end.\n"
CASE = "nearest_code_16_fp32"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    file = tmp_path / "README.md"
    file.write_text(README)
    return file


@pytest.fixture
def results(tmp_path: Path, made: Callable[..., Row]) -> Path:
    folder = tmp_path / "results"
    merge(
        folder,
        [
            made(case=CASE, median=0.04, floor=0.02, floor_fraction=0.5),
            made(case=CASE, implementation="cdist", median=0.9),
            made(case=CASE, implementation="einsum-compiled", median=0.3),
            made(case=CASE, implementation="janus-torch", median=0.01),
            made(case=CASE, implementation="cdist", median=0.001, date="2020-01-01", commit="old"),
            made(case="lookup_1_bf16"),  # no headline
            made(case="forgotten_1_bf16"),  # measured once, and no longer a case
        ],
    )
    return folder


def run(readme: Path, results: Path, *more: str) -> int:
    return table.main(["--readme", str(readme), "--results", str(results), *more])


def test_the_table_of_the_repository_is_current() -> None:
    assert table.main(["--check"]) == 0


def test_it_is_written_between_the_marks_once(readme: Path, results: Path) -> None:
    assert run(readme, results) == 0
    text = readme.read_text()
    assert text.startswith("# A title\n\n<!-- performance -->\n")
    assert text.endswith("\n<!-- /performance -->\n\nThe end.\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert (
        rows[2] == "| nearest code, 16 pictures | 0.0400 | 0.0200 | 2.0× | 0.300 (einsum-compiled) | 7.50× |"
    )
    assert "**Cray-1**: torch 2.13.0, triton 3.7.1, 2026-11-22, commit abc" in text
    assert run(readme, results) == 0
    assert readme.read_text() == text


def test_dates_and_versions_are_of_all_rows_that_are_shown(
    readme: Path, tmp_path: Path, made: Callable[..., Row]
) -> None:
    merge(
        tmp_path,
        [
            made(case=CASE, date="2026-11-22", torch="2.13.0", commit="b"),
            made(case=CASE, date="2026-11-22", torch="2.13.0", commit="b", implementation="cdist"),
            made(case="text_step_1b_bf16", date="2026-11-29", torch="2.14.0", commit="a"),
            made(case=CASE, date="2026-12-01", quick=True, commit="c", median=0.1),
            made(case="lookup_1_bf16", date="2026-12-24", torch="3.0", commit="d"),  # no headline
        ],
    )
    assert run(readme, tmp_path) == 0
    heading = "**Cray-1**: torch 2.13.0, 2.14.0, triton 3.7.1, 2026-11-22 to 2026-11-29, commit a, b\n"
    assert heading in readme.read_text()
    assert "| nearest code, 16 pictures | 2.00 |" in readme.read_text()


def test_check_tells_an_old_table(
    readme: Path, results: Path, made: Callable[..., Row], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(readme, results, "--check") == 1
    assert readme.read_text() == README
    assert "python benchmarks/table.py" in capsys.readouterr().err
    run(readme, results)
    assert run(readme, results, "--check") == 0
    merge(results, [made(case=CASE, median=0.03, date="2027-01-01")])
    assert run(readme, results, "--check") == 1


def test_without_marks_it_says_which(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bare.md"
    for text in ("# A title\n", "<!-- performance -->\n", "<!-- /performance -->\n<!-- performance -->\n"):
        file.write_text(text)
        assert run(file, results) == 2
        assert file.read_text() == text
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert "<!-- performance --> and <!-- /performance -->" in message


def test_damaged_results_are_one_line(
    readme: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = results.glob("*.csv")
    file.write_bytes(file.read_bytes()[:-200])
    assert run(readme, results) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"table.py: {file}, line ")
    assert message.count("\n") == 1
    assert readme.read_text() == README


def test_before_anything_is_measured(readme: Path, tmp_path: Path) -> None:
    assert run(readme, tmp_path / "none") == 0
    assert "Nothing has been measured yet" in readme.read_text()


def test_a_case_without_a_peer(made: Callable[..., Row]) -> None:
    assert table.line("alone", [made(median=250.0, floor_fraction=0.002)]) == (
        "| alone | 250 | 0.500 | 500.0× | – | – |"
    )
    assert table.line("not ours", [made(implementation="cdist")]) is None


def test_a_peer_by_another_clock_is_marked(made: Callable[..., Row]) -> None:
    group = [made(clock="graph"), made(implementation="cuvs", median=3.0, clock="events")]
    assert table.line("marked", group) == "| marked | 2.00 | 0.500 | 4.0× | 3.00 (cuvs, events) | 1.50× |"


def test_whole_models_come_first_and_fewer_bits_have_lines_of_their_own(
    readme: Path, tmp_path: Path, made: Callable[..., Row]
) -> None:
    step = "text_step_1b_bf16"
    merge(
        tmp_path,
        [
            made(case=CASE),
            made(case=step, median=6.0),
            made(case=step, implementation="janus-int4", median=2.0, floor=0.2, floor_fraction=0.1),
            made(case=step, implementation="janus-compiled", median=1.0),
            made(case=step, implementation="transformers", median=9.0),
        ],
    )
    assert run(readme, tmp_path) == 0
    rows = [text.split(" | ") for text in readme.read_text().splitlines() if text.startswith("| ")][2:]
    assert [row[0] for row in rows] == [
        "| a step of answering, 606 keys, 1B",
        "| a step of answering, 606 keys, 1B, weights of 4 bits",
        "| nearest code, 16 pictures",
    ]
    assert [row[-1] for row in rows[:2]] == ["1.50× |", "4.50× |"]
    assert rows[1][2] == "0.200"
