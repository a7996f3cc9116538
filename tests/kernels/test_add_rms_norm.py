"""The residual addition and the RMSNorm behind it: the kernels, against float64 and eager PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, needs_triton, random, untouched
from janus.kernels import choice
from janus.kernels.add_rms_norm import (
    BACKWARD_WARPS,
    WIDEST,
    _launch_norm,
    _launch_norm_backward,
    add_rms_norm,
    add_rms_norm_op,
    rms_norm_backward_op,
    rms_norm_op,
)
from janus.kernels.launch import recorded

IMPLEMENTATIONS = ["triton", "torch"]
EPS = 1e-6
SHAPES = [
    (1, 1),
    (7,),
    (2, 2048),
    (3, 4096),
    (2, 3, 2047),
    (2, 2049),
    (2, 4097),
    (1, 8193),
    (1, 16384),
    (0, 8),
]

pytestmark = needs_triton


def eager_norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    """The language model's norm, written out: normalized in float32, cast back, then scaled."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def exact_norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


Results = dict[str, Tensor]


def results(x: Tensor, weight: Tensor, residual: Tensor | None, gradients: tuple[Tensor, Tensor]) -> Results:
    """Both outputs, and the gradients of all inputs."""
    inputs = {"x": x, "weight": weight} | ({} if residual is None else {"residual": residual})
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    normalized, total = add_rms_norm(leaves["x"], leaves["weight"], EPS, leaves.get("residual"))
    found = torch.autograd.grad((normalized, total), list(leaves.values()), gradients)
    return {"normalized": normalized.detach(), "total": total.detach()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, found, strict=True)
    }


def exact_results(
    x: Tensor, weight: Tensor, residual: Tensor | None, gradients: tuple[Tensor, Tensor]
) -> Results:
    """The same in float64, but for the total: it is an output too, and rounded as an addition is."""
    rounded = x if residual is None else x + residual
    total, scale = rounded.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    normalized = exact_norm(total, scale)
    doubles = [gradient.double() for gradient in gradients]
    of_total, of_weight = torch.autograd.grad((normalized, total), (total, scale), doubles)
    exact = {"normalized": normalized.detach(), "total": total.detach()}
    exact |= {"gradient of x": of_total, "gradient of weight": of_weight}
    return exact if residual is None else exact | {"gradient of residual": of_total}


def assert_close(
    x: Tensor, weight: Tensor, residual: Tensor | None, gradients: tuple[Tensor, Tensor]
) -> None:
    """The kernels' error is at most twice eager PyTorch's in the same dtype, both against float64."""
    with choice.use("triton"):
        ours = results(x, weight, residual, gradients)
    with choice.use("torch"):
        eager = results(x, weight, residual, gradients)
    assert torch.equal(ours["total"], eager["total"]), "the total is rounded as an addition rounds"
    exact = exact_results(x, weight, residual, gradients)
    assert ours.keys() == exact.keys()
    # The gradients of x and residual are differences: their rounding is that of what is subtracted.
    scale = torch.rsqrt(exact["total"].pow(2).mean(-1, keepdim=True) + EPS)
    subtracted = scale * weight * gradients[0]
    for name, true in exact.items():
        assert ours[name].shape == true.shape, name
        assert ours[name].dtype == x.dtype, name
        if not true.numel():
            continue
        # Of a few elements PyTorch may have rounded all without error: some roundings are always allowed.
        terms = (true, subtracted) if name in ("gradient of x", "gradient of residual") else (true,)
        rounding = 2 * torch.finfo(x.dtype).eps * max(term.abs().max() for term in terms)
        error, allowed = (ours[name] - true).abs().max(), 2 * (eager[name] - true).abs().max() + rounding
        assert error <= allowed, name


def case(
    *shape: int, added: bool, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, Tensor]]:
    x, residual, *gradients = (random(*shape, seed=seed + step, dtype=dtype) for step in range(4))
    weight = 1 + random(shape[-1], seed=seed + 9, dtype=dtype) / 4
    return x, weight, residual * 3 if added else None, (gradients[0], gradients[1])


# --- what comes out ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients(shape: tuple[int, ...], added: bool, dtype: torch.dtype) -> None:
    assert_close(*case(*shape, added=added, dtype=dtype))


@settings(max_examples=15)
@given(
    leading=st.lists(st.integers(1, 3), max_size=3),
    width=st.integers(1, 2100),
    added=st.booleans(),
    seed=st.integers(0, 9999),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(leading: list[int], width: int, added: bool, seed: int, dtype: torch.dtype) -> None:
    assert_close(*case(*leading, width, added=added, seed=seed, dtype=dtype))


@pytest.mark.parametrize("rows", [7, 8, 9, 21, 24, 25])
def test_rows_are_shared_among_the_partial_sums(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus.kernels.add_rms_norm.PARTIAL_SUMS", 8)
    with recorded() as launches:
        x = torch.empty(rows, 24, device="meta")
        _launch_norm_backward(x, None, x, x[0], EPS)
    assert launches[0].arguments["partial_sums_ptr"].shape[0] <= 8
    assert_close(*case(rows, 24, added=True, dtype=torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_rounds_where_the_language_model_rounds(dtype: torch.dtype) -> None:
    x, residual = random(4, 2048, dtype=dtype), 3 * random(4, 2048, seed=1, dtype=dtype)
    weight = 1 + random(2048, seed=2, dtype=dtype) / 4
    with choice.use("triton"):
        normalized, total = add_rms_norm(x, weight, EPS, residual)
        alone, _ = add_rms_norm(x, weight, EPS)
    assert torch.equal(total, x + residual)
    pairs = ((normalized, eager_norm(x + residual, weight)), (alone, eager_norm(x, weight)))
    for ours, eager in pairs:
        if dtype == torch.float32:  # the order of a sum of 2048 squares, and a reciprocal root of 2 ulp
            torch.testing.assert_close(ours, eager, rtol=8 * 2**-24, atol=0)
        else:  # those last bits of float32 decide a rounding to 16 bits once in thousands
            assert (ours != eager).float().mean() <= 5e-3
    if dtype != torch.float32:  # not rounded before the weight, a tenth of them at least would differ
        unrounded = exact_norm((x + residual).double(), weight.double()).to(dtype)
        assert (unrounded != eager_norm(x + residual, weight)).float().mean() > 0.1


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
def test_eps_keeps_nothing_from_being_divided_by_nothing(eps: float) -> None:
    x = torch.stack((torch.zeros(40), torch.full((40,), 1e-3), torch.ones(40))).to(DEVICE)
    weight = torch.ones(40, device=DEVICE)
    with choice.use("triton"):
        normalized, _ = add_rms_norm(x, weight, eps)
        leaf = x.clone().requires_grad_()
        add_rms_norm(leaf, weight, eps)[0].sum().backward()
    assert not normalized[0].any()
    # Both with a reciprocal root of 2 ulp, and three roundings.
    torch.testing.assert_close(normalized, eager_norm(x, weight, eps), rtol=1e-6, atol=0)
    exact = x.double().requires_grad_()
    exact_norm(exact, weight.double(), eps).sum().backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    # Where all are equal, the gradient is a small difference of numbers up to 1 / root(eps).
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=2e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast", "ignore:invalid value encountered")
def test_a_float16_total_overflows_as_in_eager_pytorch() -> None:
    x = torch.full((1, 8), 60000.0, device=DEVICE, dtype=torch.float16)
    with choice.use("triton"):
        _, total = add_rms_norm(x, torch.ones_like(x[0]), EPS, x)
    assert total.isinf().all()


# --- how it is read ---


def test_views_are_not_copied() -> None:
    x = torch.empty(2, 3, 2 * 40, device="meta")[..., :40]
    weight = torch.empty(40, device="meta")
    with recorded() as launches:
        _launch_norm(x, weight, EPS, x)
        _launch_norm_backward(x, x, x, weight, EPS)
    assert len(launches) == 2
    for launch in launches:
        strides = [value for name, value in launch.arguments.items() if name.startswith("stride")]
        assert set(strides) == {80}


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
    x, residual, first, second = (view(random(4, 6, 50, seed=seed)) for seed in range(4))
    weight = random(2 * x.shape[-1], seed=5)[::2]
    assert_close(x, weight, None, (first, second))
    assert_close(x, weight, residual.contiguous(), (first, second))
    assert_close(x.contiguous(), weight, residual, (first, second.contiguous()))


def test_offsets_beyond_32_bits() -> None:
    memory = untouched(2**31 + 4096)
    x = memory.as_strided((3, 64), (2**30, 1))
    x.copy_(random(3, 64))
    weight, near = random(64, dtype=torch.float16), x.clone()
    assert_close(x, weight, None, (x, near))
    assert_close(near, weight, x, (near, x))


# --- as an op ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_input_is_returned_or_changed_but_the_total_of_nothing(implementation: str) -> None:
    x, weight, residual, gradients = case(3, 40, added=True, dtype=torch.float32)
    assert residual is not None
    before = [x.clone(), weight.clone(), residual.clone()]
    with choice.use(implementation):
        assert add_rms_norm(x, weight, EPS)[1] is x
        normalized, total = add_rms_norm(x, weight, EPS, residual)
        fresh = [*results(x, weight, residual, gradients).values(), normalized, total]
        fresh += [add_rms_norm(x, weight, EPS)[0], rms_norm_op(x, weight, EPS)]
        fresh += add_rms_norm_op(x, residual, weight, EPS)
    given_memory = {tensor.untyped_storage().data_ptr() for tensor in (x, weight, residual, *gradients)}
    assert not given_memory & {tensor.untyped_storage().data_ptr() for tensor in fresh}
    assert normalized.untyped_storage().data_ptr() != total.untyped_storage().data_ptr()
    for tensor, copy in zip((x, weight, residual), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_in_the_torch_case_it_is_eager_pytorch_to_the_bit(dtype: torch.dtype) -> None:
    x, weight, residual, _ = case(2, 3, 2048, added=True, dtype=dtype)
    assert residual is not None
    with choice.use("torch"):
        normalized, total = add_rms_norm(x.requires_grad_(), weight, EPS, residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(normalized, eager_norm(x + residual, weight))
        assert torch.equal(add_rms_norm(x, weight, EPS)[0], eager_norm(x, weight))
        assert normalized.grad_fn is not None
        assert normalized.grad_fn.name() == "MulBackward0", "differentiated by PyTorch itself"


@pytest.mark.parametrize("used", ["normalized", "total", "both"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
def test_either_output_may_go_unused(added: bool, used: str) -> None:
    outcomes = []
    for implementation in IMPLEMENTATIONS:
        x, weight, residual, _ = case(5, 40, added=added, dtype=torch.float32)
        leaves = [tensor.requires_grad_() for tensor in (x, weight, residual) if tensor is not None]
        with choice.use(implementation):
            normalized, total = add_rms_norm(x, weight, EPS, residual)
            loss = (normalized.pow(2) if used != "total" else 0) + (
                total.sin() if used != "normalized" else 0
            )
            loss.sum().backward()
        zeros = torch.zeros_like
        outcomes.append([zeros(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    # Sums of 40 products around 1, in another order.
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-5)


def test_the_same_gradient_for_a_sum() -> None:
    outcomes = []
    for implementation in IMPLEMENTATIONS:
        x, weight, residual, _ = case(3, 40, added=True, dtype=torch.float32)
        assert residual is not None
        leaves = [tensor.requires_grad_() for tensor in (x, weight, residual)]
        with choice.use(implementation):
            normalized, total = add_rms_norm(x, weight, EPS, residual)
            (normalized.sum() + total.sum()).backward()
        outcomes.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-5)  # as above


def test_the_gradients_of_x_and_residual_are_apart() -> None:
    """Both are the total's: to scale one in place must leave the other."""
    x, weight, residual, _ = case(3, 40, added=True, dtype=torch.float32)
    assert residual is not None
    with choice.use("triton"):
        add_rms_norm(x.requires_grad_(), weight, EPS, residual.requires_grad_())[1].sum().backward()
    assert x.grad is not None
    assert residual.grad is not None
    x.grad.mul_(2)
    assert torch.equal(x.grad, 2 * residual.grad)


def test_gradients_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus.kernels.add_rms_norm.PARTIAL_SUMS", 8)
    arguments = case(53, 200, added=True, dtype=torch.float32)
    with choice.use("triton"):
        first, second = results(*arguments), results(*arguments)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_ops_are_well_registered(implementation: str) -> None:
    x, weight, residual, gradients = case(2, 3, 40, added=True, dtype=torch.float32)
    assert residual is not None
    leaves = [tensor.detach().requires_grad_() for tensor in (x, residual, weight)]
    swapped = [tensor.transpose(0, 1).detach().requires_grad_() for tensor in (x, residual)]
    with choice.use(implementation):
        torch.library.opcheck(add_rms_norm_op, (*leaves, EPS))
        torch.library.opcheck(add_rms_norm_op, (*swapped, leaves[2], EPS))
        torch.library.opcheck(rms_norm_op, (leaves[0], leaves[2], EPS))
        torch.library.opcheck(rms_norm_op, (swapped[0], leaves[2], EPS))
        for of_total in (None, gradients[1]):
            torch.library.opcheck(rms_norm_backward_op, (gradients[0], of_total, x, weight, EPS))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_whole(implementation: str) -> None:
    def block(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        first, residual = add_rms_norm(x, weight, EPS, residual)
        second, residual = add_rms_norm(first + 1, weight, EPS, residual)
        return add_rms_norm(second * 2, weight, EPS)[0] + residual

    leaves = []
    with choice.use(implementation):
        for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
            x, weight, residual, gradients = case(3, 40, added=True, dtype=torch.float32)
            assert residual is not None
            leaves.append([tensor.requires_grad_() for tensor in (x, residual, weight)])
            run(x, residual, weight).backward(gradients[0])
    for eager, compiled in zip(*leaves, strict=True):
        # Three norms in a row, each summed in another order.
        torch.testing.assert_close(compiled.grad, eager.grad, rtol=1e-5, atol=1e-5)


# --- what is refused ---

ROWS = torch.zeros(2, 3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("x", "weight", "residual", "message"),
    [
        (torch.zeros(()), torch.zeros(1), None, r"x must be \(\.\.\., D\) floats, D at least 1, not \(\)"),
        (torch.zeros(2, 0), torch.zeros(0), None, r"not \(2, 0\)"),
        (ROWS.long(), torch.zeros(3).long(), None, r"floats, .* not \(2, 3\) torch\.int64"),
        (ROWS, torch.zeros(2), None, r"the weight must be \(3,\) floats on cpu, .* not \(2,\)"),
        (ROWS, torch.zeros(1, 3), None, r"the weight must be \(3,\) .* not \(1, 3\)"),
        (ROWS, torch.zeros(3).long(), None, r"the weight must be .* not \(3,\) torch\.int64 on cpu"),
        (ROWS, torch.zeros(3, device="meta"), None, "the weight must be .* on meta"),
        (ROWS, torch.zeros(3), torch.zeros(3), r"the residual must be \(2, 3\) .* not \(3,\)"),
        (ROWS, torch.zeros(3), ROWS.bool(), r"the residual must be .* not \(2, 3\) torch\.bool"),
        (ROWS, torch.zeros(3), ROWS.to("meta"), "the residual must be .* on meta"),
    ],
)
def test_what_does_not_fit_raises(
    x: Tensor, weight: Tensor, residual: Tensor | None, message: str, implementation: str
) -> None:
    with choice.use(implementation), pytest.raises(ValueError, match=message):
        add_rms_norm(x, weight, EPS, residual)


def test_rows_too_wide_for_the_kernel_fall_back_or_raise() -> None:
    x, weight = random(2, WIDEST + 1), random(WIDEST + 1, seed=1)
    assert torch.equal(add_rms_norm(x, weight, EPS)[0], eager_norm(x, weight))
    with choice.use("triton"), pytest.raises(RuntimeError, match="takes rows of 16384 at most, not 16385"):
        add_rms_norm(x, weight, EPS)
    with choice.use("triton"), pytest.raises(RuntimeError, match=r"not torch\.float64"):
        add_rms_norm(x[:, :8].double(), weight[:8].double(), EPS)
    assert max(BACKWARD_WARPS) < WIDEST, "between the two, rows are differentiated by the reference"


def test_tensors_of_two_dtypes_are_promoted() -> None:
    """Under autocast a projection is of 16 bits, and the residual and the weight are of 32."""
    x, residual, weight = random(3, 8).bfloat16(), random(3, 8, seed=1), random(8, seed=2)
    normalized, total = add_rms_norm(x, weight, EPS, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normalized, eager_norm(x + residual, weight))
    with choice.use("triton"), pytest.raises(RuntimeError, match="it takes tensors of one dtype"):
        add_rms_norm(x, weight, EPS, residual)
    torch.library.opcheck(add_rms_norm_op, (x, residual, weight, EPS), test_utils="test_faketensor")
    torch.library.opcheck(rms_norm_op, (x, weight, EPS), test_utils="test_faketensor")
