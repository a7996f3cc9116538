"""The picture tokenizer in strips: what it computes, how far it is from float32, and when it is taken."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from janus import cpu
from janus.config import VQConfig
from janus.models import vq_strips
from janus.models.vq import VQ

Close = Callable[[Tensor, Tensor], None]


def build(*multipliers: int, channels: int = 64) -> VQ:
    torch.manual_seed(0)
    vq = VQ(
        VQConfig(
            codes=50,
            code_width=4,
            channels=channels,
            encoder_multipliers=multipliers,
            decoder_multipliers=multipliers,
            residual_blocks=1,
            latent_channels=32,
        )
    ).eval()
    for name, parameter in vq.named_parameters():
        if "norm" in name:  # ones and zeros would hide a factor that is forgotten
            parameter.data += 0.3 * torch.randn_like(parameter)
    return vq


@pytest.fixture(params=[1, 6000, 1 << 21], ids=["rows", "strips", "whole"])
def strip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a strip: a row each, a few rows, or all of the picture."""
    monkeypatch.setattr(vq_strips, "STRIP", request.param)
    return int(request.param)


@pytest.mark.usefixtures("strip")
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (6, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (2, 1, 3)], ids=str)
@torch.no_grad()
def test_strips_compute_what_the_modules_do(
    multipliers: tuple[int, ...], grid: tuple[int, int], close: Close
) -> None:
    """In float32, where there is next to no rounding to hide behind.

    Four channels to a group: the norm of a grid of one has few values, and two would magnify rounding.
    """
    vq = build(*multipliers, channels=128)
    latents = torch.randn(2, 32, *grid)
    expected = vq.decoder(latents)
    given = latents.clone()
    close(vq_strips.decode(vq.decoder, given), expected)
    assert torch.equal(given, latents), "the caller's tensor is not overwritten"

    pixels = torch.rand(2, 3, *(vq.config.factor * side for side in grid)) * 2 - 1
    given = pixels.clone()
    close(vq_strips.encode(vq.encoder, given), vq.encoder(pixels))
    assert torch.equal(given, pixels)


@pytest.mark.usefixtures("strip")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_is_as_near_to_float32_as_the_modules(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.25: the errors of either are of as many roundings, and differ by what these happen to be."""
    vq = build(1, 2).to(dtype)
    codes = torch.randint(50, (2, 5, 6))
    pixels = torch.rand(2, 3, 10, 12) * 2 - 1
    halves = [vq.decode(codes), vq.latents(pixels)]
    monkeypatch.setattr(vq_strips, "serves", lambda _: False)
    plain = [vq.decode(codes), vq.latents(pixels)]
    vq.float()
    for half, other, exact in zip(halves, plain, [vq.decode(codes), vq.latents(pixels)], strict=True):
        assert half.dtype == dtype
        assert not torch.equal(half, other), "the two ways round differently: else one was taken twice"
        assert (half - exact).norm() <= 1.25 * (other - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_a_cpu_without_these_convolutions_computes_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_onednn", lambda dtype: dtype == torch.float32)
    vq = build(1, 2).to(dtype)
    latents, pixels = torch.randn(2, 32, 5, 6).to(dtype), (torch.rand(2, 3, 10, 12) * 2 - 1).to(dtype)
    found = [vq.decoder(latents), vq.encoder(pixels)]
    assert all(parameter.dtype == dtype for parameter in vq.parameters())
    vq.float()
    for result, exact in zip(found, [vq.decoder(latents.float()), vq.encoder(pixels.float())], strict=True):
        assert result.dtype == dtype
        # One rounding, at the end.
        assert (result - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_each_other() -> None:
    vq = build(1, 2).bfloat16()
    codes = torch.randint(50, (3, 4, 5))
    assert torch.equal(vq.decode(codes), torch.cat([vq.decode(one) for one in codes.split(1)]))
    pixels = torch.rand(3, 3, 8, 10) * 2 - 1
    assert torch.equal(vq.latents(pixels), torch.cat([vq.latents(one) for one in pixels.split(1)]))


@torch.no_grad()
def test_the_layout_is_the_modules() -> None:
    vq = build(1, 2).bfloat16()
    assert vq.decode(torch.randint(50, (2, 3, 3))).is_contiguous()
    assert vq.latents(torch.rand(2, 3, 6, 6)).is_contiguous()


@torch.no_grad()
def test_weights_that_change_are_seen() -> None:
    vq = build(1, 2).bfloat16()
    codes = torch.randint(50, (1, 3, 3))
    before = vq.decode(codes)
    for level in vq.decoder.levels[:1]:
        level.resample.conv.weight *= 2
    assert not torch.equal(vq.decode(codes), before)


def test_float32_and_gradients_take_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the original's pictures in float32, and a graph where one is wanted."""

    def refuse(*_: object) -> Tensor:
        raise AssertionError("taken in strips")

    monkeypatch.setattr(vq_strips, "decode", refuse)
    monkeypatch.setattr(vq_strips, "encode", refuse)
    vq = build(1, 2)
    codes, pixels = torch.randint(50, (1, 3, 3)), torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        vq.decode(codes), vq.encode(pixels)
    vq.bfloat16()
    (vq.decode(codes).float().sum() + vq.latents(pixels).float().sum()).backward()
    assert all(p.grad is not None for name, p in vq.named_parameters() if name != "codebook")
    with torch.no_grad(), pytest.raises(AssertionError, match="taken in strips"):
        vq.decode(codes)


@torch.no_grad()
def test_no_pictures_are_none() -> None:
    vq = build(1, 2).bfloat16()
    assert vq.decode(torch.zeros(0, 3, 3, dtype=torch.long)).shape == (0, 3, 6, 6)
