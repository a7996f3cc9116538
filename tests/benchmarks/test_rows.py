"""Rows are kept in one file for each machine, and newer ones replace older ones of the same."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from peers import versions
from rows import Row, best_peer, latest, merge, number, read, table

Made = Callable[..., Row]


def test_rows_survive_the_file(tmp_path: Path, made: Made) -> None:
    rows = [
        made(cpu=None, quick=True),
        made(implementation="eager", cpu=1.25, median=0.1 + 0.2, device='a "b", c'),
    ]
    (file,) = merge(tmp_path, rows)
    assert file.name == "cray-1.csv"
    assert sorted(read(file), key=lambda row: row.implementation, reverse=True) == rows


def test_a_row_replaces_its_older_self_and_nothing_else(tmp_path: Path, made: Made) -> None:
    old = [
        made(),
        made(implementation="eager"),
        made(commit="def"),
        made(case="other_1_fp32"),
        made(torch="2.6"),
    ]
    merge(tmp_path, old)
    new = made(median=1.0, date="2026-11-23T00:00:00+00:00")
    (file,) = merge(tmp_path, [new])
    found = read(file)
    assert len(found) == len(old)
    assert new in found
    assert old[0] not in found
    assert set(old[1:]) < set(found)


@pytest.mark.parametrize(
    "field", ["quick", "machine", "torch", "triton", "commit", "benchmark", "case", "implementation"]
)
def test_what_makes_another_row(made: Made, field: str) -> None:
    assert replace(made(), **{field: "other"}).identity != made().identity
    assert made(median=1.0, date="2027").identity == made().identity


def test_a_quick_row_never_replaces_a_full_one(tmp_path: Path, made: Made) -> None:
    (file,) = merge(tmp_path, [made()])
    merge(tmp_path, [made(quick=True, median=1.0, date="2026-11-23T00:00:00+00:00")])
    assert [(row.quick, row.median) for row in read(file)] == [(False, 2.0), (True, 1.0)]


def test_each_machine_has_its_file(tmp_path: Path, made: Made) -> None:
    files = merge(tmp_path, [made(), made(machine="cray-2")])
    assert {file.name for file in files} == {"cray-1.csv", "cray-2.csv"}
    assert [len(read(file)) for file in files] == [1, 1]


def test_merging_again_changes_nothing(tmp_path: Path, made: Made) -> None:
    rows = [made(implementation=name, case=case) for name in "cab" for case in ("two", "one")]
    (file,) = merge(tmp_path, rows)
    before = file.read_bytes()
    merge(tmp_path, reversed(rows))
    assert file.read_bytes() == before


def test_a_file_with_other_columns_is_not_overwritten(tmp_path: Path, made: Made) -> None:
    file = tmp_path / "cray-1.csv"
    file.write_text("machine,median\ncray-1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        merge(tmp_path, [made()])
    assert file.read_text() == "machine,median\ncray-1,2\n"


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (b"2.0", b"2,0", 3),
        (b"2.0", b"", 3),
        (b",False,", b",Tru,", 3),
        (b",fp32,", b",", 3),
        (b"Cray-1", b"\xff", 3),
        (b"Cray-1", b'"Cray-1', 3),
        (b",odd\n", b"", 3),
    ],
    ids=["comma", "empty", "word", "fewer", "bytes", "quote", "cut"],
)
def test_a_damaged_line_is_named(before: bytes, after: bytes, line: int, tmp_path: Path, made: Made) -> None:
    (file,) = merge(tmp_path, [made(case="a_1_fp32", note="odd"), made(note="odd")])
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second + third.replace(before, after, 1))
    with pytest.raises(ValueError, match="is damaged") as raised:
        read(file)
    assert str(raised.value).startswith(f"{file}, line {line}, is damaged (")
    assert "\n" not in str(raised.value)


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = merge(tmp_path, [made()])
    before = file.read_bytes()
    written = Path.write_bytes

    def fill_the_disk(path: Path, content: bytes) -> None:
        written(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        merge(tmp_path, [made(implementation="eager")])
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_older_file_lacks_the_last_columns(tmp_path: Path, made: Made) -> None:
    (file,) = merge(tmp_path, [made()])
    lines = file.read_text().splitlines()
    assert lines[0].endswith(",peak_bytes,versions,note")
    assert lines[1].endswith(",4096,,")
    file.write_text(
        "\n".join(line.removesuffix(",versions,note").removesuffix(",,") for line in lines) + "\n"
    )
    assert read(file) == [made()]
    merge(tmp_path, [made(implementation="eager", versions="python 3.12.3", note="odd")])
    assert [row.note for row in read(file)] == ["odd", ""]


def test_versions_are_pythons_and_the_packages() -> None:
    python = f"python {platform.python_version()}"
    for name in ("janus-triton", "compiled", "sdpa-math"):
        assert versions(name) == python
    pytest.importorskip("transformers")
    for name in ("transformers", "original-flow"):
        assert versions(name) == f"{python}, transformers {version('transformers')}"


def test_the_last_run_of_each_case(made: Made) -> None:
    old = [made(date="2026-01-01"), made(date="2026-01-01", implementation="eager")]
    new = [made(date="2026-02-02", commit="def"), made(date="2025-01-01", case="other_1_fp32")]
    assert latest([*old, *new]) == new
    assert latest([*new, *old]) == new


def test_the_best_peer_is_not_ours(made: Made) -> None:
    rows = [
        made(implementation="janus-torch", median=0.5),
        made(implementation="eager", median=3.0),
        made(implementation="compiled", median=1.0),
    ]
    peer = best_peer(rows)
    assert peer is not None
    assert peer.implementation == "compiled"
    assert best_peer(rows[:1]) is None


def test_the_printed_table_is_aligned(made: Made) -> None:
    text = table(
        [made(), made(implementation="compiled", median=3.0, floor_fraction=0.5 / 3), made(case="x_1_bf16")]
    )
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["case", "implementation", "median"]
    ours = next(line for line in lines if "double" in line and "janus" in line)
    assert "1.50 (compiled)" in ours
    assert " wall " in ours
    assert " 4.0 " in ours  # times its floor
    column = lines[0].index("unit")
    assert all(line[column : column + 2] == "ms" for line in lines[1:])
    assert lines.index(ours) < next(number for number, line in enumerate(lines) if " compiled " in line)


def test_a_comparison_of_two_clocks_is_marked(made: Made) -> None:
    text = table([made(clock="graph", note="odd"), made(implementation="eager", median=4.0, clock="events")])
    assert "2.00 (eager, events)" in text
    assert any(line.endswith("odd") for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (123.4, "123"),
        (12.345, "12.3"),
        (2.0, "2.00"),
        (0.5, "0.500"),
        (0.0123, "0.0123"),
        (0.00123, "0.00123"),
        (0.0, "0.00000"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
