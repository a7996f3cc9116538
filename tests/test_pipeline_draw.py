"""`Pipeline.draw`: seeds, prompts, limits, a picture to go on from, previews and progress."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import janus
from janus.inference.draw import draw_codes
from janus.inference.draw_batch import Picture

SIZE, GRID, CODES = 64, 8, 64
GRAY = (127, 127, 127)
DRAWING = "A stunning princess from kabul in red, white traditional clothing, blue eyes, brown hair"


@pytest.fixture(scope="module")
def pipe(data: Path, model: janus.Janus) -> janus.Pipeline:
    return janus.Pipeline(model, janus.Processor.from_pretrained(data / "januspro" / "checkpoint"))


@pytest.fixture(scope="module")
def picture(golden: dict[str, Tensor]) -> Image.Image:
    """A picture of the model's own size."""
    values = ((golden["vq.image"][0] + 1) * 127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def arrays(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.fixture(scope="module")
def drawn(pipe: janus.Pipeline) -> np.ndarray:
    return arrays(pipe.draw("a cat", n=3, seed=7))


def test_the_originals_picture(pipe: janus.Pipeline, golden: dict[str, Tensor]) -> None:
    picture = arrays(pipe.draw(DRAWING, temperature=0))[0].astype(int)
    difference = np.abs(picture - golden["imagegen.greedy.uint8"][0].numpy())
    # Values that lie on a whole number may be truncated to either side: test_draw.py tells which.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_seeds(pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    assert drawn.shape == (3, SIZE, SIZE, 3)
    assert len({picture.tobytes() for picture in drawn}) == 3
    again = pipe.draw("a cat", n=3, seed=7, batch_size=2)
    assert np.array_equal(arrays(again), drawn)
    assert not np.array_equal(arrays(pipe.draw("a cat", seed=8))[0], drawn[0])


@pytest.mark.parametrize("window", [False, 0, 2, 24])
def test_speculation_changes_no_picture(window: int, pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    again = pipe.draw("a cat", n=3, seed=7, speculate=window, progress=progress)
    assert np.array_equal(arrays(again), drawn)
    assert told[-1] == (3 * CODES, 3 * CODES)


def test_prompts_in_order(pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    both = arrays(pipe.draw(["a big red dog", "a cat"], n=2, seed=7))
    assert np.array_equal(both[2:], drawn[:2])
    assert np.array_equal(both[:1], arrays(pipe.draw("a big red dog", seed=7)))
    assert pipe.draw([]) == []


def test_torch_gives_the_seed(pipe: janus.Pipeline) -> None:
    def draw_and_ask() -> tuple[bytes, str]:
        answer = pipe.ask("Why?", temperature=2.0, max_new_tokens=12)
        return arrays(pipe.draw("a cat")).tobytes(), answer

    torch.manual_seed(5)
    first = draw_and_ask()
    second = draw_and_ask()
    torch.manual_seed(5)
    assert draw_and_ask() == first
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_limits_count(pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    greedy = arrays(pipe.draw("a cat", temperature=0))
    assert np.array_equal(arrays(pipe.draw("a cat", seed=7, top_k=1)), greedy)
    assert np.array_equal(arrays(pipe.draw("a cat", seed=7, top_p=1e-6)), greedy)
    assert not np.array_equal(greedy, drawn[:1])


@pytest.mark.parametrize("rows", [1, 5])
def test_prefix(
    rows: int, pipe: janus.Pipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Tensor] = []
    decode = pipe.model.vq.decode
    monkeypatch.setattr(pipe.model.vq, "decode", lambda codes: kept.append(codes) or decode(codes))
    pipe.draw("a cat", n=2, seed=7, prefix=picture, rows=rows)
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        given = pipe.model.vq.encode(values)[0, :rows]
    start = tuple(given.flatten().tolist())
    asked = [
        Picture(prompt=tuple(pipe.processor.draw_prompt("a cat")), seed=7, number=number, start=start)
        for number in range(2)
    ]
    expected = torch.cat(list(draw_codes(pipe.model, asked, pad_id=pipe.processor.tokenizer.pad_id)))
    assert torch.equal(torch.cat(kept), expected)
    assert (expected[:, :rows] == given).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": Image.new("RGB", (64, 63)), "rows": 2}, "prefix is 64 x 63, .* draws 64 x 64 .* resize"),
        ({"prefix": Image.new("RGB", (64, 64)), "rows": 0}, "rows must be from 1 to 7, not 0"),
        ({"prefix": Image.new("RGB", (64, 64)), "rows": 8}, "rows must be from 1 to 7, not 8"),
        ({"prefix": Image.new("RGB", (64, 64))}, "prefix and rows go together"),
        ({"rows": 2}, "prefix and rows go together"),
        ({"size": 128}, "size 128 cannot be drawn: this model draws 64 x 64"),
        ({"size": (64, 128)}, r"size \(64, 128\) cannot be drawn"),
        ({"n": 0}, "n must be a whole number of at least 1, not 0"),
        ({"preview_every": 0}, "preview_every must be a whole number of at least 1, not 0"),
        ({"guidance": math.nan}, "guidance must be a number from -1000000 to 1000000, 1 for none, not nan"),
        ({"guidance": 1e39}, "guidance must be a number from -1000000 to 1000000, 1 for none, not 1e\\+39"),
        ({"guidance": 10**25}, "guidance must be a number from -1000000 to 1000000, 1 for none, not 1000"),
        ({"temperature": 1e39}, r"temperature must be 0 \(greedy\) or more, up to 1000000, not 1e\+39"),
        ({"guidance": math.inf}, "guidance must be a number from -1000000 to 1000000, 1 for none, not inf"),
        ({"speculate": -2}, "speculate .* must be a whole number of at least 0, not -2"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"temperature": -1}, "temperature must be 0 .* not -1"),
        ({"top_p": 2}, "top_p must be above 0 and at most 1, not 2"),
        ({"steps": 30}, "steps=30 is for a JanusFlow, and this model draws one code after another: leave it"),
        ({"method": "heun"}, "method='heun' is for a JanusFlow"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_the_model_runs(
    options: dict[str, Any],
    message: str,
    pipe: janus.Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipe.model, "hidden_states", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        pipe.draw("a cat", **options)


@pytest.mark.parametrize("size", [SIZE, (SIZE, SIZE)])
def test_its_own_size_may_be_named(size: Any, pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    assert np.array_equal(arrays(pipe.draw("a cat", seed=7, size=size)), drawn[:1])


def test_preview(pipe: janus.Pipeline, drawn: np.ndarray) -> None:
    previews: list[list[Image.Image]] = []
    final = pipe.draw("a cat", n=3, seed=7, batch_size=2, preview=previews.append, preview_every=3)
    assert np.array_equal(arrays(final), drawn), "watching changes nothing"
    # After 3 and 6 rows of codes, of a batch of two and one of one.
    assert [len(batch) for batch in previews] == [2, 2, 1, 1]
    for number, batch in enumerate(previews):
        known = (3, 6)[number % 2] * SIZE // GRID
        for picture in batch:
            assert picture.size == (SIZE, SIZE)
            values = np.asarray(picture)
            assert (values[known:] == GRAY).all()
            assert not (values[known - 8 : known] == GRAY).all()


def test_progress_is_told(pipe: janus.Pipeline, picture: Image.Image) -> None:
    told: list[tuple[int, int]] = []
    pipe.draw("a cat", n=3, seed=7, batch_size=2, progress=lambda *counts: told.append(counts))
    total = 3 * CODES
    assert told == [(2 * step, total) for step in range(1, 65)] + [
        (2 * CODES + step, total) for step in range(1, 65)
    ]
    told.clear()
    pipe.draw("a cat", prefix=picture, rows=6, progress=lambda *counts: told.append(counts))
    assert told == [(step, 16) for step in range(1, 17)]


@pytest.mark.parametrize(("progress", "shown"), [(None, False), (False, False), (True, True)])
def test_no_bar_where_nobody_looks(
    progress: bool | None, shown: bool, pipe: janus.Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe.draw("a cat", seed=7, progress=progress)
    output = capsys.readouterr()
    assert output.out == ""
    assert bool(output.err) == shown
