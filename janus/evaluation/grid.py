"""Pictures side by side in one, each with its prompt underneath."""

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from janus.checks import require_whole

CELL = 192  # pixels: the least width that pictures are enlarged to
MARGIN = 12
PAPER, INK = (255, 255, 255), (32, 32, 32)


def contact_sheet(
    pictures: Sequence[Image.Image], prompts: Sequence[str], *, columns: int = 4
) -> Image.Image:
    """Rows of `columns` pictures of one size. Small ones are enlarged by a whole factor, no pixel changed.

    ValueError for no pictures, for pictures of several sizes, and for another number of prompts.
    """
    require_whole("columns", columns, least=1)
    if not pictures or len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures and {len(prompts)} prompts: give as many of each")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"the pictures are of the sizes {sorted(sizes)}: give pictures of one size")
    ((width, height),) = sizes
    factor = -(-CELL // width)
    width, height = width * factor, height * factor
    columns = min(columns, len(pictures))

    font = ImageFont.load_default()
    lines = [wrap(prompt, width, font.getlength) for prompt in prompts]
    top, bottom = font.getbbox("Ágjp|")[1::2]
    leading = round(1.25 * (bottom - top))
    # Each row is as high as its longest prompt needs.
    rows = range(0, len(pictures), columns)
    heights = [height + leading * max(map(len, lines[first : first + columns])) for first in rows]
    size = MARGIN + columns * (width + MARGIN), MARGIN + sum(each + 2 * MARGIN for each in heights)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for first, row_height in zip(rows, heights, strict=True):
        for place in range(first, min(first + columns, len(pictures))):
            x = MARGIN + (place - first) * (width + MARGIN)
            sheet.paste(pictures[place].resize((width, height), Image.Resampling.NEAREST), (x, y))
            for number, line in enumerate(lines[place]):
                pen.text((x, y + height + MARGIN // 2 + number * leading), line, INK, font)
        y += row_height + 2 * MARGIN
    return sheet


def wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """The words of a text in lines of at most `width`, as `measure` has it; a wider word is broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and measure(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        while measure(word) > width and len(word) > 1:
            cut = max(1, max(end for end in range(len(word)) if measure(word[:end]) <= width))
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines
