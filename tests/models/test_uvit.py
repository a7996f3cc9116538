"""The U-ViT against the original's tensors, its parts against their formulas, and other sizes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janus import cpu
from janus.config import FLOW_PRESETS, UViTConfig
from janus.models.janusflow import JanusFlow
from janus.models.uvit import (
    ConvNeXtBlock,
    GlobalResponseNorm,
    UViTDecoder,
    UViTEncoder,
    convolve,
    time_features,
)

Golden = dict[str, Tensor]
Close = Callable[[Tensor, Tensor], None]
Compute = Callable[[JanusFlow, Golden], Tensor]

SMALL = UViTConfig(
    latent_channels=4,
    width=6,
    decoder_width=10,
    time_width=8,
    kernel_size=2,
    padding=0,
    encoder_blocks=1,
    decoder_blocks=3,
    encoder_norm_eps=1e-6,
    decoder_norm_eps=1e-5,
)


def probe(name: str, golden: Golden) -> list[Tensor]:
    return [golden[key] for key in sorted(golden) if key.startswith(f"eps_probe.{name}.in")]


def through_blocks(flow: JanusFlow, golden: Golden) -> Tensor:
    x, time = probe("gen_enc_mid_block", golden)
    for block in flow.encoder.blocks:
        x = block(x, time)
    return x


def out_of_the_decoder(flow: JanusFlow, golden: Golden) -> Tensor:
    """Its last norm and convolution alone: without blocks, and with nothing left for the first norm."""
    (x,) = probe("gen_dec_out_conv0", golden)
    y = flow.decoder.out_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.pixel_shuffle(flow.decoder.out_conv(y), 2)


# The tensors of the original's that are reproduced here; test_janusflow.py reads the names.
REPRODUCED: dict[str, Compute] = {
    "flow.time_proj_step1": lambda flow, golden: time_features(golden["flow.t"][1], 48),
    "flow.t_emb": lambda flow, golden: torch.stack(
        [flow.encoder.time(t, torch.float32) for t in golden["flow.t"]]
    ),
    **{
        f"flow.step{step}.in_conv": lambda flow, golden, step=step: convolve(
            flow.encoder.in_conv, golden[f"flow.step{step}.z_in"]
        )
        for step in (0, 1)
    },
    **{
        f"flow.step{step}.enc_x": lambda flow, golden, step=step: flow.encoder(
            golden[f"flow.step{step}.z_in"], golden["flow.t"][step]
        )[0]
        for step in (0, 1)
    },
    "eps_probe.gen_enc_mid_block.out": through_blocks,
    "eps_probe.gen_dec.out": lambda flow, golden: flow.decoder(*probe("gen_dec", golden)),
    "eps_probe.gen_dec_out_conv0.out": out_of_the_decoder,
}


@pytest.mark.parametrize("name", REPRODUCED)
@torch.no_grad()
def test_the_originals_tensor(name: str, flow: JanusFlow, flow_golden: Golden, close: Close) -> None:
    close(REPRODUCED[name](flow, flow_golden), flow_golden[name])


@pytest.mark.parametrize("step", [0, 1])
@torch.no_grad()
def test_velocity_of_what_the_original_decodes(
    step: int, flow: JanusFlow, flow_golden: Golden, close: Close
) -> None:
    given = [flow_golden[f"flow.step{step}.{name}"] for name in ("dec_in", "enc_x")]
    close(flow.decoder(*given, flow_golden["flow.t_emb"][step]), flow_golden[f"flow.step{step}.v"])


# The parts


@given(
    times=st.lists(st.floats(0, 1000, width=32), min_size=1, max_size=3),
    pairs=st.integers(1, 40),
)
def test_time_features_are_cosines_then_sines(times: list[float], pairs: int) -> None:
    frequencies = [10000.0 ** (-number / pairs) for number in range(pairs)]
    expected = [
        [wave(time * each) for wave in (math.cos, math.sin) for each in frequencies] for time in times
    ]
    features = time_features(torch.tensor(times), 2 * pairs)
    assert features.dtype == torch.float32
    # A frequency is rounded to 24 bits, in two or three steps: at time 1000 that turns an angle by 2e-4.
    assert (features - torch.tensor(expected)).abs().max() < 2e-4


@given(batch=st.integers(1, 2), height=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_global_response_norm(batch: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = GlobalResponseNorm(5).double()
    for parameter in norm.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(batch, height, width, 5, generator=generator, dtype=torch.float64)
    response = x.pow(2).sum(dim=(1, 2)).sqrt()
    relative = response / (response.mean(dim=1, keepdim=True) + 1e-6)
    expected = x + norm.bias + norm.weight * relative[:, None, None] * x
    assert (norm(x) - expected).abs().max() < 1e-12  # float64 rounds at 1e-16
    zeros = norm(torch.zeros_like(x))
    assert torch.equal(zeros, norm.bias.expand_as(zeros))  # and not 0 / 0


@torch.no_grad()
def test_the_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = ConvNeXtBlock(6, 8, 1e-6).double()
    for parameter in block.parameters():
        parameter.normal_()
    x, time = torch.randn(2, 6, 3, 5, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    y = F.conv2d(F.pad(x, (3, 3, 3, 3)), block.depthwise.weight, block.depthwise.bias, groups=6)
    y = y.permute(0, 2, 3, 1)
    # The norm of the original computes in float32 whatever it is given.
    y = y.float()
    y = block.norm.weight * (y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).double()
    y = y @ block.expand.weight.t() + block.expand.bias
    y = block.response_norm(0.5 * y * (1 + torch.erf(y / math.sqrt(2))))
    y = x + (y @ block.contract.weight.t() + block.contract.bias).permute(0, 3, 1, 2)
    scale, shift = ((time * time.sigmoid()) @ block.modulation.weight.t() + block.modulation.bias).split(
        6, dim=1
    )
    expected = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    # Float32 in the norm, 6e-8 of it at each of a few roundings.
    assert (block(x, time) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_convolutions_in_float32_are_the_same(
    flow: JanusFlow, flow_golden: Golden, close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a CPU has none of 16 bits; in float32 it shows that nothing else changes."""
    monkeypatch.setattr(cpu, "widens", lambda device, dtype: True)
    for name in ("flow.step1.in_conv", "flow.step1.enc_x", "eps_probe.gen_dec.out"):
        close(REPRODUCED[name](flow, flow_golden), flow_golden[name])


# Sizes


@pytest.mark.parametrize(("kernel_size", "padding"), [(2, 0), (3, 1), (4, 1), (7, 3), (1, 0)])
@torch.no_grad()
def test_velocities_have_the_size_of_latents(kernel_size: int, padding: int) -> None:
    config = replace(SMALL, kernel_size=kernel_size, padding=padding)
    torch.manual_seed(0)
    encoder, decoder = UViTEncoder(config), UViTDecoder(config)
    assert (len(encoder.blocks), len(decoder.blocks)) == (1, 3)
    latents, t = torch.randn(3, 4, 6, 10), torch.tensor([0.0, 500.0, 999.0])
    features, time = encoder(latents, t)
    assert (features.shape, time.shape) == ((3, 6, 3, 5), (3, 8))
    velocity = decoder(torch.randn(3, 10, 3, 5), features, time)
    assert velocity.shape == latents.shape
    assert velocity.isfinite().all()


@torch.no_grad()
def test_a_row_is_a_function_of_its_own_latent_and_time() -> None:
    torch.manual_seed(0)
    encoder = UViTEncoder(SMALL)
    latents, t = torch.randn(3, 4, 6, 6), torch.tensor([0.0, 500.0, 999.0])
    together, times = encoder(latents, t)
    for row in range(3):
        alone, time = encoder(latents[row : row + 1], t[row : row + 1])
        # Products of other shapes add in another order.
        assert (alone - together[row]).abs().max() < 1e-5
        assert (time - times[row]).abs().max() < 1e-5
    assert (encoder(latents, t.flip(0))[0] - together).abs().max() > 1e-3


# The config

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"width": 7}, "odd width 7"),
    ({"kernel_size": 3, "padding": 0}, "kernel_size 3 with padding 0 does not halve"),
    ({"kernel_size": 2, "padding": 1}, "kernel_size 2 with padding 1 does not halve"),
    ({"padding": -1}, "kernel_size 2 with padding -1 does not halve"),
    ({"latent_channels": 0}, "latent_channels must be positive, not 0"),
    ({"decoder_norm_eps": 0.0}, r"decoder_norm_eps must be positive, not 0\.0"),
    ({"encoder_blocks": 0}, "encoder_blocks must be from 1 to 1000, not 0"),
    ({"decoder_blocks": 1001}, "decoder_blocks must be from 1 to 1000, not 1001"),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS, ids=lambda x: str(x)[:30])
def test_sizes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        replace(SMALL, **changes)
    assert "\n" not in str(raised.value)


def test_what_joins_the_parts() -> None:
    preset = FLOW_PRESETS["JanusFlow-1.3B"]
    assert preset.seen_tokens == 577
    with pytest.raises(ValueError, match="must be equal: 1024 and 2048"):
        replace(preset, uvit=replace(preset.uvit, time_width=1024))
    with pytest.raises(ValueError, match="quantization 'fp8' is unknown"):
        replace(preset, quantization="fp8")
