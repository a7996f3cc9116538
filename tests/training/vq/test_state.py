"""Settings that contradict themselves, and the state that is saved and gone on from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from janus.models.vq import VQ
from janus.training.vq import VQState, VQTraining


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0}, "learning_rate must be a number above 0, not 0"),
        ({"clip": float("nan")}, "clip must be a number above 0, not nan"),
        ({"commitment": -0.25}, "commitment must be a number of at least 0, not -0.25"),
        ({"entropy": True}, "entropy must be a number of at least 0, not True"),
        ({"usage_decay": 1}, "usage_decay must be a number from 0 to 0.9999, not 1"),
        ({"quantize_from": -1}, "quantize_from must be a whole number of at least 0, not -1"),
        ({"discriminator_from": 2.5}, "discriminator_from must be a whole number of at least 0, not 2.5"),
        ({"revive_every": 0}, "revive_every must be a whole number of at least 1, not 0"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers from 0 to 0.9999, not 1.0"),
        ({"betas": (0.9,)}, r"betas must be two numbers, not \(0.9,\)"),
        ({"background": (128, 128)}, r"background must be three levels, of R, G and B, not \(128, 128\)"),
        ({"background": (0, 0, 256)}, r"background must be of levels up to 255, not \(0, 0, 256\)"),
        ({"background": (0, 0, -1)}, "background must be a whole number of at least 0, not -1"),
        ({"merge_share": 0, "decoder_only_from": 9}, "merge_share must be a share above 0, up to 1, not 0"),
        ({"merge_share": 0.99}, "merge_share 0.99 has no moment: .* decoder_only_from"),
        (
            {"quantize_from": 10, "decoder_only_from": 9},
            "decoder_only_from 9 is before quantize_from 10: the decoder alone can learn from codes only",
        ),
    ],
)
def test_settings_that_cannot_be_raise(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQTraining(**settings)


def test_the_defaults_are_llamagen_s() -> None:
    config = VQTraining()
    assert (config.learning_rate, config.betas, config.clip) == (1e-4, (0.9, 0.95), 1.0)
    assert (config.l1, config.l2, config.codebook, config.commitment, config.entropy) == (0, 1, 1, 0.25, 0)
    assert (config.adversarial, config.temperature) == (0.5, 0.01)


def test_stages_begin_at_their_steps() -> None:
    config = VQTraining(quantize_from=2, discriminator_from=3, decoder_only_from=4)
    assert [config.quantizes(step) for step in range(5)] == [False, False, True, True, True]
    assert [config.is_adversarial(step) for step in range(5)] == [False] * 3 + [True] * 2
    assert [config.trains_decoder_only(step) for step in range(5)] == [False] * 4 + [True]
    never = VQTraining()
    assert not never.is_adversarial(10**9)
    assert not never.trains_decoder_only(10**9)


def test_the_discriminator_is_of_the_seed_alone(build: Callable[..., VQ]) -> None:
    vq = build()
    before = torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        config = VQTraining(discriminator_from=0, seed=seed, discriminator_channels=4)
        discriminator = VQState.start(vq, config).discriminator
        assert discriminator is not None
        weights.append(torch.cat([parameter.flatten() for parameter in discriminator.parameters()]))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_optimizer_is_of_what_learns_or_the_caller_s(build: Callable[..., VQ]) -> None:
    vq = build()
    vq.encoder.requires_grad_(False)
    (group,) = VQState.start(vq, VQTraining()).optimizer.param_groups
    learning = {id(parameter) for parameter in vq.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in group["params"]} == learning
    own = torch.optim.SGD(vq.decoder.parameters())
    assert VQState.start(vq, VQTraining(), optimizer=own).optimizer is own


def test_weights_that_are_not_float32_raise(build: Callable[..., VQ]) -> None:
    with pytest.raises(ValueError, match=r"trains in float32, not torch.bfloat16: set bfloat16"):
        VQState.start(build().bfloat16(), VQTraining())


def test_a_state_of_other_settings_raises(build: Callable[..., VQ]) -> None:
    vq = build()
    saved = VQState.start(vq, VQTraining(discriminator_from=0, discriminator_channels=4)).state_dict()
    with pytest.raises(ValueError, match="differs in discriminator, discriminator_optimizer: go on with"):
        VQState.start(vq, VQTraining()).load_state_dict(saved)
