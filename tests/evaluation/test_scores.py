"""Scores as JSON and as a table: figures that can be counted by hand."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from janus.evaluation.intervals import Tally, wilson
from janus.evaluation.scores import ListScores, PartScores, Scores

SEEN = ListScores({"colors": Tally(9, 10), "full": Tally(3, 10)}, {})
HELDOUT = ListScores(
    {"full": Tally(1, 4), "counting": Tally(2, 4)}, {"kind": Tally(1, 4), "pair": Tally(2, 4)}
)
SCORES = Scores(
    reconstruction=PartScores(SEEN, SEEN),
    drawing=PartScores(SEEN, HELDOUT),
    answers=PartScores(HELDOUT, SEEN),
    samples=1200,
    seed=7,
    split="test",
)


def test_the_shape_that_programs_read() -> None:
    written = json.loads(json.dumps(SCORES.to_json(), allow_nan=False))
    assert written["reconstruction"] == 0.6
    assert written["drawing"] == {
        "seen": 0.6,
        "heldout": 0.375,
        "by_category": {"colors": 0.9, "full": 4 / 14, "counting": 0.5},
    }
    assert written["answers"] == {
        "seen": 0.375,
        "heldout": 0.6,
        "by_category": {"full": 4 / 14, "counting": 0.5, "colors": 0.9},
    }
    assert (written["samples"], written["seed"], written["split"]) == (1200, 7, "test")
    parts = {"reconstruction", "drawing", "answers"}
    assert set(written) == {*parts, "details", "samples", "seed", "split", "color"}


def test_details_hold_counts_and_intervals_of_each_list() -> None:
    details = SCORES.to_json()["details"]
    assert set(details) == {"reconstruction", "drawing", "answers"}
    drawing = details["drawing"]
    assert drawing["seen"]["all"] == {
        "right": 12,
        "total": 20,
        "share": 0.6,
        "interval": list(wilson(12, 20)),
    }
    assert drawing["heldout"]["by_category"]["full"]["interval"] == list(wilson(1, 4))
    assert drawing["heldout"]["by_reason"]["pair"]["right"] == 2
    assert "by_reason" not in drawing["seen"]
    assert drawing["both"]["by_category"]["full"] == {
        "right": 4,
        "total": 14,
        "share": 4 / 14,
        "interval": list(wilson(4, 14)),
    }
    assert drawing["both"]["all"]["total"] == 28


def test_the_table_reads_as_text_and_as_markdown() -> None:
    table, note = SCORES.table().split("\n\n")
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1, "the columns are aligned"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["task", "category", "seen", "held out"]
    assert all(re.fullmatch(r":-+|-+:", cell) for cell in rows[1])
    assert rows[2:6] == [
        ["reconstruction", "all", "60.0 % (38.7–78.1), 12 of 20", "60.0 % (38.7–78.1), 12 of 20"],
        ["drawing", "all", "60.0 % (38.7–78.1), 12 of 20", "37.5 % (13.7–69.4), 3 of 8"],
        ["drawing", "colors", "90.0 % (59.6–98.2), 9 of 10", ""],
        ["drawing", "full", "30.0 % (10.8–60.3), 3 of 10", "25.0 % (4.6–69.9), 1 of 4"],
    ]
    assert ["drawing", "counting", "", "50.0 % (15.0–85.0), 2 of 4"] in rows
    assert ["drawing", "held out: a pair never seen together", "", "50.0 % (15.0–85.0), 2 of 4"] in rows
    assert note == "test lists of seed 7, 1,200 tasks each; 95 % intervals (Wilson)"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["kind", "pair", None]), st.booleans()), min_size=1
    )
)
def test_a_list_counts_every_task_once(judged: list[tuple[str, str | None, bool]]) -> None:
    scores = ListScores.of(judged, "cba")
    assert scores.whole == Tally(sum(right for *_, right in judged), len(judged))
    assert list(scores.by_category) == [name for name in "cba" if name in {task[0] for task in judged}]
    for name, tally in scores.by_category.items():
        its = [right for category, _, right in judged if category == name]
        assert tally == Tally(sum(its), len(its))
    for reason in ("kind", "pair"):
        its = [right for _, why, right in judged if why == reason]
        assert scores.by_reason.get(reason, Tally()) == Tally(sum(its), len(its))
