"""The check of a file: every problem of every line, a histogram that adds up, and rejects passed over."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from janus.processing.processor import Processor
from janus.training.data.check import check, format_report, histogram
from janus.training.data.outline import Geometry
from janus.training.data.rejects import read_rejects, write_rejects

ANSWER = {"role": "assistant", "content": "A cat."}


def ask(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, ANSWER]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A line for everything that can be wrong, and some that are right."""
    Image.new("RGB", (9, 5)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("no picture")
    lines: list[Any] = [
        {"messages": ask("<image> What?"), "images": ["good.png"]},
        "{",
        {"messages": ask("<image> <image> What?"), "images": ["good.png", "broken.png"]},
        {"messages": ask("<image> What?"), "images": ["absent.png", "text.png"]},
        {"prompt": "a cat", "image": "good.png"},
        "",
        {"prompt": "a cat", "codes": [1, 2]},
        {"text": "a " * 300},
        {"messages": ask([{"type": "image", "image": "absent.png"}, {"type": "image", "image": "text.png"}])},
        {"messages": ask("What?")[:1]},
        [1],
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_every_problem_is_found(file: Path, processor: Processor, geometry: Geometry) -> None:
    report = check(file, processor, 200, geometry=geometry)
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (2, "malformed"),
        (3, "broken"),
        (4, "placeholders"),
        (4, "missing"),
        (4, "broken"),
        (7, "malformed"),
        (8, "long"),
        (9, "missing"),
        (9, "broken"),
        (10, "malformed"),
        (11, "malformed"),
    ]
    for problem in report.problems:
        assert problem.message.startswith(f"{file}:{problem.line}: ")
        assert "\n" not in problem.message
    assert report.rows == 10
    assert report.tasks == {"understanding": 3, "text": 1, "drawing": 1}
    expected = [
        len(
            processor(ask([{"type": "image", "image": file.parent / "good.png"}] * count + texts)).input_ids[
                0
            ]
        )
        for count, texts in (
            (1, [{"type": "text", "text": "What?"}]),
            (2, [{"type": "text", "text": "What?"}]),
            (2, []),
        )
    ]
    drawing = len(processor.draw_prompt("a cat")) + 63
    assert sorted(report.lengths)[:4] == sorted([*expected, drawing])
    assert f"{file}:8: {max(report.lengths)} tokens, over the limit of 200" in format_report(report)
    assert sorted(report.unusable) == [2, 3, 4, 7, 9, 10, 11]


def test_a_report_says_all(file: Path, processor: Processor, geometry: Geometry) -> None:
    report = check(file, processor, 200, geometry=geometry)
    text = format_report(report)
    assert all(problem.message in text for problem in report.problems)
    for line in (
        "4 rows that are malformed",
        "1 rows with more or fewer placeholders than pictures",
        "2 pictures that do not exist",
        "3 pictures that cannot be read",
        "1 rows over the limit",
        f"{file}: 10 rows (1 drawing, 1 text, 3 understanding), limit 200 tokens",
    ):
        assert line in text.splitlines()


@given(values=st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_histograms_add_up(values: list[int]) -> None:
    lines = histogram(values)
    assert len(lines) <= 12
    rest = Counter(values)
    for line in lines:
        low, _, high = line.split()[:3]
        inside = [value for value in rest if int(low) <= value <= int(high)]
        assert int(line.split()[-1]) == sum(rest[value] for value in inside)
        assert ("#" in line) == bool(inside)
        for value in inside:
            del rest[value]
    assert not rest


def test_progress_is_reported(file: Path, processor: Processor, geometry: Geometry) -> None:
    seen: list[tuple[int, int]] = []
    check(file, processor, 200, geometry=geometry, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


def test_rejects_of_several_files(tmp_path: Path) -> None:
    target = tmp_path / "rejects.jsonl"
    one, other = tmp_path / "one.jsonl", tmp_path / "folder" / "other.jsonl"
    other.parent.mkdir()
    for path in (one, other):
        path.write_text("{}\n" * 9)
    write_rejects(one, {3: ["one.jsonl:3: broken"], 5: ["a", "b"]}, target)
    write_rejects(other, {7: ["x"]}, target)
    write_rejects(one, {4: ["y"]}, target)
    assert read_rejects(one, target) == [4]
    assert read_rejects(other, target) == [7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "one.jsonl", "rejects.jsonl"]
    one.write_text("{}\n" * 10)
    with pytest.raises(ValueError, match=r"one\.jsonl has changed since .*: run janus data check again"):
        read_rejects(one, target)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{"file": "a", "bytes": 1}', "is no reject: run janus data check again"),
        ("[]", "is no reject"),
        ("{", "is not JSON"),
        ('{"file": "a", "line": "3", "bytes": 1}', "line must be a whole number of at least 1, not '3'"),
    ],
)
def test_malformed_rejects(tmp_path: Path, entry: str, message: str) -> None:
    target = tmp_path / "rejects.jsonl"
    target.write_text(entry)
    with pytest.raises(ValueError, match=rf"rejects\.jsonl:1.* {message}"):
        read_rejects(tmp_path / "a", target)


def test_a_file_of_nothing(tmp_path: Path, processor: Processor) -> None:
    (tmp_path / "a.jsonl").touch()
    report = check(tmp_path / "a.jsonl", processor, 10)
    assert format_report(report) == f"{tmp_path / 'a.jsonl'}: 0 rows (none usable), limit 10 tokens"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check(tmp_path / "b.jsonl", processor, 10)
