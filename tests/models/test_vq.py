"""The picture tokenizer at other depths; the choice of codes; what it refuses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from janus.config import VQConfig
from janus.models.janus import Janus
from janus.models.vq import VQ, Downsample


def build(levels: int, *, codes: int = 40, code_width: int = 4) -> VQ:
    torch.manual_seed(0)
    multipliers = (1,) * (levels - 1) + (2,)
    return VQ(
        VQConfig(
            codes=codes,
            code_width=code_width,
            channels=32,
            encoder_multipliers=multipliers,
            decoder_multipliers=multipliers,
            residual_blocks=1,
            latent_channels=32,
        )
    ).eval()


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
@torch.no_grad()
def test_every_level_halves(levels: int) -> None:
    vq = build(levels)
    factor = 2 ** (levels - 1)
    assert vq.config.factor == factor
    pixels = torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1
    codes = vq.encode(pixels)
    assert codes.shape == (2, 2, 3)
    assert codes.dtype == torch.int64
    assert vq.decode(codes).shape == pixels.shape


@torch.no_grad()
def test_pictures_do_not_see_each_other(model: Janus, golden: dict[str, Tensor]) -> None:
    both = model.vq.encode(golden["vq.image"])
    for number in range(2):
        assert torch.equal(
            both[number : number + 1], model.vq.encode(golden["vq.image"][number : number + 1])
        )


@torch.no_grad()
def test_downsampling_pads_right_and_below_only() -> None:
    down = Downsample(1)
    down.conv.weight.zero_()[0, 0, 0, 0] = 1  # the top left of the kernel
    down.conv.bias.zero_()  # type: ignore[union-attr]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert down(x).flatten().tolist() == [0, 2, 8, 10]


@torch.no_grad()
def test_the_length_of_a_stored_entry_is_without_effect(model: Janus, golden: dict[str, Tensor]) -> None:
    codes = golden["vq.ids"].view(2, 8, 8)
    entries = model.vq.lookup(codes)
    torch.testing.assert_close(entries.norm(dim=1), torch.ones(2, 8, 8))
    assert model.vq.codebook.norm(dim=1).std() > 0.1, "the stored rows have many lengths"


@torch.no_grad()
def test_entries_are_contiguous(model: Janus) -> None:
    """Strides of channels-last would reach every convolution of the decoder: its error would be tenfold."""
    assert model.vq.lookup(torch.arange(6).view(1, 2, 3)).is_contiguous()


def test_any_integers_are_codes(model: Janus, close: Callable[[Tensor, Tensor], None]) -> None:
    codes = torch.tensor([[[0, 100], [7, 127]]])
    expected = model.vq.decode(codes)
    assert expected.shape == (1, 3, 16, 16)
    for dtype in (torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        close(model.vq.decode(codes.to(dtype)), expected)


def test_gradients_pass_straight_through() -> None:
    vq = build(2)
    latents = torch.randn(1, 4, 2, 2, requires_grad=True)
    weight = torch.randn(1, 4, 2, 2)
    quantized, codes = vq.quantize(latents)
    (quantized * weight).sum().backward()
    direct = latents.detach().requires_grad_()
    (F.normalize(direct, dim=1) * weight).sum().backward()
    assert torch.equal(latents.grad, direct.grad)  # type: ignore[arg-type]
    assert vq.codebook.grad is None, "the codebook learns from a loss of its own"
    torch.testing.assert_close(quantized, vq.lookup(codes))


@pytest.mark.parametrize(
    "codes",
    [torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(4, dtype=torch.long)],
    ids=["floats", "booleans", "flat"],
)
def test_codes_that_are_none_raise(codes: Tensor) -> None:
    with pytest.raises(ValueError, match=r"codes must be \(B, h, w\) integers, not"):
        build(2).decode(codes)


@pytest.mark.parametrize("code", [-1, 40], ids=["negative", "beyond the last"])
def test_codes_out_of_range_raise(code: int) -> None:
    with pytest.raises(ValueError, match=rf"{code}.* of a codebook of 40"):
        build(2).decode(torch.tensor([[[3, code]]]))


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 8, 7), (1, 3, 6, 8), (1, 1, 8, 8), (3, 8, 8)],
    ids=["width", "height", "gray", "no batch"],
)
def test_pixels_that_do_not_fit_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"H and W multiples of 4, not \("):
        build(3).encode(torch.zeros(shape))
