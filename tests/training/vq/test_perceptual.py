"""LPIPS is optional: what is said without it, and how it is called where it is there."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from janus.training.vq import Perceptual


class Distance(nn.Module):
    """In the place of lpips' network: the same call, one number a picture, and dropout within it."""

    def __init__(self, *, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "vgg"
        assert not verbose
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout()

    def forward(self, pictures: Tensor, pixels: Tensor) -> Tensor:
        distances = self.dropout((pictures - pixels).square()).mean(dim=(1, 2, 3), keepdim=True)
        return self.scale * distances


def install(monkeypatch: pytest.MonkeyPatch, network: Any) -> None:
    module = ModuleType("lpips")
    module.LPIPS = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_without_the_package_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"pip install lpips torchvision, or train without it") as raised:
        Perceptual()
    assert "\n" not in str(raised.value)


def test_without_its_weights_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: Any) -> nn.Module:
        raise OSError("<urlopen error [Errno -2] Name or service not known>\nsecond line")

    install(monkeypatch, unreachable)
    with pytest.raises(ValueError, match=r"weights of lpips' vgg cannot be had .*Name or service") as raised:
        Perceptual()
    assert "\n" not in str(raised.value)


def test_it_judges_as_for_inference_and_does_not_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Distance)
    perceptual = Perceptual().train()
    pictures, pixels = torch.ones(2, 3, 8, 8, requires_grad=True), torch.zeros(2, 3, 8, 8)
    loss = perceptual(pictures, pixels)
    assert loss == 2, "twice the mean square, and no dropout"
    loss.backward()
    assert pictures.grad is not None
    assert (pictures.grad > 0).all()
    assert all(parameter.grad is None for parameter in perceptual.parameters())
