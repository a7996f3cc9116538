"""Devices that are not here: what runs on Apple's MPS, on no device at all, and on the CPU and nothing else.

torch has no MPS in its Linux builds, so `apple` is a stand-in: tensors that say they are on "mps", each op
on them checked against what that device can do and then computed by the CPU. What raises, as on the real one:

- an op that torch's own table (native_functions.yaml, which comes with torch) has no MPS kernel for;
- float64 and complex128, which Metal does not know;
- a product of integer matrices, and tensors of more than 16 dimensions;
- tensors of both devices in one op, but for copies and single numbers.

It cannot tell where the real device computes something else, nor sizes that it refuses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchgen
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import janus
from janus.models.janus import Janus
from janus.pipeline import Pipeline

yaml = pytest.importorskip("yaml", reason="torch's table of operators is written in YAML")

APPLE = torch.device("mps")
TOO_WIDE = (torch.float64, torch.complex128)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot")
COPIES = ("_to_copy", "copy_", "_copy_from")
MOST_DIMENSIONS = 16


@cache
def operators() -> dict[str, dict[str, Any]]:
    """torch's table of operators, by name and overload: "add.Tensor"."""
    folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    rows = yaml.safe_load((folder / "native_functions.yaml").read_text())
    return {row["func"].partition("(")[0]: row for row in rows}


@cache
def has_kernel(name: str) -> bool:
    """Whether an operator runs on MPS: by a kernel of its own, or made of others that are checked in turn."""
    row = operators().get(name)
    if row is None:  # what is generated (an out= or functional variant) or not aten's
        return name.partition(".")[2] not in ("", "out")
    if delegate := row.get("structured_delegate"):
        return has_kernel(delegate)
    kernels = [
        key.strip() for keys in row.get("dispatch") or {"CompositeImplicit": ""} for key in keys.split(",")
    ]
    return any(key == "MPS" or key.startswith("Composite") for key in kernels)


class OnApple(Tensor):
    """A tensor that says it is on "mps"; its numbers are `inner`, a CPU tensor."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnApple:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=APPLE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return run(function, arguments, options or {})

    # Python's own ways to numbers and views ask for the device itself, which is not there.

    def __getitem__(self, index: Any) -> Any:
        with as_apple():
            return OnApple(self.inner[inner_of(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        with as_apple():
            self.inner[inner_of(index)] = inner_of(value)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")


def inner_of(tree: Any) -> Any:
    return tree_map(lambda value: value.inner if isinstance(value, OnApple) else value, tree)


_all_on_apple = False


@contextlib.contextmanager
def as_apple() -> Iterator[None]:
    """Within it CPU tensors are what `OnApple` has inside."""
    global _all_on_apple
    outer, _all_on_apple = _all_on_apple, True
    try:
        yield
    finally:
        _all_on_apple = outer


def check(function: Any, name: str, tensors: list[Tensor]) -> None:
    """Raise where MPS would, for an op on these tensors or with these results."""
    if function.namespace == "aten" and not has_kernel(name):
        raise NotImplementedError(
            f"The operator 'aten::{name}' is not currently implemented for the MPS device"
        )
    for tensor in tensors:
        if tensor.dtype in TOO_WIDE:
            raise TypeError(f"Cannot convert a MPS Tensor to {tensor.dtype} dtype: {name}")
        if tensor.dim() > MOST_DIMENSIONS:
            raise RuntimeError(f"MPS supports tensors with dimensions <= 16: {name}")
        if name.partition(".")[0] in PRODUCTS and not tensor.is_floating_point():
            raise RuntimeError(f"MPS device does not support {name} for non-float inputs")


def run(function: Any, arguments: Any, options: dict[str, Any]) -> Any:
    """An op, computed on the CPU and checked if it would be MPS's."""
    given = [value for value in tree_flatten((arguments, options))[0] if isinstance(value, Tensor)]
    apples = [value for value in given if isinstance(value, OnApple)]
    name = function._schema.name.partition("::")[2]
    if function._schema.overload_name:
        name += f".{function._schema.overload_name}"
    short = name.partition(".")[0]
    asked = options.get("device")
    if short not in COPIES:
        alien = [value for value in given if not isinstance(value, OnApple) and value.dim()]
        if apples and alien:
            raise RuntimeError(f"Expected all tensors to be on the same device, mps and cpu: {name}")
    here = _all_on_apple or (bool(apples) if asked is None else torch.device(asked).type == "mps")
    if short == "copy_":
        here = isinstance(arguments[0], OnApple)
    if asked is not None and torch.device(asked).type == "mps":
        options = {**options, "device": torch.device("cpu")}
    result = function(*inner_of(arguments), **inner_of(options))
    if short == "_local_scalar_dense":
        return result
    results = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
    if here:
        check(function, name, [*(inner_of(apples)), *results])
    if _all_on_apple or not here:
        return result
    if function._schema.is_mutable and results and results[0] is inner_of(arguments[0]):
        return arguments[0]
    return tree_map(lambda value: OnApple(value) if isinstance(value, Tensor) else value, result)


class _Ops(TorchDispatchMode):
    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.seen.add(str(function))
        if function.namespace == "janus":  # the library's own: what it is made of is called and checked
            with _Calls(), self:
                return OPDEFS[function._schema.name]._init_fn(*arguments, **(options or {}))
        return run(function, arguments, options or {})


class _Calls(TorchFunctionMode):
    """What torch does for the device before it reaches an op."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = dict(options or {})
        device = options.get("device")
        if function is torch.tensor and device is not None:
            del options["device"]
            return _to(torch.tensor(*arguments, **options), device)
        if function is torch.as_tensor and device is not None:
            given = arguments[0] if isinstance(arguments[0], Tensor) else torch.tensor(arguments[0])
            return _to(given, device)
        if function is Tensor.to and _names_apple(arguments[0], arguments[1:], options):
            return _to(*arguments, **options)
        if arguments and isinstance(arguments[0], OnApple) and function is F.scaled_dot_product_attention:
            return _attention(*arguments, **options)
        if arguments and isinstance(arguments[0], OnApple) and function in GUARDED:
            return GUARDED[function](*arguments, **options)
        return function(*arguments, **options)


def _names_apple(tensor: Tensor, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    named = [tensor, *arguments, *options.values()]
    return any(
        isinstance(value, OnApple) or (isinstance(value, str | torch.device) and str(value).startswith("mps"))
        for value in named
    )


def _to(tensor: Tensor, *arguments: Any, copy: bool = False, **options: Any) -> Tensor:
    """`Tensor.to`, which asks for the device itself."""
    device, dtype, _, memory_format = torch._C._nn._parse_to(*arguments, **options)
    device, dtype = device or tensor.device, dtype or tensor.dtype
    if not copy and device.type == tensor.device.type and dtype == tensor.dtype:
        return tensor
    return torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device, memory_format=memory_format)


def _attention(*arguments: Any, **options: Any) -> Tensor:
    """An op of its own on MPS, `_scaled_dot_product_attention_math_for_mps`."""
    given = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
    if not all(isinstance(value, OnApple) for value in given):
        raise RuntimeError("Expected all tensors to be on the same device, mps and cpu: attention")
    if not all(value.is_floating_point() or value.dtype == torch.bool for value in given):
        raise RuntimeError("MPS device does not support attention for non-float inputs")
    return OnApple(F.scaled_dot_product_attention(*inner_of(arguments), **inner_of(options)))


# Methods that ask for the device itself before they call an op; this is the op.
GUARDED: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.copy_: torch.ops.aten.copy_.default,
    Tensor.contiguous: torch.ops.aten.contiguous.default,
    Tensor.nonzero: torch.ops.aten.nonzero.default,
    Tensor.__invert__: torch.ops.aten.bitwise_not.default,
    Tensor.cpu: lambda tensor: _to(tensor, "cpu"),
    Tensor.new_tensor: lambda like, values: _to(torch.tensor(values, dtype=like.dtype), like.device),
    **{
        getattr(Tensor, name): partial(_to, dtype=dtype)
        for name, dtype in {
            "bool": torch.bool,
            "int": torch.int32,
            "long": torch.int64,
            "half": torch.float16,
            "bfloat16": torch.bfloat16,
            "float": torch.float32,
            "double": torch.float64,
        }.items()
    },
}


@contextlib.contextmanager
def apple() -> Iterator[set[str]]:
    """Within it "mps" is there; -> the names of all ops that were called, as they are called."""
    seen: set[str] = set()
    with _Calls(), _Ops(seen):
        yield seen


@contextlib.contextmanager
def mac() -> Iterator[pytest.MonkeyPatch]:
    """A machine with MPS, as torch tells of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
        patch.setattr(torch.mps, "recommended_max_memory", lambda: 8 << 30)
        patch.setattr(torch.mps, "current_allocated_memory", lambda: 1 << 30)
        yield patch


PICTURE = "photographs/chelsea.png"
HELLO = [{"role": "user", "content": "hello"}]
LONGER = [{"role": "user", "content": "hello you there"}]


def verbs(pipe: Pipeline, data: Path) -> dict[str, Any]:
    """What each of the pipeline's verbs gives, on every way through it that a device could make different."""
    picture = str(data / PICTURE)
    start = {"prefix": pipe.reconstruct(picture), "rows": pipe.config.grid - 1}
    drawn = [
        *pipe.draw("a cat", n=2, seed=1),
        *pipe.draw(["a cat", "a dog on a tree"], seed=2, top_k=9, top_p=0.9, **start),  # padding, and a sort
        *pipe.draw("a cat", guidance=1, temperature=0, **start),
    ]
    return {
        "answer": pipe.ask("What?", max_new_tokens=4),
        "about pictures": pipe.ask(
            "What?", [picture, picture], max_new_tokens=4, temperature=1.0, top_p=0.8, seed=3
        ),
        "turn": pipe.chat(HELLO, max_new_tokens=4),
        "next turn": pipe.chat([*HELLO, {"role": "assistant", "content": "so"}, *HELLO], max_new_tokens=4),
        "turns": pipe.chat([HELLO, LONGER], max_new_tokens=4),
        "pictures": [np.asarray(each) for each in drawn],
        "reconstruction": np.asarray(pipe.reconstruct(picture)),
    }


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("float64", lambda x: x.double()),
        ("float64", lambda x: torch.zeros(2, dtype=torch.float64, device=APPLE)),
        ("complex128", lambda x: torch.zeros(2, dtype=torch.complex128, device=APPLE)),
        ("same device", lambda x: x + torch.ones(2, 2)),
        ("same device", lambda x: F.linear(x, torch.ones(2, 2))),
        ("same device", lambda x: F.scaled_dot_product_attention(x[None], x[None], torch.ones(1, 2, 2))),
        ("non-float", lambda x: x.long() @ x.long()),
        ("geqrf", lambda x: torch.geqrf(x)),
        ("numpy", lambda x: x.numpy()),
        ("dimensions", lambda x: x.view(2, 2, *[1] * 15)),
    ],
    ids=[
        "to float64",
        "float64",
        "complex",
        "both",
        "weights",
        "attention",
        "integers",
        "op",
        "numpy",
        "wide",
    ],
)
def test_the_stand_in_refuses_what_the_device_does(words: str, call: Callable[[Tensor], object]) -> None:
    with apple(), pytest.raises((TypeError, RuntimeError, NotImplementedError), match=words):
        call(torch.ones(2, 2, device=APPLE))


def test_the_stand_in_computes() -> None:
    with apple():
        x = torch.arange(6.0, device=APPLE).view(2, 3)
        x[:, 0] = 7
        assert (x @ x.t()).device == APPLE
        assert (x @ x.t()).tolist() == [[54.0, 63.0], [63.0, 90.0]]
        assert int(x.argmax()) == 0
        assert x.to("cpu").numpy().sum() == 26


def test_everything_runs_on_mps_and_gives_what_the_cpu_does(data: Path) -> None:
    checkpoint = data / "januspro" / "checkpoint"
    expected = verbs(janus.load(checkpoint, device="cpu", dtype="float32"), data)
    with mac(), apple() as seen:
        pipe = janus.load(checkpoint, dtype="float32")
        assert pipe.model.device == APPLE
        assert all(isinstance(parameter, OnApple) for parameter in pipe.model.parameters())
        result = verbs(pipe, data)
    for name, value in expected.items():
        assert np.array_equal(result[name], value), name
    for op in ("__rshift__.Scalar", "sort.default", "masked_scatter.default", "convolution.default"):
        assert f"aten.{op}" in seen, f"{op}, of noise, top-p, pictures or their codes, ran elsewhere"


def flow_verbs(pipe: Pipeline, data: Path) -> dict[str, Any]:
    """As `verbs`, of a JanusFlow."""
    picture = str(data / PICTURE)
    drawn = [
        *pipe.draw(["a cat", "a dog on a tree"], seed=2, steps=2, method="midpoint"),
        *pipe.draw("a cat", n=2, seed=1, steps=1, guidance=1),
    ]
    return {
        "about a picture": pipe.ask("What?", picture, max_new_tokens=4),
        "pictures": [np.asarray(each) for each in drawn],
        "reconstruction": np.asarray(pipe.reconstruct(picture)),
    }


def test_a_flow_runs_on_mps_and_gives_what_the_cpu_does(data: Path) -> None:
    folder = data / "janusflow"
    options = {"vae": folder / "vae", "dtype": "float32"}
    expected = flow_verbs(janus.load(folder / "checkpoint", device="cpu", **options), data)
    with mac(), apple() as seen:
        result = flow_verbs(janus.load(folder / "checkpoint", **options), data)
    for one, other in zip(result.pop("pictures"), expected.pop("pictures"), strict=True):
        # Rows side by side are attended to by another of the CPU's kernels: of 8 bits, one value shows it.
        differing = np.abs(one.astype(int) - other)[one != other]
        assert len(differing) <= 3
        assert set(differing) <= {1}
    for name, value in expected.items():
        assert np.array_equal(result[name], value), name
    assert "aten.convolution.default" in seen


@pytest.mark.parametrize("dtype", ["float16", None])
def test_a_flow_in_half_precision_runs_on_mps(dtype: str | None, data: Path) -> None:
    """Its autoencoder, which leaves float16's range, is in float32 then."""
    with mac(), apple():
        pipe = janus.load(data / "janusflow" / "checkpoint", vae=data / "janusflow" / "vae", dtype=dtype)
        assert pipe.model.device == APPLE
        assert pipe.draw("a cat", seed=1, steps=1)[0].size == (pipe.config.picture_size,) * 2


@pytest.mark.parametrize("dtype", ["float16", None])
def test_half_precision_runs_on_mps(dtype: str | None, data: Path) -> None:
    """None is the checkpoint's own bfloat16."""
    with mac(), apple():
        pipe = janus.load(data / "januspro" / "checkpoint", dtype=dtype)
        assert pipe.model.dtype == getattr(torch, dtype or "bfloat16")
        assert pipe.ask("What?", str(data / PICTURE), max_new_tokens=2)
        start = pipe.reconstruct(str(data / PICTURE))
        assert pipe.draw("a cat", seed=1, prefix=start, rows=pipe.config.grid - 1)[0].size == start.size


def test_an_old_mac_computes_in_float32(data: Path) -> None:
    with mac() as patch, apple():
        patch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
        assert janus.load(data / "januspro" / "checkpoint").model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_the_cpu_calls_nothing_of_an_accelerator(
    dtype: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for module in (torch.cuda, torch.mps, torch.xpu, torch.accelerator):
        for name, function in vars(module).items():
            if callable(function) and not name.startswith("_") and not isinstance(function, type):
                monkeypatch.setattr(
                    module, name, lambda *_, name=f"{module.__name__}.{name}", **__: called.append(name)
                )
    monkeypatch.setattr(Tensor, "cuda", lambda *_, **__: called.append("Tensor.cuda"))
    monkeypatch.setattr(Tensor, "pin_memory", lambda *_, **__: called.append("Tensor.pin_memory"))
    verbs(janus.load(data / "januspro" / "checkpoint", device="cpu", dtype=dtype), data)
    flow = data / "janusflow"
    flow_verbs(janus.load(flow / "checkpoint", device="cpu", vae=flow / "vae", dtype=dtype), data)
    assert called == []


def test_models_run_without_any_device(model: Janus) -> None:
    """On "meta" tensors have no values: what runs there reads none, and so never waits for a device."""
    config = model.config
    with torch.device("meta"), torch.no_grad():
        empty = Janus(config).eval()
        size, width, grid = config.vision.image_size, config.language.width, config.grid
        features = empty.encode_images(torch.empty(2, 3, size, size))
        assert features.shape == (2, config.vision.tokens, width)
        words = empty.embed(torch.zeros(2, 7, dtype=torch.long))
        assert words.shape == (2, 7, width)
        drawn = empty.embed_codes(torch.zeros(2, grid * grid, dtype=torch.long))
        hidden = empty.hidden_states(torch.cat((features, words, drawn), dim=1))
        assert hidden.shape == (2, config.vision.tokens + 7 + grid * grid, width)
        assert empty.text_logits(hidden[:, -1]).shape == (2, config.language.vocabulary)
        assert empty.image_logits(hidden[:, -1]).shape == (2, config.vq.codes)
        pixels = torch.empty(2, 3, config.picture_size, config.picture_size)
        assert empty.vq.encode(pixels).shape == (2, grid, grid)
        assert empty.vq.decode_latents(torch.empty(2, config.vq.code_width, grid, grid)).shape == pixels.shape
        assert hidden.device.type == "meta"
