"""Curves of runs into one picture: what is drawn, and what is said where nothing can be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.training.log import FILE
from janus.training.plot import curves, plot, smooth


def run(folder: Path, records: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def losses(count: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 5.0 / step, "rate": 1e-3} for step in range(1, count + 1)]


def test_curves_are_the_figures(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": 2, "note": "words", "done": True},
        {"step": 3, "loss": "nan", "norm": 0.5},
        {"step": 3, "drawn": [], "asked": []},
    ]
    folder = run(tmp_path / "a", records)
    for named in (folder, folder / FILE):
        found = curves(named)
        assert set(found) == {"loss", "norm"}
        assert found["norm"] == ([3], [0.5])
        assert found["loss"][0] == [1, 3]
        assert found["loss"][1][0] == 2.0
        assert found["loss"][1][1] != found["loss"][1][1]  # not a number


def test_a_picture_of_several_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    runs = [run(tmp_path / "one", losses(200)), run(tmp_path / "two", [*losses(3), {"step": 3, "score": 1}])]
    output = plot(runs, tmp_path / "new" / "curves.png")
    assert output == tmp_path / "new" / "curves.png"
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        # Three panels, of five inches by three, at 120 dots an inch; the colors of both runs among them.
        assert picture.size == (3 * 5 * 120, 3.5 * 120)
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colors


def test_the_same_runs_are_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = run(tmp_path / "one", losses(20))
    first, second = (plot([folder], tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from janus.training.plot import _names

    alike = [run(tmp_path / "a" / "run", losses(2)), run(tmp_path / "b" / "run", losses(2))]
    assert list(_names(alike)) == [str(each) for each in alike]
    assert list(_names([alike[0], alike[1] / FILE])) == [str(alike[0]), str(alike[1] / FILE)]
    assert list(_names([alike[0]])) == ["run"]
    assert plot(alike, tmp_path / "c.png").is_file()


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path / "one", losses(2))
    with pytest.raises(ValueError, match=r"^no run to plot: give the folders of one or more$"):
        plot([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.pdf must end in \.png$"):
        plot([folder], tmp_path / "a.pdf")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{FILE} is not there: give the folder of a run"):
        plot([tmp_path / "none"], tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=rf"{FILE} holds no figures yet: wait for the first record of the run$"
    ):
        plot([run(tmp_path / "empty", [{"step": 1}])], tmp_path / "a.png")
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"^plots need matplotlib: pip install matplotlib$"):
        plot([folder], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_smoothing_is_a_mean_of_what_came_before() -> None:
    assert smooth([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert smooth([1, 2, 3], 1) == [1, 2, 3]
    assert smooth([4, 2], 9) == [4, 3]
    assert smooth([], 3) == []


@given(st.lists(st.integers(-1000, 1000), max_size=30), st.integers(1, 40))
def test_smoothing_stays_between_the_least_and_the_most(values: list[int], width: int) -> None:
    found = smooth(values, width)
    assert len(found) == len(values)
    assert all(min(values) <= each <= max(values) for each in found)
