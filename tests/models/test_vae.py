"""The autoencoder against the original's; what it computes in 16 bits; what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus import cpu
from janus.models import vq_strips
from janus.models.vae import SDXL, VAE, LatentDistribution, VAEConfig
from janus.weights.vae import load_vae

Close = Callable[[Tensor, Tensor], None]
Golden = dict[str, Tensor]
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def vae(data: Path) -> VAE:
    return load_vae(data / "janusflow" / "vae", device="cpu", dtype="float32")


def build(*channels: int, groups: int = 8, force_upcast: bool = True) -> VAE:
    torch.manual_seed(0)
    vae = VAE(
        VAEConfig(
            channels=channels,
            residual_blocks=1,
            latent_channels=4,
            groups=groups,
            scaling_factor=0.5,
            force_upcast=force_upcast,
        )
    ).eval()
    for name, parameter in vae.named_parameters():
        if "norm" in name:  # ones and zeros would hide a factor that is forgotten
            parameter.data += 0.3 * torch.randn_like(parameter)
    return vae


# Against the original

# The tensors of the original's that are reproduced here; tests/models/test_coverage.py reads the names.
REPRODUCED: dict[str, Callable[[VAE, Golden], Tensor]] = {
    "vae.encoded_mean": lambda vae, golden: vae.encode(golden["vae.image"]).mean,
    "vae.encoded_logvar": lambda vae, golden: vae.encode(golden["vae.image"]).log_variance,
    "vae.decoded": lambda vae, golden: vae.decode(golden["vae.latent"]),
    "flow.image": lambda vae, golden: vae.decode(golden["flow.vae_input"]),
    # Inputs of 1e-3, beside which a norm's epsilon shows.
    "eps_probe.vae_mid_attn0.out": lambda vae, golden: vae.decoder.mid[1](
        golden["eps_probe.vae_mid_attn0.in0"]
    ),
    "eps_probe.vae_mid_resnet0.out": lambda vae, golden: vae.decoder.mid[0](
        golden["eps_probe.vae_mid_resnet0.in0"]
    ),
}


@pytest.mark.parametrize("name", REPRODUCED)
@torch.no_grad()
def test_the_originals_tensor(name: str, vae: VAE, flow_golden: Golden, close: Close) -> None:
    close(REPRODUCED[name](vae, flow_golden), flow_golden[name])


def test_every_norm_has_the_originals_epsilon() -> None:
    with torch.device("meta"):
        norms = [module for module in VAE(SDXL).modules() if isinstance(module, nn.GroupNorm)]
    # Two of each residual block, of which the levels have 2 or 3 and the middle 2; attention's; the last.
    assert len(norms) == (2 * (4 * 2 + 2) + 1 + 1) + (2 * (4 * 3 + 2) + 1 + 1)
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(1e-6, 32)}


# Sizes


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@torch.no_grad()
def test_every_level_halves(levels: int) -> None:
    vae = build(*(8, 16, 16, 24)[:levels])
    factor = 2 ** (levels - 1)
    assert vae.config.factor == factor
    pixels = torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1
    found = vae.encode(pixels)
    assert found.mean.shape == found.log_variance.shape == (2, 4, 2, 3)
    assert vae.decode(found.mean).shape == pixels.shape
    assert vae.decode(found.mean).is_contiguous()


@torch.no_grad()
def test_pictures_do_not_see_each_other(vae: VAE, close: Close) -> None:
    latents = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    close(vae.decode(latents), torch.cat([vae.decode(one) for one in latents.split(1)]))


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 8, 7), (1, 3, 6, 8), (1, 1, 8, 8), (3, 8, 8)],
    ids=["width", "height", "gray", "no batch"],
)
def test_pixels_that_do_not_fit_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"H and W multiples of 4, not \("):
        build(8, 8, 8).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8)], ids=["channels", "no batch"])
def test_latents_that_do_not_fit_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \(B, 4, h, w\), not \("):
        build(8).decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ()}, "from 1 to 16 levels, not 0"),
        ({"channels": (32,) * 17}, "from 1 to 16 levels, not 17"),
        ({"channels": (32, 40)}, r"multiples of 32 .*, not \(32, 40\)"),
        ({"channels": (32, 0)}, r"multiples of 32 .*, not \(32, 0\)"),
        ({"residual_blocks": 0}, "residual_blocks must be from 1 to 1000, not 0"),
        ({"residual_blocks": 1001}, "residual_blocks must be from 1 to 1000, not 1001"),
        ({"latent_channels": -1}, "must be positive, not -1 and 32"),
        ({"groups": 0}, "must be positive, not 4 and 0"),
        ({"scaling_factor": 0.0}, "scaling_factor must be a positive number, not 0.0"),
        ({"scaling_factor": float("inf")}, "scaling_factor must be a positive number, not inf"),
        ({"scaling_factor": float("nan")}, "scaling_factor must be a positive number, not nan"),
    ],
    ids=str,
)
def test_config_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SDXL, **change)


# The distribution


def test_a_sample_is_the_mean_and_the_noise_times_the_deviation() -> None:
    mean, variance = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.25])
    found = LatentDistribution(mean, variance.log())
    torch.testing.assert_close(found.sample(torch.tensor([0.5, 3.0])), torch.tensor([2.0, -0.5]))


def test_a_generator_gives_the_noise(vae: VAE, flow_golden: Golden) -> None:
    found = vae.encode(flow_golden["vae.image"])
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(3))
    assert torch.equal(found.sample(torch.Generator().manual_seed(3)), found.sample(noise))


def test_noise_of_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"noise must be \(2, 3\), not \(3,\)"):
        LatentDistribution(torch.zeros(2, 3), torch.zeros(2, 3)).sample(torch.zeros(3))


@torch.no_grad()
def test_the_variance_is_bounded_as_in_the_original() -> None:
    vae = build(8)
    vae.quant_conv.bias[4:6] = 1e4  # type: ignore[index]
    vae.quant_conv.bias[6:] = -1e4  # type: ignore[index]
    log_variance = vae.encode(torch.zeros(1, 3, 4, 4)).log_variance
    assert (log_variance[:, :2] == 20).all()
    assert (log_variance[:, 2:] == -30).all()


# 16 bits


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits are computed in 16 bits, by the modules, unless the autoencoder itself says otherwise."""
    monkeypatch.setattr(cpu, "widens", lambda device, dtype: False)
    monkeypatch.setattr(vq_strips, "serves", lambda _: False)


def loud(force_upcast: bool) -> VAE:
    """One whose activations are beyond float16 before the last norm, as the released ones' are."""
    vae = build(16, 16, force_upcast=force_upcast)
    for coder in (vae.encoder, vae.decoder):
        coder.conv_in.weight.data *= 1e6
        coder.conv_in.weight.data.clamp_(-6e4, 6e4)
    return vae


@pytest.mark.usefixtures("as_on_a_gpu")
@torch.no_grad()
def test_float16_is_computed_in_float32() -> None:
    vae = loud(force_upcast=True)
    pixels, latents = torch.rand(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    vae.half()
    encoded, decoded = vae.encode(pixels), vae.decode(latents)
    assert encoded.mean.dtype == decoded.dtype == torch.float16
    assert all(parameter.dtype == torch.float16 for parameter in vae.parameters())
    vae.float()
    for found, exact in ((encoded.mean, vae.encode(pixels).mean), (decoded, vae.decode(latents))):
        assert exact.isfinite().all()
        # One rounding, at the end.
        assert (found - exact).abs().max() <= exact.abs().max() * torch.finfo(torch.float16).eps


@pytest.mark.usefixtures("as_on_a_gpu")
@torch.no_grad()
def test_float16_itself_overflows_without() -> None:
    """What the test above would see if nothing were done."""
    vae = loud(force_upcast=False).half()
    assert not vae.decode(torch.randn(1, 4, 4, 4)).isfinite().all()


@torch.no_grad()
def test_gradients_reach_float16_weights() -> None:
    vae = build(8, 8).half()
    with torch.enable_grad():
        vae.decode(torch.randn(1, 4, 2, 2)).sum().backward()
    decoding = [vae.post_quant_conv, vae.decoder]
    gradients = [parameter.grad for part in decoding for parameter in part.parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float16 for gradient in gradients)


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "modules"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_a_cpu_without_these_convolutions_computes_in_float32(
    dtype: torch.dtype, strips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_onednn", lambda dtype: dtype == torch.float32)
    if not strips:
        monkeypatch.setattr(vq_strips, "serves", lambda _: False)
    vae = build(16, 16, force_upcast=False).to(dtype)
    latents, pixels = torch.randn(2, 4, 5, 6).to(dtype), (torch.rand(2, 3, 10, 12) * 2 - 1).to(dtype)

    def run() -> tuple[Tensor, Tensor]:
        if strips:  # these widen for themselves
            return vae.decoder(latents.to(vae.dtype)), vae.encoder(pixels.to(vae.dtype))
        return vae.decode(latents), vae.encode(pixels).mean

    found = run()
    vae.float()
    for result, exact in zip(found, run(), strict=True):
        assert result.dtype == dtype
        # One rounding, at the end.
        assert (result - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("grid", [(1, 7), (6, 1), (3, 5)], ids=str)
@torch.no_grad()
def test_strips_compute_what_the_modules_do(
    grid: tuple[int, int], close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where there is next to no rounding to hide behind."""
    monkeypatch.setattr(vq_strips, "STRIP", 6000)  # bytes: a few rows
    vae = build(32, 64, 96)
    latents = torch.randn(2, 4, *grid)
    close(vq_strips.decode(vae.decoder, latents), vae.decoder(latents))  # type: ignore[arg-type]
    pixels = torch.rand(2, 3, *(4 * side for side in grid)) * 2 - 1
    close(vq_strips.encode(vae.encoder, pixels), vae.encoder(pixels))  # type: ignore[arg-type]


@torch.no_grad()
def test_bfloat16_is_near_float32(vae: VAE, flow_golden: Golden) -> None:
    """Some twenty roundings of 2^-9 in a row, each as likely up as down."""
    half = VAE(vae.config)
    half.load_state_dict(vae.state_dict())
    half.bfloat16()
    exact = vae.decode(flow_golden["vae.latent"])
    found = half.decode(flow_golden["vae.latent"])
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 0.02 * exact.norm()
