"""What a recipe reads: its sources with their weights, worlds as rows, and pictures alone."""

import json
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from janus.processing.image import load_picture, square_picture, to_signed_pixels
from janus.training.data.documents import crop_at
from janus.training.data.mixture import Mixture, Part
from janus.training.data.rows import Conversation, Drawing
from janus.training.data.sources import JsonLines, Table
from janus.training.feed import Drawings, open_described, parts_of, squares
from janus.training.parallel import Ranks
from janus.training.recipe.sections import Columns, Data, Ratio, Source
from janus.training.worlds import shapes


def test_sources_of_a_task_share_its_part_of_the_ratio(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n')
    texts = [
        Source(task="text", path=str(tmp_path / f"{name}.jsonl"), weight=w)
        for name, w in (("a", 3), ("b", 1))
    ]
    drawn = Source(task="drawing", world="shapes", weight=7)
    data = Data(sources=(*texts, drawn), ratio=Ratio(text=2, drawing=3))
    assert [(part.weight, part.task) for part in parts_of(data, side=64)] == [
        (1.5, "text"),
        (0.5, "text"),
        (3.0, "drawing"),
    ]
    plain = Data(sources=(*texts, drawn))
    assert [part.weight for part in parts_of(plain, side=64)] == [3, 1, 7]


def test_the_world_of_shapes_as_rows() -> None:
    seed = 5
    drawn = open_described(Source(task="drawing", world="shapes"), side=80)
    row = drawn.row(0, seed)
    own = shapes.drawing(np.random.default_rng(seed), side=80)
    assert isinstance(row, Drawing)
    assert row.prompt == own.caption
    assert np.array_equal(row.picture, own.picture)
    assert row.picture.shape == (80, 80, 3)

    asked = open_described(Source(task="understanding", world="shapes"), side=64).row(0, seed)
    spoken = shapes.conversation(np.random.default_rng(seed), side=64)
    assert len(spoken.turns) > 1
    assert isinstance(asked, Conversation)
    picture, text = asked.messages[0]["content"]
    assert np.array_equal(picture["image"], spoken.picture)
    said = [text["text"], *(message["content"] for message in asked.messages[1:])]
    assert said == [words for turn in spoken.turns for words in turn]
    assert [message["role"] for message in asked.messages] == ["user", "assistant"] * len(spoken.turns)

    written = open_described(Source(task="text", world="shapes"), side=64).row(0, seed)
    assert isinstance(written, Conversation)
    assert [message["content"] for message in written.messages] == list(
        shapes.text(np.random.default_rng(seed))
    )


@pytest.mark.parametrize("task", ["drawing", "understanding"])
def test_a_world_of_one_color(task: Any) -> None:
    source = open_described(Source(task=task, world="shapes", color="orange"), side=64)
    for seed in range(20):
        row = source.row(0, seed)
        if isinstance(row, Drawing):
            picture = row.picture
        else:
            assert isinstance(row, Conversation)
            picture = row.messages[0]["content"][0]["image"]
        assert "orange" in [item.color for item in shapes.describe(picture).objects]
    assert source.name != open_described(Source(task=task, world="shapes"), side=64).name


def test_some_categories_of_a_world() -> None:
    named = ("colors", "full")
    source = open_described(Source(task="drawing", world="shapes", categories=named), side=64)
    assert source.name == "shapes (drawing, colors, full)"
    counts = Counter()
    for seed in range(60):
        row = source.row(0, seed)
        assert isinstance(row, Drawing)
        spec = shapes.parse(row.prompt)
        counts["full" if spec.relation else "colors"] += 1
        assert all(thing.color for thing in spec.things)
    assert min(counts.values()) > 15
    asked = open_described(Source(task="understanding", world="shapes", categories=("describe",)), side=64)
    for seed in range(10):
        row = asked.row(0, seed)
        assert isinstance(row, Conversation)
        assert len(row.messages[1]["content"].split()) > 2  # a description, not a word


def test_a_world_off_the_grid() -> None:
    source = open_described(Source(task="drawing", world="shapes", places="lattice"), side=64)
    wanted = shapes.drawing(np.random.default_rng(5), places="lattice")
    row = source.row(0, 5)
    assert isinstance(row, Drawing)
    assert (row.prompt, row.picture.tolist()) == (wanted.caption, wanted.picture.tolist())
    assert source.name == "shapes (drawing, lattice)"
    seen = open_described(Source(task="understanding", world="shapes", places="anywhere"), side=64)
    asked, spoken = seen.row(0, 5), shapes.conversation(np.random.default_rng(5), places="anywhere")
    assert isinstance(asked, Conversation)
    assert asked.messages[0]["content"][0]["image"].tolist() == spoken.picture.tolist()
    assert asked.messages[-1]["content"] == spoken.turns[-1][1]


def test_a_world_with_nameless_things() -> None:
    source = open_described(Source(task="drawing", world="shapes", nameless=True), side=64)
    rows = [source.row(0, seed) for seed in range(40)]
    prompts = [row.prompt for row in rows if isinstance(row, Drawing)]
    assert prompts == [
        shapes.drawing(np.random.default_rng(seed), nameless=True).caption for seed in range(40)
    ]
    assert any("blob" in prompt for prompt in prompts)
    assert source.name == "shapes (drawing, nameless)"
    seen = open_described(Source(task="understanding", world="shapes", nameless=True), side=64)
    asked, spoken = seen.row(0, 5), shapes.conversation(np.random.default_rng(5), nameless=True)
    assert isinstance(asked, Conversation)
    assert asked.messages[-1]["content"] == spoken.turns[-1][1]


def test_worlds_of_three_tasks_are_three_sources() -> None:
    kinds: Any = ("drawing", "understanding", "text")
    parts = parts_of(Data(sources=tuple(Source(task=kind, world="shapes") for kind in kinds)), side=64)
    assert len({part.source.name for part in parts}) == 3


def test_pictures_too_small_for_the_world_are_refused() -> None:
    with pytest.raises(ValueError, match="needs pictures of 64 pixels, and the model's have 48"):
        open_described(Source(task="drawing", world="shapes"), side=48)


def test_paths_and_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert isinstance(open_described(Source(task="text", path=str(tmp_path / "a.jsonl")), side=64), JsonLines)
    asked = []

    def hugging_face(path: str, **options: Any) -> Table:
        asked.append((path, options))
        return Table([], path)

    monkeypatch.setattr("janus.training.feed.hugging_face", hugging_face)
    described = Source(task="text", dataset="some/texts", split="test", columns=Columns(text="body"))
    assert isinstance(open_described(described, side=64), Table)
    assert asked == [("some/texts", {"split": "test", "columns": {"text": "body"}, "task": "text"})]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    for number in range(7):
        Image.new("RGB", (9 + number, 12), (30 * number, 80, 10)).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"prompt": f"p{number}", "image": f"{number}.png"}) for number in range(7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


def pictures(
    rows: Path, *, rank: int = 0, ranks: int = 1, workers: int = 0, seed: int = 0
) -> Drawings[Tensor]:
    mixture = Mixture([Part(JsonLines(rows), 1.0)], seed=seed, rank=rank, ranks=ranks)
    return Drawings(mixture, partial(squares, size=8, crop="center"), rows=2, workers=workers)


def test_pictures_are_those_of_the_order_cropped_to_squares(rows: Path) -> None:
    loader = pictures(rows)
    batches = list(islice(loader, 4))
    assert torch.cat(batches).shape == (8, 3, 8, 8)
    for place, square in enumerate(torch.cat(batches)):
        row = loader.mixture.parts[0].source.row(loader.mixture.draw(place).index, 0)
        assert torch.equal(square, to_signed_pixels(square_picture(load_picture(row.picture), 8)))
    assert loader.place == 8


def test_pictures_may_be_cropped_anywhere(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 3), dtype=np.uint8)
    mixture = Mixture([Part(Table([{"prompt": "a", "image": noise}], "one"), 1.0)], seed=0)
    (batch,) = islice(Drawings(mixture, partial(squares, size=8, crop="random"), rows=20), 1)
    places = [crop_at("random", mixture.draw(place)) for place in range(20)]
    assert min(places) < 0.25
    assert max(places) > 0.75
    for at, square in zip(places, batch, strict=True):
        assert torch.equal(square, to_signed_pixels(square_picture(load_picture(noise), 8, at=at)))


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_go_on_where_a_state_was_taken(workers: int, rows: Path) -> None:
    straight = list(islice(pictures(rows), 5))
    first = pictures(rows, workers=workers)
    stream = iter(first)
    taken = [next(stream) for _ in range(2)]
    again = pictures(rows, workers=workers)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    taken += list(islice(again, 3))
    assert all(torch.equal(one, other) for one, other in zip(taken, straight, strict=True))


def test_two_processes_share_the_pictures_out(rows: Path) -> None:
    seen = [
        [loader.mixture.draw(place).index for place in range(3)]
        for loader in (pictures(rows, rank=rank, ranks=2) for rank in range(2))
    ]
    assert len({*seen[0], *seen[1]}) == 6
    with pytest.raises(ValueError, match="the data's seed were 0 when the state was saved, and are 1"):
        pictures(rows, seed=1).load_state_dict(pictures(rows).state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_cannot_be_read_make_way(workers: int, rows: Path) -> None:
    """Other pictures of the file come, and are counted; all else is as it would have been."""
    lines = rows.read_text().splitlines()
    (rows.parent / "torn.png").write_bytes(b"\x89PNG")
    lines[1] = json.dumps({"prompt": "torn", "image": "torn.png"})
    rows.write_text("\n".join(lines))
    read = partial(squares, size=8, crop="center")
    mixed = Mixture([Part(JsonLines(rows), 1)], seed=0)
    with pytest.raises(ValueError, match=r"torn\.png"):
        list(islice(Drawings(mixed, read, rows=len(lines), workers=workers), 1))
    one_by_one = Drawings(mixed, read, rows=1, unreadable="drop")
    single = torch.cat(list(islice(one_by_one, len(lines))))
    together = Drawings(mixed, read, rows=len(lines), workers=workers, unreadable="drop")
    (batch,) = islice(together, 1)
    assert torch.equal(batch, single)
    assert together.dropped == one_by_one.dropped >= 1
    assert together.left_out(Ranks(torch.device("cpu"))) == {"dropped": float(together.dropped)}
    again = Drawings(mixed, read, rows=1, unreadable="drop")
    again.load_state_dict(together.state_dict())
    assert again.dropped == together.dropped

    for line in range(len(lines)):
        lines[line] = lines[1]
    rows.write_text("\n".join(lines))
    nothing = Drawings(Mixture([Part(JsonLines(rows), 1)], seed=0), read, rows=2, unreadable="drop")
    with pytest.raises(
        ValueError, match=r"100 rows in turn cannot be read; of the last of them, .*torn\.png"
    ):
        list(islice(nothing, 1))


def test_rows_without_a_picture_are_told_with_their_line(rows: Path) -> None:
    (rows.parent / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4: .*3\.png"):
        list(islice(pictures(rows), 4))
    rows.write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no prompt with an image"):
        next(iter(pictures(rows)))
