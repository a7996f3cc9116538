"""Contact sheets: every picture whole and in its place, every prompt wrapped under its own."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from janus.evaluation.grid import CELL, MARGIN, PAPER, contact_sheet, wrap


def squares(count: int, side: int = 64) -> list[Image.Image]:
    """Pictures of noise, of which no two are alike."""
    values = np.random.default_rng(0).integers(100, 255, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in values]


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (4, 4), (6, 4), (16, 4), (3, 1)])
def test_pictures_stand_in_reading_order_enlarged_by_a_whole_factor(count: int, columns: int) -> None:
    pictures = squares(count)
    sheet = np.asarray(contact_sheet(pictures, ["a cat"] * count, columns=columns))
    across = min(count, columns)
    assert sheet.shape[1] == MARGIN + across * (192 + MARGIN)
    pitch = (sheet.shape[0] - MARGIN) // -(-count // columns)
    for number, picture in enumerate(pictures):
        y, x = MARGIN + number // columns * pitch, MARGIN + number % columns * (192 + MARGIN)
        assert np.array_equal(sheet[y : y + 192 : 3, x : x + 192 : 3], np.asarray(picture))
        assert np.array_equal(sheet[y + 2 : y + 192 : 3, x + 2 : x + 192 : 3], np.asarray(picture))
    unused = sheet[MARGIN + (count - 1) // columns * pitch :, MARGIN + ((count - 1) % columns + 1) * 204 :]
    assert (unused == PAPER).all()


def test_each_prompt_is_under_its_picture_and_the_longest_makes_the_row() -> None:
    pictures, below = squares(3), MARGIN + 192
    leading = contact_sheet(pictures[:1], ["a cat"]).height - below - 2 * MARGIN
    sheet = np.asarray(contact_sheet(pictures, ["a cat", "", "a very long prompt " * 12], columns=2))
    inked = (sheet != PAPER).any(axis=2)
    first = inked[below : below + leading + 2 * MARGIN]
    assert first[:, MARGIN : MARGIN + 192].any()
    assert not first[:, MARGIN + 192 :].any(), "no prompt, no ink"
    last = inked[2 * below + leading + MARGIN :]
    lines = len(wrap("a very long prompt " * 12, 192, ImageFont.load_default().getlength))
    assert lines > 3
    assert len(last) == lines * leading + 2 * MARGIN
    written = last.any(axis=1).nonzero()[0]
    assert (lines - 1) * leading < written.max() < lines * leading + MARGIN
    assert not last[:, MARGIN + 192 :].any()


def test_large_pictures_are_not_enlarged() -> None:
    assert contact_sheet(squares(2, CELL), ["", ""], columns=2).width == 2 * CELL + 3 * MARGIN
    assert contact_sheet(squares(1, 384), [""]).width == 384 + 2 * MARGIN


@given(st.text(st.sampled_from("ab \n\t"), max_size=60), st.integers(1, 12))
def test_wrapping_keeps_the_text_and_the_width(text: str, width: int) -> None:
    lines = wrap(text, width, len)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(0 < len(line) <= width and line == line.strip() for line in lines)
    words = text.split()
    if all(len(word) <= width for word in words):
        assert " ".join(lines).split() == words
        # Greedy: the first word of a line did not fit on the line before.
        for line, following in pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > width


def test_what_is_wider_than_a_line_is_broken_to_the_last_letter() -> None:
    assert wrap("ab", 0.5, len) == ["a", "b"]


@pytest.mark.parametrize(
    ("pictures", "prompts", "columns", "message"),
    [
        ([], [], 4, "0 pictures and 0 prompts"),
        (squares(2), ["a cat"], 4, "2 pictures and 1 prompts: give as many of each"),
        (squares(1) + squares(1, 96), ["", ""], 4, r"sizes \[\(64, 64\), \(96, 96\)\]"),
        (squares(1), [""], 0, "columns must be a whole number of at least 1, not 0"),
    ],
    ids=["none", "counts", "sizes", "columns"],
)
def test_what_cannot_be_laid_out(
    pictures: list[Image.Image], prompts: list[str], columns: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet(pictures, prompts, columns=columns)
