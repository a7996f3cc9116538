"""Pictures as the tokenizer gives them back, beside their originals, for the log."""

import torch
from PIL import Image
from torch import Tensor

from janus.checks import require_whole
from janus.models.vq import VQ
from janus.processing.image import to_pictures

MARGIN = 2  # pixels


@torch.no_grad()
def reconstruction_grid(vq: VQ, pixels: Tensor, *, columns: int = 8, quantized: bool = True) -> Image.Image:
    """Rows of up to `columns` originals, each row above one of their reconstructions, on white.

    pixels (B, 3, H, W) in [-1, 1]. `quantized` False leaves the codebook out, as training does before it
    begins to quantize. Raises ValueError for no pictures and for less than one column.
    """
    require_whole("columns", columns, least=1)
    if len(pixels) == 0:
        raise ValueError("a grid of reconstructions needs a picture: pixels are empty")
    latents = vq.latents(pixels)
    entries = vq.quantize(latents)[0] if quantized else torch.nn.functional.normalize(latents, dim=1)
    return paired_grid(pixels, vq.decode_latents(entries), columns=columns)


def paired_grid(pixels: Tensor, reconstructed: Tensor, *, columns: int = 8) -> Image.Image:
    """As `reconstruction_grid`, of what was reconstructed before, (B, 3, H, W) both."""
    originals, copies = to_pictures(pixels), to_pictures(reconstructed)
    columns = min(columns, len(originals))
    width, height = (side + MARGIN for side in originals[0].size)
    rows = -(-len(originals) // columns)
    grid = Image.new("RGB", (columns * width + MARGIN, 2 * rows * height + MARGIN), "white")
    for number, pair in enumerate(zip(originals, copies, strict=True)):
        row, column = divmod(number, columns)
        for below, picture in enumerate(pair):
            grid.paste(picture, (MARGIN + column * width, MARGIN + (2 * row + below) * height))
    return grid
