"""Pixels bit for bit as released, every kind of picture, and one line for everything that is none."""

import base64
import hashlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from janus.files import require_picture
from janus.processing.image import (
    ImageProcessor,
    load_picture,
    square_picture,
    to_pictures,
    to_signed_pixels,
)
from janus.weights.processor_config import ProcessorConfig


def config(values: dict[str, Any]) -> ProcessorConfig:
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return ProcessorConfig(**frozen)


def digest(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


HALF = ProcessorConfig(image_size=64, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def digests(data: Path) -> dict[str, Any]:
    return json.loads((data / "preprocess" / "digests.json").read_text())


@pytest.mark.parametrize("name", ["half64", "clip64", "nonorm64_meanNone"])
def test_pixels_are_the_originals(data: Path, digests: dict[str, Any], name: str) -> None:
    processor = ImageProcessor(config(digests["processors"][name]))
    assert list(processor.config.background) == digests["background_color"][name]
    expected = {key.split(".")[1]: value for key, value in digests["pixels"].items() if key.startswith(name)}
    assert len(expected) == 15
    for picture, value in expected.items():
        pixels = processor(data / "preprocess" / "images" / f"{picture}.png")
        assert (pixels.shape, pixels.dtype) == ((3, 64, 64), torch.float32)
        assert digest(pixels) == value, picture


def test_pixels_at_the_released_size(data: Path, digests: dict[str, Any]) -> None:
    processor = ImageProcessor(config(digests["processor_384"]))
    for picture, value in digests["pixels_384"].items():
        assert digest(processor(str(data / "preprocess" / "images" / f"{picture}.png"))) == value, picture


@pytest.mark.parametrize("name", ["half64", "clip64", "nonorm64_meanNone"])
def test_every_value_of_a_byte(data: Path, digests: dict[str, Any], name: str) -> None:
    expected = load_file(data / "preprocess" / "ramps.safetensors")[f"{name}.ramp256"]
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    ours = ImageProcessor(config(digests["processors"][name])).normalize(ramp)
    assert torch.equal(torch.from_numpy(ours)[:, 0], expected)


def test_the_full_set(shared: Path) -> None:
    folder = shared / "oracle" / "preprocess"
    golden = json.loads((folder / "golden.json").read_text())
    for name, expected in load_file(folder / "golden.safetensors").items():
        kind, picture = name.split(".")
        if picture != "ramp256":
            processor = ImageProcessor(config(golden["processors"][kind]))
            assert torch.equal(processor(folder / "images" / f"{picture}.png"), expected), name
    large = ImageProcessor(config(golden["processor_384"]))
    for picture, values in golden["images"].items():
        path = folder / "images" / f"{picture}.png"
        assert digest(large(path)) == values["pixel_values_384_sha256"], picture
        with Image.open(folder / "resized_padded_384" / f"{picture}.png") as padded:
            assert np.array_equal(np.asarray(large.fit(load_picture(path))), np.asarray(padded)), picture


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64, 97]), st.integers(1, 16))
def test_any_size_is_fitted(width: int, height: int, size: int, least: int) -> None:
    processor = ImageProcessor(ProcessorConfig(image_size=size, min_size=least))
    square = processor.fit(Image.new("RGB", (width, height), (200, 10, 30)))
    assert square.size == (size, size)
    inside = (np.asarray(square) == (200, 10, 30)).all(axis=2)
    longest = max(width, height)
    assert inside.any(axis=1).sum() == max(int(height / longest * size), least)
    assert inside.any(axis=0).sum() == max(int(width / longest * size), least)
    assert set(map(tuple, np.asarray(square)[~inside])) <= {processor.config.background}


def test_a_wide_strip() -> None:
    assert ImageProcessor(HALF)(Image.new("RGB", (20_000, 10))).shape == (3, 64, 64)


MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("corrected", [False, True])
def test_every_mode(mode: str, corrected: bool) -> None:
    source = Image.new(mode, (5, 3))
    picture = load_picture(source, corrected=corrected)
    assert (picture.mode, picture.size) == ("RGB", (5, 3))
    if not corrected:
        assert picture.tobytes() == source.convert("RGB").tobytes()


def test_alpha_is_dropped_or_composited() -> None:
    source = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert load_picture(source).getpixel((0, 0)) == (255, 0, 0)
    assert load_picture(source, corrected=True, background=(1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert load_picture(palette, corrected=True, background=(9, 9, 9)).getpixel((0, 0)) == (9, 9, 9)
    drawn = ImageProcessor(HALF, corrected=True)(source)
    assert torch.equal(drawn, ImageProcessor(HALF)(Image.new("RGB", (2, 2), (127, 127, 127))))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    source = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode="P")
    source.putpalette([255, 0, 0, 0, 0, 255])
    source.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = load_picture(tmp_path / "palette.png")
    assert [picture.getpixel(place) for place in ((0, 0), (1, 0))] == [(255, 0, 0), (0, 0, 255)]


def test_sixteen_bits_have_a_transparent_value_too(tmp_path: Path) -> None:
    values = np.array([[0, 1000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png", transparency=1000)
    picture = load_picture(tmp_path / "deep.png", corrected=True, background=(9, 8, 7))
    assert np.asarray(picture)[0].tolist() == [[0, 0, 0], [9, 8, 7]]


@pytest.mark.parametrize("kind", ["gif", "tiff", "png"])
def test_no_file_stays_open(kind: str, tmp_path: Path) -> None:
    """Of several frames Pillow leaves it open, and so do errors of a damaged one as long as they live."""
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    frames = [Image.fromarray(value) for value in values]
    file = tmp_path / f"frames.{kind}"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        assert load_picture(file).size == (64, 64)
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"check the file|is not a picture") as raised:
            load_picture(file)
        held = [link.resolve() for link in Path("/proc/self/fd").glob("*")]  # none where there is no /proc
    assert file.resolve() not in held, raised


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (2, 2), "red").save(tmp_path / "mine.png")
    assert load_picture("~/mine.png").size == (2, 2)
    require_picture("~/mine.png")
    with pytest.raises(ValueError, match=r"~nobody-of-this-name/a.png is no path"):
        load_picture("~nobody-of-this-name/a.png")
    with pytest.raises(FileNotFoundError, match=r"~nobody-of-this-name/a.png is not a file"):
        require_picture("~nobody-of-this-name/a.png")
    with pytest.raises(FileNotFoundError, match=r"^'' is not a file"):
        require_picture("")


def test_rotation_is_ignored_or_applied(data: Path) -> None:
    path = data / "preprocess" / "images" / "exif_orientation6.png"
    width, height = load_picture(path).size
    assert load_picture(path, corrected=True).size == (height, width)


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    path = tmp_path / "deep.png"
    corrected = np.asarray(load_picture(path, corrected=True))[0, :, 0]
    assert corrected.tolist() == [0, 1, 128, 255]
    with Image.open(path) as opened:
        assert load_picture(path).tobytes() == opened.convert("RGB").tobytes()
    assert np.asarray(load_picture(values))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rgb = np.asarray(load_picture(values))
    expected = values if values.ndim == 3 else values[:, :, None]
    assert np.array_equal(rgb, np.broadcast_to(expected[:, :, :3], (4, 6, 3)))
    for dtype in (np.float32, np.float64):
        assert np.array_equal(np.asarray(load_picture((values / 255).astype(dtype))), rgb)
    black = np.asarray(load_picture(values > 127))
    assert np.array_equal(
        black[..., 0] > 0, np.broadcast_to(expected, (4, 6, expected.shape[2]))[..., 0] > 127
    )
    assert np.array_equal(np.asarray(load_picture(np.asfortranarray(values)[::-1])), rgb[::-1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), dtype=np.int64),
        np.zeros((2, 2), dtype=np.complex64),
        np.zeros((2, 2, 2), dtype=np.uint8),
        np.zeros((3, 4, 4), dtype=np.uint8)[None],
        np.zeros(5, dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.full((2, 2), 1.5),
        np.full((2, 2), -0.1),
        np.full((2, 2), np.nan),
    ],
)
def test_arrays_that_are_no_picture(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"shape \({array.shape[0]},.*dtype {array.dtype}"):
        load_picture(array)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_data_uri() -> None:
    source = Image.new("RGB", (4, 4), (1, 2, 3))
    body = base64.b64encode(encoded(source)).decode()
    assert load_picture(f"data:image/png;base64,{body}").tobytes() == source.tobytes()
    for uri in (f"data:text/plain;base64,{body}", "data:image/png;base64", f"data:image/png,{body}"):
        with pytest.raises(ValueError, match="not a picture's URI"):
            load_picture(uri)
    with pytest.raises(ValueError, match="not valid base64"):
        load_picture("data:image/png;base64,a?b")
    with pytest.raises(ValueError, match="data: URI is not a picture"):
        load_picture("data:image/png;base64," + base64.b64encode(b"text").decode())


def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"^\S*none\.png does not exist: give the path of a picture$"):
        load_picture(tmp_path / "none.png")
    with pytest.raises(
        ValueError, match=r"^iVBORw0KGgo.{29}… is no path \(.*\): give that of a picture, or, of one in"
    ):
        load_picture("iVBORw0KGgo" + "A" * 5000)
    with pytest.raises(ValueError, match="is a folder"):
        load_picture(tmp_path)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for name in ("empty", "text"):
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}\.png is not a picture[^\n]*$"):
            load_picture(str(tmp_path / f"{name}.png"))
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "tiff", "webp"):
        content = encoded(whole, kind)
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"^[^\n]*cut\.{kind}[^\n]*$"):
            load_picture(tmp_path / f"cut.{kind}")
    with pytest.raises(ValueError, match="address: download"):
        load_picture("https://example.org/a.png")
    for value in (None, 3, b"bytes", torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match=f"a picture is {type(value).__name__}"):
            load_picture(value)
    with pytest.raises(ValueError, match="0 x 4 pixels"):
        load_picture(Image.new("RGB", (0, 4)))
    (tmp_path / "whole.png").write_bytes(encoded(whole))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"whole\.png is too large"):
        load_picture(tmp_path / "whole.png")


@pytest.mark.parametrize("size", [(100, 57), (57, 100), (64, 64), (20, 600)])
def test_square_picture_is_the_center(size: tuple[int, int]) -> None:
    # Each half in one color: the border must stay in the middle of the square.
    half = Image.new("RGB", size, (250, 0, 0))
    half.paste((0, 0, 250), (0, 0, size[0] // 2, size[1]))
    square = np.asarray(square_picture(half, 32)).astype(int)
    assert square.shape == (32, 32, 3)
    border = size[0] // 2 / size[0] if size[0] <= size[1] else 0.5
    assert (square[:, : int(32 * border) - 3] == (0, 0, 250)).all()
    assert (square[:, int(32 * border) + 4 :] == (250, 0, 0)).all()
    with pytest.raises(ValueError, match="size is 0"):
        square_picture(half, 0)


@pytest.mark.parametrize("size", [(20000, 3), (1, 300000)])
def test_of_a_very_long_strip_only_the_middle_is_resized(size: tuple[int, int]) -> None:
    """The whole strip at the short side's scale would be gigabytes."""
    strip = Image.new("RGB", size, (200, 0, 0))
    middle = (size[0] // 2 - 1, size[1] // 2 - 1) if min(size) > 1 else (0, size[1] // 2)
    strip.putpixel(middle, (0, 0, 255))
    square = np.asarray(square_picture(strip, 64))
    assert square.shape == (64, 64, 3)
    assert square[..., 2].max() > 50


def test_square_picture_of_a_square_is_pillows_bicubic() -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    expected = picture.resize((32, 32), Image.Resampling.BICUBIC)
    assert square_picture(picture, 32).tobytes() == expected.tobytes()
    gray = square_picture(picture.convert("L"), 32)
    assert (gray.mode, gray.size) == ("RGB", (32, 32))


def test_signed_pixels_come_back() -> None:
    values = np.random.default_rng(2).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    pixels = to_signed_pixels(Image.fromarray(values))
    assert (pixels.shape, pixels.dtype) == ((3, 8, 9), torch.float32)
    assert (pixels.min() >= -1) & (pixels.max() <= 1)
    expected = torch.from_numpy(values).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_pictures_are_the_originals(data: Path, name: str) -> None:
    golden = load_file(data / "januspro" / "golden.safetensors")
    pixels = golden[f"imagegen.{name}.pixels"]
    before = pixels.clone()
    pictures = to_pictures(pixels)
    ours = np.stack([np.asarray(picture) for picture in pictures])
    assert np.array_equal(ours, golden[f"imagegen.{name}.uint8"].numpy())
    assert torch.equal(pixels, before)


def test_pixels_that_are_no_picture() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4, 4\)"):
        to_pictures(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="NaN"):
        to_pictures(torch.full((1, 3, 4, 4), torch.nan))
    infinite = torch.full((1, 3, 2, 2), torch.inf, dtype=torch.bfloat16)
    assert np.asarray(to_pictures(infinite)[0]).min() == 255
