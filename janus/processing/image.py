"""Pictures to pixels as the model sees them, and back; bit for bit what the released code computes.

H, W: height and width; S: side of a square picture; B: pictures.
"""

import base64
import binascii
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from janus.checks import NOT_NUMBERS, one_line
from janus.files import shortened
from janus.weights.processor_config import ProcessorConfig

GRAY = (127, 127, 127)
LONGEST_STRIP = 16  # how many times its short side
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageProcessor:
    """A picture to (3, S, S) float32 pixels: fitted into a square, padded with the background, normalized."""

    def __init__(self, config: ProcessorConfig, *, corrected: bool = False) -> None:
        self.config = config
        self.corrected = corrected

    def __call__(self, source: Any) -> Tensor:
        """What `load_picture` takes -> (3, S, S) float32. Raises as it does."""
        return torch.from_numpy(self.normalize(np.asarray(self.fit(self.open(source)))))

    def open(self, source: Any) -> Image.Image:
        """`load_picture`, as this model's pictures are to be read."""
        return load_picture(source, corrected=self.corrected, background=self.config.background)

    def fit(self, picture: Image.Image) -> Image.Image:
        """Resize an RGB picture so that its long side is S, and pad it to S x S.

        Sides are truncated, and the short one is at least `min_size` (as released: the aspect then changes).
        """
        size, least = self.config.image_size, self.config.min_size
        longest = max(picture.size)
        width, height = (max(int(side / longest * size), least) for side in picture.size)
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        if width == height:
            return resized
        side = max(width, height)
        square = Image.new("RGB", (side, side), self.config.background)
        square.paste(resized, ((side - width) // 2, (side - height) // 2))
        return square

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, H, W) float32: rescaled, less the mean, over the std."""
        scaled = (pixels.transpose(2, 0, 1).astype(np.float64) * self.config.rescale_factor).astype(
            np.float32
        )
        if not self.config.do_normalize:
            return scaled
        mean = np.array(self.config.image_mean, dtype=np.float32)[:, None, None]
        std = np.array(self.config.image_std, dtype=np.float32)[:, None, None]
        normalized: np.ndarray = (scaled - mean) / std
        return normalized


def load_picture(
    source: Any, *, corrected: bool = False, background: tuple[int, int, int] = GRAY
) -> Image.Image:
    """An RGB picture from a path, a `data:image/…;base64,` URI, a `PIL.Image` or a numpy array.

    As released, transparency is dropped, EXIF rotation ignored and 16 bits become 8 as Pillow does it;
    `corrected` composites on `background`, turns upright and scales. Arrays: (H, W) or (H, W, 1, 3 or 4) of
    uint8, uint16, bool or floats in [0, 1]. Raises FileNotFoundError, or ValueError for no whole picture.
    """
    if isinstance(source, Image.Image):
        return _finish(lambda: nullcontext(source), f"a picture of mode {source.mode}", corrected, background)
    if isinstance(source, np.ndarray):
        picture = _from_array(source)
        return _finish(lambda: nullcontext(picture), "an array", corrected, background)
    if isinstance(source, str) and source.startswith("data:"):
        data = _from_uri(source)
        return _finish(lambda: Image.open(io.BytesIO(data)), "a data: URI", corrected, background)
    if not isinstance(source, (str, PathLike)):
        raise ValueError(f"a picture is {type(source).__name__}: give a path, a PIL.Image or a numpy array")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError(f"{source} is an address: download the picture and give its path")
    try:
        path = Path(source).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except RuntimeError as error:  # the home of a user who is unknown
        raise ValueError(f"{shortened(source)} is no path ({error}): give that of a picture") from error
    except OSError as error:  # too long to be one, most often a picture in base64
        raise ValueError(
            f"{shortened(source, 40)} is no path ({error.strerror}): give that of a picture, or, of one in "
            "base64, data:image/png;base64, and then its bytes"
        ) from error
    if is_folder:
        raise ValueError(f"{path} is a folder: give the path of a picture")
    if not exists:
        raise FileNotFoundError(f"{path} does not exist: give the path of a picture")
    return _finish(lambda: Image.open(path), str(path), corrected, background)


def square_picture(picture: Image.Image, size: int, *, at: float = 0.5) -> Image.Image:
    """A square of a picture, size x size RGB: short side resized to `size` (bicubic), long side cropped.

    `at`, from 0 to 1, says where along the long side (0.5: its center).
    """
    if size <= 0:
        raise ValueError(f"size is {size}: a positive number of pixels is needed")
    short = min(picture.size)
    # Of a very long strip only the middle is resized: the whole could take any amount of memory.
    margins = [max(0, side - LONGEST_STRIP * short) // 2 for side in picture.size]
    if any(margins):
        x, y = margins
        picture = picture.crop((x, y, picture.width - x, picture.height - y))
    scale = size / short
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = int((width - size) * at), int((height - size) * at)
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def to_signed_pixels(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W) float32 in [-1, 1]: the range that the picture tokenizer works in."""
    values = np.asarray(picture.convert("RGB")).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(values / np.float32(127.5) - np.float32(1))


def to_pictures(pixels: Tensor, *, rounded: bool = False) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B pictures; clipped, and truncated to 8 bits as in the released code.

    `rounded`: to the nearest of 256, as torchvision's `save_image` does, which JanusFlow's README uses.
    Raises ValueError for another shape, and for pixels that are not numbers.
    """
    if pixels.dim() != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"pixels have the shape {tuple(pixels.shape)}: (pictures, 3, height, width) is needed"
        )
    values = pixels.detach().to("cpu", torch.float32).numpy().transpose(0, 2, 3, 1)
    if np.isnan(values).any():
        raise ValueError(f"pixels contain NaN, the model computed no picture: {NOT_NUMBERS}")
    values = (np.clip(values, -1, 1) * 0.5 + 0.5) * 255 + 0.5 if rounded else (values + 1) / 2 * 255
    return [Image.fromarray(picture) for picture in np.clip(values, 0, 255).astype(np.uint8)]


def _finish(
    open_picture: Callable[[], AbstractContextManager[Image.Image]],
    name: str,
    corrected: bool,
    background: tuple[int, int, int],
) -> Image.Image:
    """Open, decode and convert to RGB, with one line for everything that can be wrong with a picture."""
    try:
        with open_picture() as picture:
            if 0 in picture.size:
                raise ValueError(f"it is {picture.size[0]} x {picture.size[1]} pixels")
            return _corrected(picture, background) if corrected else _without_alpha(picture)
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not a picture: give a PNG, JPEG or another format of Pillow's"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large ({one_line(error)}): scale it down first") from error
    # Any class of exception: Pillow's decoders raise whatever a damaged file makes them stumble over.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as a picture ({one_line(error)}): check the file") from error


def _without_alpha(picture: Image.Image) -> Image.Image:
    """To RGB, and of a palette by way of RGBA: it comes to the same, and Pillow does not warn of it."""
    has_alpha = picture.mode == "P" and "transparency" in picture.info
    return (picture.convert("RGBA") if has_alpha else picture).convert("RGB")


def _corrected(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in SIXTEEN_BIT_MODES:
        values, transparent = np.asarray(picture), picture.info.get("transparency")
        picture = _eight_bits(values)
        if transparent is not None:
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        canvas = Image.new("RGBA", picture.size, (*background, 255))
        picture = Image.alpha_composite(canvas, picture.convert("RGBA"))
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> Image.Image:
    """16-bit values to the nearest of 256; 65535 is white."""
    return Image.fromarray(((values.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8))


def _from_array(array: np.ndarray) -> Image.Image:
    described = f"an array of shape {array.shape} and dtype {array.dtype}"
    remedy = "give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool or floats in [0, 1]"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"{described} is no picture: {remedy}")
    if array.ndim == 3 and channels == 1:
        array = array[:, :, 0]
    if np.issubdtype(array.dtype, np.floating):
        # Not "outside": NaN is neither inside nor outside.
        if not ((array >= 0) & (array <= 1)).all():
            raise ValueError(f"{described} has values outside [0, 1]: {remedy}")
        values = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        values = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        values = np.asarray(((array.astype(np.int64) + 128) // 257).astype(np.uint8))
    elif array.dtype == np.uint8:
        values = array
    else:
        raise ValueError(f"{described} is no picture: {remedy}")
    return Image.fromarray(np.ascontiguousarray(values))


def _from_uri(uri: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma or not header.startswith("data:image") or not header.endswith(";base64"):
        raise ValueError(f"{uri[:40]!r} is not a picture's URI: it must begin with data:image/…;base64,")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: a letter beyond ASCII
        raise ValueError(f"a data: URI is not valid base64 ({error}): encode the picture again") from error
