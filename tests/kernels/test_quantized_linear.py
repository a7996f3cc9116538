"""The linear layer of integers: its kernels, aten's and the reference, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, needs_triton, random
from janus.kernels import choice
from janus.kernels import quantized_linear as module
from janus.kernels.launch import recorded, triton
from janus.kernels.quantized_linear import (
    _launch_quantized_linear,
    dequantize,
    pack,
    packed_linear,
    packs,
    pairs_of,
    quantized_linear,
    quantized_linear_op,
    quantized_linear_reference,
    unpack,
)

CPU_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def quantized(
    outputs: int, inputs: int, *, bits: int, group: int = 64, seed: int = 0, device: str = DEVICE
) -> tuple[Tensor, Tensor, Tensor]:
    """Random integers and scales, and the weights that they say, in float64, made one number at a time."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).mul(high - low).add(low).bfloat16()

    if bits == 8:
        weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
        scale = uniform(0.001, 0.01, outputs)
        exact = weight.double() * scale.double()[:, None]
        return weight.to(device), scale.to(device), exact.to(device)
    q = torch.randint(0, 16, (outputs, inputs), generator=generator)
    scale = torch.stack(
        (uniform(0.01, 0.1, outputs, inputs // group), uniform(-0.5, 0.5, outputs, inputs // group)), dim=2
    )
    weight = torch.zeros(outputs, inputs // 2, dtype=torch.uint8)
    for column in range(inputs):
        first, place = column // group, column % group
        byte = first * group // 2 + place % (group // 2)
        weight[:, byte] |= (q[:, column] << (0 if place < group // 2 else 4)).to(torch.uint8)
    wide = scale.double().repeat_interleave(group, dim=1)
    exact = (q.double() - 8) * wide[..., 0] + wide[..., 1]
    return weight.to(device), scale.to(device), exact.to(device)


def assert_close(product: Tensor, x: Tensor, exact: Tensor, *, packed: bool = False) -> None:
    """At most twice the error of PyTorch's own product of the same weights in the same dtype.

    Both against float64. Some roundings are always allowed: of few numbers PyTorch may have rounded none. One
    is of the weights, for the plain way multiplies floats. Another is of the sums of packed weights, whose
    chains are as the CPU's instructions have them, and longer on some than those of the plain product.
    """
    true = x.double() @ exact.t()
    theirs = x @ exact.to(x.dtype).t()
    assert product.shape == true.shape
    assert product.dtype == x.dtype
    assert product.is_contiguous()
    if true.numel() and x.shape[-1]:
        rounding = torch.finfo(x.dtype).eps * (x.double().abs() @ exact.abs().t()).max()
        assert (product - true).abs().max() <= 2 * (theirs - true).abs().max() + (
            rounding if packed else rounding / 2
        )


CASES = {
    "8 bits": (8, 64),
    "4 bits": (4, 64),
    "4 bits, groups of 32": (4, 32),
}
SHAPES = [(1, 64, 64), (2, 128, 512), (3, 17, 192), (17, 100, 320), (33, 16, 64), (5, 1, 256), (0, 8, 64)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[int, int]:
    return CASES[request.param]


# --- what comes out ---


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels(shape: tuple[int, int, int], dtype: torch.dtype, case: tuple[int, int]) -> None:
    rows, outputs, inputs = shape
    weight, scale, exact = quantized(outputs, inputs, bits=case[0], group=case[1])
    x = random(rows, inputs, dtype=dtype)
    with choice.use("triton"):
        assert_close(quantized_linear(x, weight, scale), x, exact)


@needs_triton
@settings(max_examples=15)
@given(
    rows=st.integers(1, 40),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 11),
    seed=st.integers(0, 9999),
    dtype=st.sampled_from(DTYPES),
    case=st.sampled_from(list(CASES.values())),
)
def test_any_shape(
    rows: int, outputs: int, groups: int, seed: int, dtype: torch.dtype, case: tuple[int, int]
) -> None:
    weight, scale, exact = quantized(outputs, groups * case[1], bits=case[0], group=case[1], seed=seed)
    x = random(rows, groups * case[1], dtype=dtype, seed=seed)
    with choice.use("triton"):
        assert_close(quantized_linear(x, weight, scale), x, exact)


@pytest.mark.parametrize("dtype", CPU_DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (90, 128, 64), (12, 64, 96), (2, 192, 2048)], ids=str)
def test_on_a_cpu(shape: tuple[int, int, int], dtype: torch.dtype, case: tuple[int, int]) -> None:
    """By aten's kernels where they can, else the plain way: the same product."""
    rows, outputs, inputs = shape
    bits, group = case
    if inputs % group:
        pytest.skip(f"{inputs} columns have no groups of {group}")
    weight, scale, exact = quantized(outputs, inputs, bits=bits, group=group, device="cpu")
    x = random(rows, inputs, dtype=dtype, device="cpu")
    assert_close(quantized_linear(x, weight, scale), x, exact)
    assert_close(quantized_linear_reference(x, weight, scale), x, exact)
    if packs(weight):
        assert_close(packed_linear(x, *pack(weight, scale)), x, exact, packed=True)


def test_atens_kernels_serve_where_they_are_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of 16 bits: then the plain way must not run; with many it must."""
    if not packs(torch.zeros(64, 32, dtype=torch.uint8)):
        pytest.skip("aten packs weights in an order that is not known here")

    def plain(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(module, "quantized_linear_reference", plain)
    monkeypatch.setattr(module, "_columns", plain)
    eight = quantized(64, 128, bits=8, device="cpu")
    four = pack(*quantized(64, 128, bits=4, device="cpu")[:2])
    few, many = (random(rows, 128, dtype=torch.bfloat16, device="cpu") for rows in (2, 200))
    quantized_linear(few, *eight[:2])
    packed_linear(few, *four)
    for call in (lambda: quantized_linear(many, *eight[:2]), lambda: packed_linear(many, *four)):
        with pytest.raises(AssertionError):
            call()


def test_8_bits_do_not_overflow_float16() -> None:
    """The integers' own products reach 127 * 100 * 2,048: far beyond its largest number."""
    weight = torch.full((16, 2048), 127, dtype=torch.int8, device=DEVICE)
    scale = torch.full((16,), 2.0**-14, dtype=torch.bfloat16, device=DEVICE)
    exact = weight.double() * scale.double()[:, None]
    for rows in (1, 40):
        x = torch.full((rows, 2048), 16.0, dtype=torch.float16, device=DEVICE)
        for implementation in ["torch"] + (["triton"] if triton else []):
            with choice.use(implementation):
                assert_close(quantized_linear(x, weight, scale), x, exact)


def test_only_some_weights_are_floats_at_once(monkeypatch: pytest.MonkeyPatch, case: tuple[int, int]) -> None:
    """In chunks, the last of them short, it is the same product."""
    weight, scale, exact = quantized(64 * 5, 128, bits=case[0], group=case[1], device="cpu")
    x = random(3, 128, dtype=torch.float32, device="cpu")
    monkeypatch.setattr(module, "CHUNK", 2 * 64 * 128)
    monkeypatch.setattr(module, "MANY_ROWS", {})
    assert len(module._chunks(weight)) == 3
    assert_close(quantized_linear_reference(x, weight, scale), x, exact)
    if packs(weight):
        packed = pack(weight, scale)
        assert torch.equal(unpack(*packed)[0], weight)
        assert_close(packed_linear(x, *packed), x, exact, packed=True)


# --- the formats ---


def test_dequantize_says_what_the_format_says(case: tuple[int, int]) -> None:
    weight, scale, exact = quantized(48, 192, bits=case[0], group=case[1])
    # In float32 a product and a sum, each rounded once.
    torch.testing.assert_close(
        dequantize(weight, scale, torch.float32).double(), exact, rtol=0, atol=2e-7 * float(exact.abs().max())
    )


@settings(max_examples=15)
@given(
    outputs=st.integers(1, 9), groups=st.integers(1, 5), group=st.sampled_from([32, 64]), seed=st.integers(0)
)
def test_pairs_come_apart_again(outputs: int, groups: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    q = torch.randint(0, 16, (outputs, groups, group), generator=generator, dtype=torch.uint8)
    unit = torch.tensor([1.0, 8.0]).bfloat16().expand(outputs, groups, 2)
    assert torch.equal(dequantize(pairs_of(q), unit, torch.float32), q.flatten(1).float())


@pytest.mark.parametrize("shape", [(64, 64), (192, 32), (640, 96)], ids=str)
def test_packing_is_undone(shape: tuple[int, int]) -> None:
    group = 64 if shape[1] % 64 == 0 else 32
    weight, scale, _ = quantized(*shape, bits=4, group=group, device="cpu")
    if not packs(weight):
        pytest.skip("aten packs weights in an order that is not known here")
    packed, packed_scale = pack(weight, scale)
    assert packed.nbytes == weight.nbytes
    assert packed_scale.nbytes == scale.nbytes
    assert not torch.equal(packed, weight)
    again, scale_again = unpack(packed, packed_scale)
    assert torch.equal(again, weight)
    assert torch.equal(scale_again, scale)
    assert scale_again.is_contiguous()


def test_what_is_not_packed() -> None:
    assert not packs(torch.zeros(64, 64, dtype=torch.int8))
    assert not packs(torch.zeros(48, 32, dtype=torch.uint8)), "not whole blocks of rows"
    assert not packs(torch.zeros(64, 32, dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize(
    ("order", "byte", "place"),
    [((32, False), 3, (3, 19)), ((32, True), 3, (6, 7)), ((64, False), 5, (5, 37))],
)
def test_the_orders_of_other_cpus(order: tuple[int, bool], byte: int, place: tuple[int, int]) -> None:
    """A byte of the second block and of the third column: which rows it holds."""
    packed = torch.zeros(128, 32, dtype=torch.uint8)
    rows = order[0]
    packed.view(-1)[rows // 2 * 64 + 2 * (rows // 2) + byte] = 0xA5
    columns = module._columns(packed, order)
    assert columns.nonzero().tolist() == [[2, rows + place[0]], [2, rows + place[1]]]
    assert columns[2, [rows + each for each in place]].tolist() == [5, 10]


# --- how it is read ---


@needs_triton
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :64],
        lambda x: x[::2, 64:],
        lambda x: x.t()[:64].t(),
        lambda x: x[:1, :64].expand(5, -1),
    ],
    ids=["window", "rows", "columns", "one row"],
)
def test_strided_rows(view, case: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    weight, scale, exact = quantized(24, 64, bits=case[0], group=case[1])
    x = view(random(6, 128, dtype=torch.float32))
    for implementation in ("triton", "torch"):
        with choice.use(implementation):
            assert_close(quantized_linear(x, weight, scale), x, exact)
            assert_close(quantized_linear(x, weight[::2], scale[::2]), x, exact[::2])


@pytest.mark.parametrize("leading", [(), (2, 3), (1, 1, 4), (2, 0)], ids=str)
def test_leading_dimensions_stay(leading: tuple[int, ...], case: tuple[int, int]) -> None:
    weight, scale, exact = quantized(64, 64, bits=case[0], group=case[1])
    x = random(*leading, 64, dtype=torch.float32)
    for implementation in ["torch"] + (["triton"] if triton else []):
        with choice.use(implementation):
            assert_close(quantized_linear(x, weight, scale), x, exact)
    if packs(weight):
        assert_close(packed_linear(x, *pack(weight, scale)), x, exact, packed=True)


@needs_triton
def test_few_programs_of_one_shape_serve_all_sizes() -> None:
    """So that what `every_launch` has compiled is what runs."""
    compiled = set()
    for call in module.every_launch():
        with recorded() as launches:
            call()
        compiled |= {_configuration(launch) for launch in launches}
    for rows, outputs, inputs in ((1, 2048, 2048), (2, 11264, 2048), (64, 30, 96), (500, 128, 5632)):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            x = torch.empty(rows, inputs, dtype=dtype, device="meta")
            for weight, scale in (
                (torch.empty(outputs, inputs, dtype=torch.int8, device="meta"), (outputs,)),
                (
                    torch.empty(outputs, inputs // 2, dtype=torch.uint8, device="meta"),
                    (outputs, inputs // (64 if inputs % 64 == 0 else 32), 2),
                ),
            ):
                with recorded() as launches:
                    _launch_quantized_linear(
                        x, weight, torch.empty(scale, dtype=torch.bfloat16, device="meta")
                    )
                assert {_configuration(launch) for launch in launches} <= compiled


def _configuration(launch) -> tuple[object, ...]:  # type: ignore[no-untyped-def]
    constants = {name: value for name, value in launch.arguments.items() if name.isupper()}
    dtypes = [value.dtype for value in launch.arguments.values() if isinstance(value, Tensor)]
    return launch.kernel.__name__, str(constants), str(dtypes), str(launch.options)


def test_many_rows_are_left_to_a_product_of_floats() -> None:
    rule = choice.RULES["quantized_linear"]
    assert (rule(rows=1), rule(rows=64), rule(rows=65)) == ("triton", "triton", "torch")


# --- as an op ---


@needs_triton
@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_the_op_is_well_registered(implementation: str, case: tuple[int, int]) -> None:
    weight, scale, _ = quantized(24, 64, bits=case[0], group=case[1])
    with choice.use(implementation):
        torch.library.opcheck(quantized_linear_op, (random(2, 3, 64, dtype=torch.float32), weight, scale))


@needs_triton
@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_it_compiles_whole(implementation: str, case: tuple[int, int]) -> None:
    weight, scale, _ = quantized(64, 64, bits=case[0], group=case[1])
    x = random(3, 64, dtype=torch.float32)

    def layer(x: Tensor) -> Tensor:
        return quantized_linear(x * 2, weight, scale) + 1

    with choice.use(implementation):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_packed_weights_compile_whole() -> None:
    weight, scale, _ = quantized(64, 64, bits=4, device="cpu")
    if not packs(weight):
        pytest.skip("aten packs weights in an order that is not known here")
    packed = pack(weight, scale)
    for rows in (2, 200):
        x = random(rows, 64, dtype=torch.bfloat16, device="cpu")
        compiled = torch.compile(lambda x: packed_linear(x, *packed), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), packed_linear(x, *packed))
        gradients = []
        for call in (compiled, lambda x: packed_linear(x, *packed)):
            learns = x.float().requires_grad_()
            call(learns).square().sum().backward()
            gradients.append(learns.grad)
        torch.testing.assert_close(*gradients)


def test_it_has_a_gradient_in_x(case: tuple[int, int]) -> None:
    weight, scale, exact = quantized(64, 64, bits=case[0], group=case[1])
    x = random(3, 64, dtype=torch.float32).requires_grad_()
    quantized_linear(x, weight, scale).sum().backward()
    torch.testing.assert_close(x.grad, exact.sum(0).float().expand(3, -1))
    if packs(weight):
        x.grad = None
        packed_linear(x, *pack(weight, scale)).sum().backward()
        torch.testing.assert_close(x.grad, exact.sum(0).float().expand(3, -1))


def test_no_input_is_changed(case: tuple[int, int]) -> None:
    weight, scale, _ = quantized(64, 64, bits=case[0], group=case[1])
    before = weight.clone(), scale.clone()
    for rows in (1, 200):
        quantized_linear(random(rows, 64, dtype=torch.float32), weight, scale)
    assert torch.equal(weight, before[0])
    assert torch.equal(scale, before[1])


# --- what is refused ---


@pytest.mark.parametrize(
    ("x", "weight", "scale", "message"),
    [
        ((2, 64), torch.zeros(4, 64), (4,), r"must be \(N, K\) int8 or \(N, K / 2\) uint8, not \(4, 64\)"),
        ((2, 64), torch.zeros(64, dtype=torch.int8), (4,), r"not \(64,\) torch\.int8"),
        ((2, 64), torch.zeros(4, 64, dtype=torch.int8), (5,), r"must be \(4,\) torch\.bfloat16, not \(5,\)"),
        (
            (2, 63),
            torch.zeros(4, 64, dtype=torch.int8),
            (4,),
            r"x must be \(\.\.\., 64\) floats, not \(2, 63\)",
        ),
        ((), torch.zeros(4, 64, dtype=torch.int8), (4,), r"x must be \(\.\.\., 64\) floats, not \(\)"),
        ((2, 64), torch.zeros(4, 32, dtype=torch.uint8), (4, 1), r"must be \(4, 1, 2\) or \(4, 2, 2\)"),
        ((2, 48), torch.zeros(4, 24, dtype=torch.uint8), (4, 1, 2), "must be of groups of 64 or 32 columns"),
    ],
)
def test_what_does_not_fit_raises(
    x: tuple[int, ...], weight: Tensor, scale: tuple[int, ...], message: str
) -> None:
    scales = torch.ones(scale).bfloat16()
    for call in (quantized_linear, quantized_linear_op):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(x), weight, scales)


def test_scales_of_another_dtype_or_device_raise() -> None:
    weight = torch.zeros(4, 64, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"bfloat16, not \(4,\) torch\.float32"):
        quantized_linear(torch.zeros(2, 64), weight, torch.ones(4))
    with pytest.raises(ValueError, match="x is on cpu, and the scale on meta"):
        quantized_linear(torch.zeros(2, 64), weight, torch.ones(4, device="meta").bfloat16())


@needs_triton
def test_the_kernel_says_which_widths_it_takes() -> None:
    weight, scale, exact = quantized(4, 40, bits=8)
    x = random(2, 40, dtype=torch.float32)
    assert_close(quantized_linear(x, weight, scale), x, exact)
    with choice.use("triton"), pytest.raises(RuntimeError, match="a multiple of 16, not of 40"):
        quantized_linear(x, weight, scale)
