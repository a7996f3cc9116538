"""Linear layers that multiply in float32: the numbers of float32, rounded once, forward and backward."""

import copy

import pytest
import torch
from torch import Tensor, nn

from janus.models.llama import JoinedLinear
from janus.training.widen import widen_linears


def rounded(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_of_float32_rounded_once(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=bias, dtype=torch.bfloat16)
    exact = copy.deepcopy(layer).float()
    widen_linears(layer)
    x = torch.randn(shape).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    result, truth = layer(x), exact(wide)
    assert torch.equal(result, rounded(truth))
    gradient = torch.randn(truth.shape).bfloat16()
    result.backward(gradient)
    truth.backward(gradient.float())
    assert x.grad is not None
    assert wide.grad is not None
    assert torch.equal(x.grad, rounded(wide.grad))
    for own, exactly in zip(layer.parameters(), exact.parameters(), strict=True):
        assert own.grad is not None
        assert exactly.grad is not None
        assert own.grad.dtype == torch.bfloat16
        # A bit of bfloat16: what ties may be rounded the other way.
        torch.testing.assert_close(own.grad, rounded(exactly.grad), rtol=2**-8, atol=1e-6)


def test_what_stands_still_gets_no_gradient() -> None:
    layer = JoinedLinear(8, (4, 4)).bfloat16().requires_grad_(False)
    widen_linears(layer)
    x = torch.randn(3, 8).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
