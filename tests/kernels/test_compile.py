"""Every configuration that can be launched fits every chip: no spilled registers, enough shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.kernels import needs_triton
from janus.kernels import choice
from janus.kernels.compile import CHIPS, Report

pytestmark = needs_triton
PARTS = 4


def compiled(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What the command reports, in a process of its own: in this one the interpreter is at work."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    report = folder / "report.json"
    command = [sys.executable, "-m", "janus.kernels.compile", "--json", str(report), *options]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(report.read_text())


@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_every_configuration_compiles_and_fits(part: int, tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--part", f"{part}/{PARTS}")
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


def test_arguments_are_specialized_as_triton_does(tmp_path: Path) -> None:
    """A stride of 1 becomes a constant, multiples of 16 are known as such, constants are constants."""
    report = compiled(tmp_path, "--kernel", "_lookup", "--chip", "sm_90")
    first = next(
        row for row in report if "WIDTH=8" in row["configuration"] and "bf16" in row["configuration"]
    )
    # Pointers are aligned; 16 * 576 rows and 576 positions are multiples of 16, a code's stride of 8 is not.
    assert first["configuration"] == (
        "_lookup_kernel *i64,*bf16,*bf16,i32,i32,i32 "
        "stride_width=1,WIDTH=8,BLOCK=128,TINY=1e-12,num_warps=4 1111100000"
    )
