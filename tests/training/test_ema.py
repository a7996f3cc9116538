"""The moving average: its recurrence, the swap that leaves no trace, and its state."""

import copy

import pytest
import torch
from torch import nn

from janus.models.janus import Janus
from janus.training.ema import EMA


def layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].requires_grad_(False)
    return model


def test_average_is_the_recurrence() -> None:
    """Powers of two, so that every number is exact."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(8.0)
        ema = EMA(model, 0.75)
        for value, expected in ((4.0, 7.0), (-1.0, 5.0), (5.0, 5.0)):
            model.weight.fill_(value)
            ema.update()
            assert ema.averages["weight"].item() == expected


def test_a_decay_of_0_is_the_weights() -> None:
    model = layers()
    ema = EMA(model, 0.0)
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    assert torch.equal(ema.averages["0.weight"], model[0].weight)


def test_what_is_left_out_stays_as_it_is() -> None:
    model = layers()
    ema = EMA(model, 0.5, without=("0.bias",))
    assert set(ema.averages) == {"0.weight"}
    with torch.no_grad():
        model[0].bias.fill_(3)
    with ema.swapped():
        assert (model[0].bias == 3).all()


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decays_that_are_none(decay: float) -> None:
    with pytest.raises(ValueError, match=f"at least 0 and below 1, not {decay}"):
        EMA(layers(), decay)


def test_only_what_learns_is_averaged_and_in_float32() -> None:
    model = layers().to(torch.bfloat16)
    ema = EMA(model, 0.999)
    assert set(ema.averages) == {"0.weight", "0.bias"}
    before = ema.averages["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    moved = ema.averages["0.weight"] - before
    # A thousandth of 1 beside numbers below 1 is under bfloat16's spacing of 2^-8, and kept all the same.
    assert torch.allclose(moved, torch.full_like(moved, 0.001), atol=1e-5, rtol=0)
    assert ema.averages["0.weight"].dtype == torch.float32


def test_averages_do_not_learn_and_are_no_views() -> None:
    model = layers()
    ema = EMA(model, 0.5)
    assert not any(average.requires_grad for average in ema.averages.values())
    assert ema.averages["0.weight"].data_ptr() != model[0].weight.data_ptr()


def test_within_the_swap_the_averages_compute_and_nothing_stays() -> None:
    model = layers()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    weight = model[0].weight
    before, address, average = weight.detach().clone(), weight.data_ptr(), ema.averages["0.weight"].clone()
    with ema.swapped():
        assert model[0].weight is weight
        assert weight.data_ptr() == address
        assert torch.equal(weight, average)
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)
    assert torch.equal(ema.averages["0.weight"], average)


def test_the_swap_ends_when_what_is_inside_fails() -> None:
    model = layers()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    before = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        raise RuntimeError("inside")
    assert torch.equal(model[0].weight, before)


def test_state_goes_on_bit_by_bit() -> None:
    torch.manual_seed(0)
    model = layers()
    ema = EMA(model, 0.9)
    changes = [torch.randn(3, 2) for _ in range(4)]
    kept = {}
    with torch.no_grad():
        for number, change in enumerate(changes):
            if number == 2:
                kept = copy.deepcopy(ema.state_dict()), copy.deepcopy(model.state_dict())
            model[0].weight.add_(change)
            ema.update()
        again = layers()
        again.load_state_dict(kept[1])
        other = EMA(again, 0.9)
        other.load_state_dict(kept[0])
        for change in changes[2:]:
            again[0].weight.add_(change)
            other.update()
    for name, average in ema.averages.items():
        assert torch.equal(other.averages[name], average)


def test_state_of_other_parameters() -> None:
    ema = EMA(layers(), 0.9)
    state = ema.state_dict()
    with pytest.raises(
        ValueError, match=r"^the averages differ from what learns in 1 names, such as 0\.bias"
    ):
        ema.load_state_dict({"0.weight": state["0.weight"]})
    with pytest.raises(
        ValueError, match=r"^the average of 0\.weight is \(2, 2\), and the parameter \(3, 2\)"
    ):
        ema.load_state_dict({**state, "0.weight": torch.zeros(2, 2)})


def test_of_a_whole_model(model: Janus) -> None:
    fresh = copy.deepcopy(model)
    ema = EMA(fresh, 0.5)
    with torch.no_grad():
        for weight in fresh.parameters():
            weight.mul_(3)
    ema.update()
    with ema.swapped():
        for (_, ours), (_, theirs) in zip(fresh.named_parameters(), model.named_parameters(), strict=True):
            assert torch.equal(ours, torch.lerp(theirs, theirs * 3, 0.5))
