"""Every configuration that can be launched fits every chip: no spilled registers, enough shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from janus.kernels import choice
from janus.kernels.compile import CHIPS, Report, describe, every_launch, specialised
from janus.kernels.launch import triton

pytestmark = pytest.mark.skipif(triton is None, reason="triton is not installed on this platform")
PARTS = 4


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_every_configuration_compiles_and_fits(part: int, tmp_path: Path) -> None:
    # The interpreter replaces the compiler in this process.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "janus.kernels.compile",
        "--part",
        f"{part}/{PARTS}",
        "--json",
        str(report),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(report.read_text())
    assert {row["chip"] for row in rows} == set(CHIPS)
    assert all(row["registers"] > 0 for row in rows)


@pytest.mark.parametrize("op", choice.OPS)
def test_every_op_has_launches(op: str) -> None:
    module = sys.modules.get(f"janus.kernels.{op}") or __import__(
        f"janus.kernels.{op}", fromlist=["every_launch"]
    )
    assert list(module.every_launch())


def test_a_misfit_is_reported() -> None:
    fits = Report("kernel", "sm_90", "", registers=255, spilled=0, shared=1024)
    assert fits.problem() is None
    assert "spills 8 bytes" in (Report("kernel", "sm_90", "", 255, 8, 1024).problem() or "")
    too_much = Report("kernel", "gfx942", "", 255, 0, 64 * 1024 + 1).problem()
    assert too_much == "takes 65537 bytes of shared memory of 65536"


@pytest.mark.skipif(torch.cuda.is_available(), reason="recorded as the interpreter sees them")
def test_arguments_are_specialised_as_the_compiler_does() -> None:
    launch = next(launch for launch in every_launch() if launch.kernel.__name__ == "_lookup_kernel")
    signature, constants, attributes = specialised(launch)
    names = list(signature)
    assert signature["codes_ptr"] == "*i64"
    assert signature["codebook_ptr"] == "*bf16"
    assert signature["positions"] == "i32"
    assert (signature["stride_width"], constants["stride_width"]) == ("constexpr", 1)
    assert (signature["WIDTH"], constants["WIDTH"]) == ("constexpr", 8)
    assert (names.index("positions"),) in attributes, "576 is divisible by 16"
    assert (names.index("stride_code"),) not in attributes, "8 is not"
    assert describe(launch).startswith("_lookup_kernel *i64,*bf16,*bf16,i32,i32,i32 stride_width=1,WIDTH=8")
