"""Packed linear layers: the same numbers, and the same state, as the plain ones."""

import copy
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from janus import cpu
from janus.inference.prepare import prepare
from janus.models.janus import Janus
from janus.models.llama import JoinedLinear
from janus.models.packed import FBGEMMWeight, OneDNNWeight, Packed, PackedLinear, pack

pytestmark = pytest.mark.skipif(
    pack(torch.zeros(1, 1, dtype=torch.bfloat16)) is None, reason="this CPU packs no weights"
)
EXACT = isinstance(
    pack(torch.zeros(1, 1, dtype=torch.bfloat16)), OneDNNWeight
)  # sums are in torch's own order


def linear(bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias, dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 24), (2, 1, 24), (2, 24), (7, 24), (3, 11, 24), (300, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_same_numbers(shape: tuple[int, ...], bias: bool) -> None:
    plain = linear(bias)
    packed = PackedLinear(plain)
    assert packed.packed is not None
    for x in (torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16().expand(2, *shape)):
        check_same(packed(x), plain, x)


def check_same(result: Tensor, plain: nn.Linear, x: Tensor) -> None:
    """Equal; with a bias, which is added before rounding, or in another order, within one rounding."""
    if plain.bias is None and EXACT:
        assert torch.equal(result, plain(x))
    else:
        bias = None if plain.bias is None else plain.bias.double()
        truth = nn.functional.linear(x.double(), plain.weight.double(), bias)
        assert result.shape == truth.shape
        # One rounding to 8 significant bits, and float32's sums before it.
        assert ((result - truth).abs() <= truth.abs() * 2.0**-8 + 1e-6).all()


def test_a_plain_layer_goes_when_it_is_packed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model would be in memory twice in the end."""
    model = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="bfloat16")
    layers = [weakref.ref(module) for module in model.modules() if isinstance(module, nn.Linear)]
    alive: list[int] = []

    def replace(layer: nn.Linear, packed: Packed) -> PackedLinear:
        alive.append(sum(each() is not None for each in layers))
        return PackedLinear(layer, packed)

    monkeypatch.setattr("janus.inference.prepare.PackedLinear", replace)
    prepare(model)
    assert len(alive) == len(layers) > 20
    assert alive[0] == len(layers)
    assert alive[-1] <= 2  # the last, and the one beside it


@torch.no_grad()
def test_what_follows_the_plain_layer_follows_the_packed_one() -> None:
    plain = linear(bias=False)
    packed = PackedLinear(plain)
    plain.register_forward_hook(lambda module, inputs, output: output + 1)
    x = torch.randn(2, 24).bfloat16()
    assert torch.equal(PackedLinear(plain)(x), packed(x) + 1)


@torch.no_grad()
def test_state_is_that_of_the_plain_layer() -> None:
    plain, other = linear(), linear()
    nn.init.ones_(other.weight)
    packed = PackedLinear(plain)
    state = packed.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in state.items())
    packed.load_state_dict(other.state_dict())
    x = torch.randn(2, 24).bfloat16()
    check_same(packed(x), other, x)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: \(40, 1\) given, \(40, 24\) wanted"):
        packed.load_state_dict({**other.state_dict(), "weight": torch.zeros(40, 1)})
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        packed.load_state_dict({"bias": plain.bias})


@torch.no_grad()
def test_copies_casts_and_moves() -> None:
    plain = linear()
    x = torch.randn(2, 24).bfloat16()
    for duplicate in (copy.deepcopy(PackedLinear(plain)), pickle.loads(pickle.dumps(PackedLinear(plain)))):
        assert duplicate.packed is not None
        check_same(duplicate(x), plain, x)
    wide = PackedLinear(plain).float()
    assert wide.packed is None
    assert torch.equal(wide(x.float()), copy.deepcopy(plain).float()(x.float()))
    assert wide.bfloat16().packed is not None
    check_same(wide(x), plain, x)
    assert PackedLinear(plain).to("meta").weight.device.type == "meta"
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        PackedLinear(linear())(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PackedLinear(linear())(x.float()), linear()(x.float()))


def test_gradients_reach_the_input() -> None:
    plain = linear()
    x, same = (torch.ones(2, 24, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    PackedLinear(plain)(x).float().sum().backward()
    plain(same).float().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, same.grad)


@torch.no_grad()
def test_a_prepared_model_computes_and_saves_the_same(data: Path) -> None:
    plain = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="bfloat16")
    model = prepare(copy.deepcopy(plain))
    assert not [name for name, module in model.named_modules() if type(module) in (nn.Linear, JoinedLinear)]
    ids, pixels = torch.arange(12)[None], torch.randn(1, 3, *[plain.config.vision.image_size] * 2)
    hidden, expected = (its.hidden_states(its.embed(ids)) for its in (model, plain))
    if EXACT:
        assert torch.equal(model.text_logits(hidden), plain.text_logits(expected))
    for ours, its in (
        (model.text_logits(hidden), plain.text_logits(expected)),
        (model.image_logits(hidden), plain.image_logits(expected)),
        (model.encode_images(pixels), plain.encode_images(pixels)),
    ):  # layers with biases, through few layers of 8 significant bits each
        assert (ours - its).abs().max() <= 2.0**-5 * its.abs().max()
    state = plain.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_only_what_gains_is_packed(data: Path) -> None:
    model = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="float32")
    assert not [module for module in prepare(model).modules() if isinstance(module, PackedLinear)]
    assert pack(torch.empty(2, 2, dtype=torch.bfloat16, device="meta")) is None
    assert pack(torch.empty(0, 2, dtype=torch.float16)) is None


@pytest.fixture
def fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for bfloat16."""
    if not cpu.has_fbgemm():
        pytest.skip("this build of torch has no FBGEMM")
    monkeypatch.setattr(cpu, "has_onednn", lambda dtype: dtype == torch.float32)


half = pytest.mark.usefixtures("fbgemm")


@half
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_holds_weights_to_the_bit(dtype: torch.dtype) -> None:
    """Whatever their magnitude, and those too that are beyond its range beside the largest."""
    torch.manual_seed(0)
    for magnitude in (1e-4, 0.02, 1.0, 300.0):
        weight = (torch.randn(130, 40) * magnitude).to(dtype)
        if dtype == torch.bfloat16:
            weight[0, 0] = weight.abs().max() * 2.0**-39
        packed = pack(weight)
        assert isinstance(packed, FBGEMMWeight)
        assert torch.equal(packed.dense(), weight)
        x = torch.randn(3, 40).to(dtype)
        truth = x.double() @ weight.double().t()
        # Of the sum of magnitudes: float32's 40 roundings at most, and the one of the result.
        allowed = x.double().abs() @ weight.double().abs().t() * 40 * 2.0**-24
        allowed += truth.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).smallest_normal
        assert ((packed.product(x, None) - truth).abs() <= allowed).all()


@half
@torch.no_grad()
def test_half_precision_takes_no_weights_that_it_does_not_hold() -> None:
    torch.manual_seed(0)
    assert pack(torch.randn(64, 64).exp().pow(20).bfloat16()) is None, "more magnitudes than float16 has"
    for wrong in (float("inf"), float("nan")):
        weight = torch.zeros(4, 4, dtype=torch.bfloat16)
        weight[1, 2] = wrong
        assert pack(weight) is None


@half
@torch.no_grad()
def test_half_precision_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(300, 24).bfloat16()
    weight[200, 3] = weight.abs().max() * 2.0**-39
    whole, x = pack(weight), torch.randn(5, 24).bfloat16()
    monkeypatch.setattr(FBGEMMWeight, "CHUNK", 64 * 24)
    blocks = pack(weight)
    assert isinstance(whole, FBGEMMWeight)
    assert isinstance(blocks, FBGEMMWeight)
    assert (len(whole.blocks), len(blocks.blocks)) == (1, 5)
    assert torch.equal(blocks.dense(), weight)
    assert torch.equal(blocks.product(x, None), whole.product(x, None))


@torch.no_grad()
def test_rows_do_not_depend_on_their_number() -> None:
    """So that what is drawn by guessing is what is drawn code after code."""
    packed = pack(torch.randn(300, 200).bfloat16())
    assert packed is not None
    x = torch.randn(70, 200).bfloat16()
    whole = packed.product(x, None)
    for rows in (1, 2, 3, 5, 8, 33):
        assert torch.equal(packed.product(x[:rows], None), whole[:rows])
