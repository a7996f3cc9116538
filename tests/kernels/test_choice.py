"""Which implementation runs, and how a user forces one."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.kernels import DEVICE, needs_triton
from janus.kernels import choice, launch
from janus.kernels.codebook import nearest_code_op

CPU = torch.zeros(1)


@needs_triton
def test_the_interpreter_stands_in_where_there_is_no_gpu() -> None:
    assert (DEVICE == "cpu") == launch.INTERPRETED, "or kernels were not what was tested"


def test_the_cpu_runs_the_references_unless_told_otherwise() -> None:
    assert choice.implementation("codebook", CPU) == "torch"


def test_forcing_nests_and_ends() -> None:
    with choice.use("torch"):
        with choice.use(codebook="triton"):
            assert choice._forced == {**dict.fromkeys(choice.OPS, "torch"), "codebook": "triton"}
        assert choice._forced == dict.fromkeys(choice.OPS, "torch")
    assert choice._forced == {}


def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(KeyError), choice.use("torch"):
        raise KeyError
    assert choice._forced == {}


def test_threads_that_overlap_leave_nothing_forced() -> None:
    """Whoever came first may go first: what is forced is what those who are still there want."""
    outer, inner = choice.use(attention="torch"), choice.use(attention="triton")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert choice._forced == {"attention": "triton"}
    inner.__exit__(None, None, None)
    assert choice._forced == {}


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1, dtype=torch.float64), r"not torch\.float64"),
        (torch.zeros(1, device="meta"), "run on a GPU, not on meta"),
    ],
)
def test_what_no_kernel_can_take_says_why(tensor: torch.Tensor, reason: str) -> None:
    assert choice.implementation("codebook", tensor) == "torch"
    with choice.use(codebook="triton"), pytest.raises(RuntimeError, match=reason):
        choice.implementation("codebook", tensor)


def test_an_ops_own_obstacle_counts() -> None:
    with (
        choice.use(codebook="triton"),
        pytest.raises(RuntimeError, match="codebook was asked for, but it rains"),
    ):
        choice.implementation("codebook", CPU, unable="it rains")
    with choice.use(codebook="torch"):
        assert choice.implementation("codebook", CPU, unable="it rains") == "torch"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" ", {}),
        ("torch", dict.fromkeys(choice.OPS, "torch")),
        ("codebook=triton", {"codebook": "triton"}),
        ("codebook = triton, attention=torch", {"codebook": "triton", "attention": "torch"}),
    ],
)
def test_the_environment_variable_is_read(text: str, expected: dict[str, str]) -> None:
    assert choice.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda", "the implementations triton, torch, not 'cuda'"),
        ("codebook=", "the implementations triton, torch, not ''"),
        ("codebok=torch", "no op is called 'codebok'; there are add_rms_norm, attention, codebook"),
        ("codebook=torch,", "no op is called ''"),
    ],
)
def test_a_misspelled_choice_raises(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice.parse(text)
    if "=" in text:
        return
    with pytest.raises(ValueError, match=message), choice.use(text):
        pass
    assert choice._forced == {}


def test_without_triton_everything_imports_and_runs() -> None:
    """As on a machine where it is not installed."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, importlib\n"
        "from janus.kernels import choice, codebook\n"
        "for op in choice.OPS: importlib.import_module(f'janus.kernels.{op}')\n"
        "assert choice.obstacle(torch.zeros(1)) == 'triton is not installed'\n"
        "assert codebook.nearest_code(torch.eye(8), torch.eye(8)).tolist() == list(range(8))\n"
        "import janus.models.janus\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_an_op_called_by_name_runs_too() -> None:
    codes = torch.ops.janus.nearest_code(torch.eye(8), torch.eye(8))
    assert torch.equal(codes, nearest_code_op(torch.eye(8), torch.eye(8)))
    assert codes.tolist() == list(range(8))


def test_a_gpu_on_which_triton_cannot_launch_gets_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds its driver when it first launches: that fails without a C compiler, and is not in the way."""

    def fail() -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(launch, "missing", None)
    monkeypatch.setattr(launch, "triton", SimpleNamespace(runtime=SimpleNamespace(driver=Driver(fail))))
    monkeypatch.setattr(choice, "_new_enough", lambda index: True)
    launch.driver_problem.cache_clear()
    tensor: Any = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda", 0))
    assert choice.implementation("swiglu", tensor) == "torch"
    with (
        choice.use("triton"),
        pytest.raises(RuntimeError, match="Failed to find C comp"),
    ):
        choice.implementation("swiglu", tensor)
    launch.driver_problem.cache_clear()
    monkeypatch.setattr(
        launch, "triton", SimpleNamespace(runtime=SimpleNamespace(driver=Driver(lambda: "sm_90")))
    )
    assert choice.implementation("swiglu", tensor) == "triton"
    launch.driver_problem.cache_clear()


class Driver:
    """Triton's, of which the active one says what it compiles for."""

    def __init__(self, target: Any) -> None:
        self.active = SimpleNamespace(get_current_target=target)
