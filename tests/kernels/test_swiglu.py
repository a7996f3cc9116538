"""SwiGLU and its gradients: the kernels and the reference, against float64 and eager PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, needs_triton, random, untouched
from janus.kernels import choice
from janus.kernels.launch import recorded
from janus.kernels.swiglu import (
    _launch_swiglu,
    _launch_swiglu_backward,
    swiglu,
    swiglu_backward_op,
    swiglu_op,
)

IMPLEMENTATIONS = ["triton", "torch"]
SHAPES = [(1, 1), (7,), (2, 5632), (3, 11008), (2, 3, 1023), (4, 1024), (3, 1025), (0, 8), (3, 0)]

pytestmark = needs_triton


def halves(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The two halves of a merged projection."""
    gate, up = random(*shape[:-1], 2 * shape[-1], seed=seed, dtype=dtype).mul(3).chunk(2, dim=-1)
    return gate, up


def results(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product and both gradients."""
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    product = swiglu(gate, up)
    return product.detach(), *torch.autograd.grad(product, (gate, up), gradient)


def assert_close(gate: Tensor, up: Tensor, gradient: Tensor) -> None:
    """The kernels' error is at most twice eager PyTorch's in the same dtype, both against float64."""
    with choice.use("triton"):
        ours = results(gate, up, gradient)
    with choice.use("torch"):
        eager = results(gate, up, gradient)
    doubles = [x.detach().double().requires_grad_() for x in (gate, up)]
    product = F.silu(doubles[0]) * doubles[1]
    exact = (product.detach(), *torch.autograd.grad(product, doubles, gradient.double()))
    # What sigmoid and slope multiply: near their zeros they are exact to a rounding of 1, not of themselves.
    terms = [a.double() * b.double() for a, b in ((gate, up), (gradient, up), (gradient, gate))]
    names = ("product", "of gate", "of up")
    for name, our, theirs, true, term in zip(names, ours, eager, exact, terms, strict=True):
        assert our.shape == true.shape, name
        assert our.dtype == gate.dtype, name
        assert our.is_contiguous(), name
        if not true.numel():
            continue
        # Of a few elements PyTorch may have rounded all without error: some roundings are always allowed.
        rounding = 2 * torch.finfo(gate.dtype).eps * term.abs().max()
        error, allowed = (our - true).abs().max(), 2 * (theirs - true).abs().max() + rounding
        assert error <= allowed, name


# --- what comes out ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_close(*halves(*shape, dtype=dtype), random(*shape, seed=1, dtype=dtype))


@settings(max_examples=15)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    width=st.integers(1, 2100),
    seed=st.integers(0, 9999),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(leading: list[int], width: int, seed: int, dtype: torch.dtype) -> None:
    gate, up = halves(*leading, width, seed=seed, dtype=dtype)
    assert_close(gate, up, random(*leading, width, seed=seed + 1, dtype=dtype))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32])
def test_silu_is_rounded_before_the_product_as_eager_pytorch_rounds(dtype: torch.dtype) -> None:
    gate, up = halves(4, 11008, dtype=dtype)
    with choice.use("triton"):
        product = swiglu(gate, up)
    # The last bit of a float32 exp decides a rounding to 16 bits once in thousands; of products whose silu is
    # not rounded first, one in four differs.
    assert (product != F.silu(gate) * up).float().mean() <= 1e-3
    assert ((F.silu(gate.float()) * up).to(dtype) != F.silu(gate) * up).float().mean() > 0.1


def test_float32_agrees_to_the_last_bits() -> None:
    gate, up = halves(2, 5632)
    with choice.use("triton"):
        product = swiglu(gate, up)
    # A few roundings, and an exp whose error grows with its argument, here up to 14, on a GPU.
    torch.testing.assert_close(product, F.silu(gate) * up, rtol=32 * 2**-24, atol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_the_exponential_overflows(dtype: torch.dtype) -> None:
    gate = torch.tensor([-60000.0, -200, -88, -0.0, 0, 88, 200, 60000], device=DEVICE, dtype=dtype)
    ones = torch.ones_like(gate)
    with choice.use("triton"):
        product, of_gate, of_up = results(gate, ones, ones)
    # The sigmoid of -88 is a subnormal float, which a GPU may flush to zero: 88 of them.
    torch.testing.assert_close(product, F.silu(gate), rtol=0, atol=2e-36)
    torch.testing.assert_close(of_up, F.silu(gate), rtol=0, atol=2e-36)
    torch.testing.assert_close(
        of_gate, torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]).to(gate), rtol=0, atol=2e-36
    )


# --- how it is read ---


def test_the_halves_of_a_merged_projection_are_not_copied() -> None:
    gate, up = torch.empty(2, 3, 2 * 40, device="meta").chunk(2, dim=-1)
    with recorded() as launches:
        _launch_swiglu(gate, up)
        _launch_swiglu_backward(gate, gate, up)
    assert len(launches) == 2
    for launch in launches:
        assert launch.arguments["gate_ptr"]._base is not None
        assert launch.arguments["stride_gate"] == launch.arguments["stride_up"] == 80


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[..., 3:24],
        lambda x: x[:, ::2],
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(1, 2),
        lambda x: x[..., ::2],
        lambda x: x[:, :1].expand(-1, 9, -1),
        lambda x: x[..., :1].expand(-1, -1, 5),
        lambda x: x[0, 0],
    ],
    ids=["window", "rows", "transposed", "columns", "odd", "one row", "one column", "vector"],
)
def test_strided_rows(view) -> None:  # type: ignore[no-untyped-def]
    gate, up, gradient = (view(random(4, 6, 50, seed=seed)) for seed in range(3))
    assert_close(gate, up, gradient)
    assert_close(gate, up.contiguous(), gradient)


def test_offsets_beyond_32_bits() -> None:
    memory = untouched(2**31 + 4096)
    gate = memory.as_strided((3, 64), (2**30, 1))
    gate.copy_(random(3, 64))
    assert_close(gate, gate.clone(), gate)
    assert_close(gate.clone(), gate, gate.clone())


# --- as an op ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_input_is_returned_or_changed(implementation: str) -> None:
    gate, up = halves(3, 40)
    before = gate.clone(), up.clone()
    with choice.use(implementation):
        for output in (*results(gate, up, torch.ones_like(gate)), swiglu_op(gate, up)):
            assert output.untyped_storage().data_ptr() != gate.untyped_storage().data_ptr()
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])


def test_in_the_torch_case_it_is_eager_pytorch_to_the_bit() -> None:
    gate, up = halves(3, 5632)
    with choice.use("torch"):
        product = swiglu(gate.requires_grad_(), up)
        assert torch.equal(product, F.silu(gate) * up)
        assert product.grad_fn is not None
        assert product.grad_fn.name() == "MulBackward0", "differentiated by PyTorch itself"


def test_the_same_gradient_for_a_sum() -> None:
    gate, up = halves(3, 40)
    outcomes = []
    for implementation in IMPLEMENTATIONS:
        gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
        with choice.use(implementation):
            swiglu(gate, up).sum().backward()
        outcomes.append((gate.grad, up.grad))
    torch.testing.assert_close(outcomes[0], outcomes[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_ops_are_well_registered(implementation: str) -> None:
    gate, up = halves(2, 3, 40)
    with choice.use(implementation):
        for pair in ((gate, up), (gate.transpose(0, 1), up.transpose(0, 1))):
            torch.library.opcheck(swiglu_op, tuple(x.detach().requires_grad_() for x in pair))
            torch.library.opcheck(swiglu_backward_op, (pair[0], *pair))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_whole(implementation: str) -> None:
    def layer(merged: Tensor) -> Tensor:
        return swiglu(*merged.chunk(2, dim=-1)) + 1

    eager, traced = (random(3, 80).requires_grad_() for _ in range(2))
    with choice.use(implementation):
        layer(eager).pow(2).sum().backward()
        torch.compile(layer, fullgraph=True, backend="aot_eager")(traced).pow(2).sum().backward()
    torch.testing.assert_close(traced.grad, eager.grad)


# --- what is refused ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("gate", "up", "message"),
    [
        (torch.zeros(()), torch.zeros(()), r"the gate must be \(\.\.\., F\) floats, not \(\) torch\.float32"),
        (torch.zeros(3).long(), torch.zeros(3).long(), r"floats, not \(3,\) torch\.int64"),
        (torch.zeros(3), torch.zeros(4), r"up must be as the gate, \(3,\) .* not \(4,\)"),
        (torch.zeros(2, 3), torch.zeros(3), r"up must be as the gate, \(2, 3\) .* not \(3,\)"),
        (torch.zeros(3), torch.zeros(3).half(), r"torch\.float32 on cpu, not \(3,\) torch\.float16"),
        (torch.zeros(3), torch.zeros(3, device="meta"), "on cpu, not .* on meta"),
    ],
)
def test_what_does_not_fit_raises(gate: Tensor, up: Tensor, message: str, implementation: str) -> None:
    with choice.use(implementation):
        with pytest.raises(ValueError, match=message):
            swiglu(gate, up)
        if gate.device == up.device:
            with pytest.raises(ValueError, match=message):
                swiglu_op(gate, up)


def test_float64_is_left_to_pytorch() -> None:
    gate, up = (x.double() for x in halves(2, 5))
    assert torch.equal(swiglu(gate, up), F.silu(gate) * up)
    with choice.use("triton"), pytest.raises(RuntimeError, match=r"not torch\.float64"):
        swiglu(gate, up)
