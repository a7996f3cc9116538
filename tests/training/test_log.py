"""The log: its records and lines, what a kill leaves of it, and what is written for TensorBoard."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus.training.log import (
    FILE,
    GIB,
    RunLog,
    duration,
    process_memory,
    progress_line,
    read_log,
)
from janus.training.recipe.watch import Log, PictureAsked
from janus.training.worlds import shapes


class Clock:
    """Seconds that pass when it is said so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_log(tmp_path: Path, clock: Clock) -> Callable[..., RunLog]:
    """A log in a folder of its own, that shows its lines in the list `lines` of the log."""

    def opened(every: int = 1, **options: Any) -> RunLog:
        lines: list[str] = []
        wanted: dict[str, Any] = {
            "steps": 10,
            "memory": lambda: 3 * GIB,
            "show": lines.append,
            "clock": clock,
        }
        log = RunLog(tmp_path, Log(every=every, tensorboard=False), **{**wanted, **options})
        log.lines = lines  # type: ignore[attr-defined]
        return log

    return opened


def test_records_and_lines(open_log: Callable[..., RunLog], tmp_path: Path, clock: Clock) -> None:
    log = open_log(every=2, rate=1000.0)
    for step in range(4):
        clock.seconds += 0.5
        log.step({"loss": torch.tensor(2.0 - step), "text_loss": 1, "rate": 1e-3}, tokens=100, flop=300)
    log.close()
    expected = {
        "text_loss": 1.0,
        "rate": 1e-3,
        "tokens_per_second": 200.0,
        "share_of_peak": 0.6,
        "memory": 3 * GIB,
    }
    assert read_log(tmp_path / FILE) == [
        {"step": 2, "loss": 1.0, **expected},
        {"step": 4, "loss": -1.0, **expected},
    ]
    assert log.lines == [  # type: ignore[attr-defined]
        "step  2/10  loss 1 (text 1)  rate 1.00e-03  200 tokens/s  60 % of peak  3.0 GiB  4 s left",
        "step  4/10  loss -1 (text 1)  rate 1.00e-03  200 tokens/s  60 % of peak  3.0 GiB  3 s left",
    ]


def test_what_no_step_takes_does_not_slow_the_speed(
    open_log: Callable[..., RunLog], tmp_path: Path, clock: Clock
) -> None:
    log = open_log(every=1)
    for _ in range(2):
        clock.seconds += 0.5
        log.step({"loss": 1.0}, tokens=100, flop=1)
        with log.aside():
            clock.seconds += 60
    log.close()
    assert [record["tokens_per_second"] for record in read_log(tmp_path / FILE)] == [200.0, 200.0]


def test_the_last_step_is_always_logged(open_log: Callable[..., RunLog], tmp_path: Path) -> None:
    log = open_log(every=7, steps=10)
    for _ in range(10):
        log.step({"loss": 0.0}, tokens=1, flop=1)
    log.close()
    assert [record["step"] for record in read_log(tmp_path / FILE)] == [7, 10]


def test_figures_are_read_only_where_they_are_due(open_log: Callable[..., RunLog]) -> None:
    """Reading waits for a GPU."""

    class Watched:
        reads = 0

        def __float__(self) -> float:
            self.reads += 1
            return 1.0

    log, loss = open_log(every=5), Watched()
    for _ in range(9):
        log.step({"loss": loss}, tokens=1, flop=1)  # type: ignore[dict-item]
    assert loss.reads == 1


def test_time_left_is_of_this_process(open_log: Callable[..., RunLog], clock: Clock) -> None:
    """Steps done before a restart say nothing of the machine's pace now."""
    clock.seconds = 1000.0
    log = open_log(done=6)
    clock.seconds += 2
    log.step({}, tokens=1, flop=1)
    assert log.lines[-1].endswith("6 s left")  # type: ignore[attr-defined]


def test_numbers_that_are_none(open_log: Callable[..., RunLog], tmp_path: Path) -> None:
    """What JSON has no form for is a text, so that other readers of JSON can read the file."""
    log = open_log()
    log.step({"loss": math.nan, "norm": torch.tensor(math.inf)}, tokens=1, flop=1)
    log.close()
    (line,) = (tmp_path / FILE).read_text().splitlines()
    record = json.loads(line, parse_constant=pytest.fail)
    assert (record["loss"], record["norm"]) == ("nan", "inf")


def test_a_run_that_goes_on_forgets_what_it_does_again(
    open_log: Callable[..., RunLog], tmp_path: Path
) -> None:
    log = open_log()
    for step in range(5):
        log.step({"loss": step}, tokens=1, flop=1)
    log.close()
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"step": 6, "lo')  # a kill in mid-write
    again = open_log(done=3)
    again.step({"loss": 30}, tokens=1, flop=1)
    again.close()
    assert [(record["step"], record["loss"]) for record in read_log(tmp_path / FILE)] == [
        (1, 0.0),
        (2, 1.0),
        (3, 2.0),
        (4, 30.0),
    ]
    assert (tmp_path / FILE).read_bytes().endswith(b"}\n")
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_run_that_goes_on_keeps_the_rest_as_it_is(open_log: Callable[..., RunLog], tmp_path: Path) -> None:
    log = open_log()
    log.step({"loss": 0.1}, tokens=1, flop=1)
    log.close()
    before = (tmp_path / FILE).stat()
    open_log(done=1).close()
    assert (tmp_path / FILE).stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "line", ["", "nonsense", "[]", "{}", '{"step": "1"}', '{"step": true}', "\x00", "[" * 5000], ids=repr
)
def test_a_damaged_log(line: str, tmp_path: Path, open_log: Callable[..., RunLog]) -> None:
    (tmp_path / FILE).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    for read in (lambda: read_log(tmp_path / FILE), open_log):
        with pytest.raises(ValueError, match=rf"{FILE}:2: not a record of a run: take the line out, or the"):
            read()


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{FILE} is not there: give the folder of a run, with its"):
        read_log(tmp_path / FILE)


@settings(max_examples=40)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5).filter(lambda name: name != "step"),
            st.text(max_size=5) | st.integers() | st.floats() | st.booleans() | st.none(),
            max_size=3,
        ),
        max_size=4,
    ),
    st.integers(0, 60),
)
def test_what_is_written_is_read_wherever_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = RunLog(folder, Log(tensorboard=False), steps=9, show=lambda line: None)
    for record in records:
        log.write(record)
    log.close()
    whole = (folder / FILE).read_bytes()
    left = whole[: max(len(whole) - cut, 0)]
    (folder / FILE).write_bytes(left)
    found = read_log(folder / FILE)
    assert len(found) == left.count(b"\n")
    for record, read in zip(records, found, strict=False):
        for name, value in record.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            assert read[name] == (value if finite else str(value))


def test_samples(open_log: Callable[..., RunLog], tmp_path: Path) -> None:
    log = open_log(done=3)
    pictures = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    (scene,) = shapes.questions(1, 0, held_out=False)
    log.samples(
        [("a red square", pictures[0]), ("a blue one", pictures[1])],
        [(PictureAsked(picture="cat.png", question="What is it?"), "A cat.")],
        [(scene, "maybe")],
    )
    log.samples()
    log.close()
    first, second = read_log(tmp_path / FILE)
    assert first == {
        "step": 3,
        "drawn": [
            {"prompt": "a red square", "picture": "samples/00000003-00.png"},
            {"prompt": "a blue one", "picture": "samples/00000003-01.png"},
        ],
        "asked": [
            {"picture": "cat.png", "question": "What is it?", "answer": "A cat."},
            {
                "picture": "samples/scene-00.png",
                "question": scene.question,
                "answer": "maybe",
                "wanted": scene.answer,
            },
        ],
    }
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / "scene-00.png")), scene.picture)
    assert second == {"step": 3, "drawn": [], "asked": []}
    for each, picture in zip(first["drawn"], pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / each["picture"])), np.asarray(picture))


# --- TensorBoard ---


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a writer of TensorBoard's was asked for."""
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append(("open", Path(folder).name, purge_step))

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments, **options: calls.append((name, *arguments, *options.values()))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls


def test_tensorboard_has_it_all(board: list[Any], tmp_path: Path, clock: Clock) -> None:
    log = RunLog(
        tmp_path, Log(every=1), steps=9, done=2, memory=lambda: 7, show=lambda line: None, clock=clock
    )
    clock.seconds = 1.0
    log.step({"loss": 0.5}, tokens=3, flop=1)
    log.samples([("a cat", Image.new("L", (2, 2)))], [(PictureAsked(picture="p", question="Who?"), "Me.")])
    log.close()
    picture = next(call for call in board if call[0] == "add_image")
    assert picture[1:2] + picture[3:] == ("drawn/00 a cat", 3, "HWC")
    assert picture[2].shape == (2, 2, 3)
    assert [call for call in board if call[0] != "add_image"] == [
        ("open", "tensorboard", 3),
        ("add_scalar", "loss", 0.5, 3),
        ("add_scalar", "tokens_per_second", 3.0, 3),
        ("add_scalar", "memory", 7, 3),
        ("add_text", "asked/00 Who?", "Me.", 3),
        ("close",),
    ]


def test_tensorboard_may_be_missing_or_unwanted(
    board: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunLog(tmp_path, Log(tensorboard=False), steps=1).close()
    assert board == []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = RunLog(tmp_path, Log(), steps=1, show=lambda line: None)
    log.step({"loss": 1}, tokens=1, flop=1)
    log.close()
    assert read_log(tmp_path / FILE)[0]["loss"] == 1


# --- words ---


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1 h 30 min"),
        (3 * 3600 + 5 * 60, "3 h 05 min"),
        (47.9 * 3600, "47 h 54 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_line_says_what_there_is() -> None:
    least = {"tokens_per_second": 0.5, "memory": 0}
    assert progress_line(1, 9, least, 1) == "step 1/9  0.5 tokens/s  0.0 GiB  1 s left"
    both = {
        "loss": 3.14159,
        "text_loss": 1.5,
        "picture_loss": 9.70001,
        **least,
        "tokens_per_second": 12_345.0,
    }
    assert progress_line(20, 100, both, 7200) == (
        "step  20/100  loss 3.142 (text 1.5, picture 9.7)  12.3k tokens/s  0.0 GiB  2 h 00 min left"
    )
    judged = {"loss": 1.0, "drawn_right": 0.426, "rate": 1e-3, **least}
    assert progress_line(1, 9, judged, 1).startswith("step 1/9  loss 1  43 % drawn right  rate 1.00e-03  ")
    assert "1.23M tokens/s" in progress_line(1, 9, {**least, "tokens_per_second": 1_234_567}, 1)


def test_lines_go_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, Log(every=1, tensorboard=False), steps=1)
    log.step({"loss": 1}, tokens=1, flop=1)
    log.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("step 1/1  loss 1  ")


def test_a_process_uses_memory() -> None:
    used = process_memory(torch.device("cpu"))
    assert used > 1 << 20 if Path("/proc/self/status").exists() else used == 0


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device.index == 1 else 0)
    assert process_memory(torch.device("cuda", 1)) == 7
    assert process_memory(torch.device("cpu")) != 7
