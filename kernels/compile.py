"""Compile every kernel ahead of time, for chips that need not be here: `python -m janus.kernels.compile`.

Prints what each configuration needs of its chip, and fails where it spills registers or asks for more shared
memory than there is. Run it after every change of a kernel.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus.kernels import choice
from janus.kernels.launch import INTERPRETED, Launch, recorded, triton

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


@dataclass(frozen=True)
class Chip:
    """A target of the compiler, the shared memory (LDS on AMD) that one program may take, in bytes, and how
    many bytes of registers a thread may spill."""

    backend: str
    architecture: int | str
    warp: int
    shared: int
    spilled: int = 0


CHIPS = {
    # CUDA C++ Programming Guide, "Technical Specifications".
    "sm_80": Chip("cuda", 80, 32, 163 * 1024),
    # For sm_89 and sm_120 too, which have as little. Blocks are not chosen for these: a few bytes may spill.
    "sm_86": Chip("cuda", 86, 32, 99 * 1024, spilled=32),
    "sm_90": Chip("cuda", 90, 32, 227 * 1024),
    "sm_100": Chip("cuda", 100, 32, 227 * 1024),
    "gfx942": Chip("hip", "gfx942", 64, 64 * 1024),  # CDNA 3 ISA guide, "LDS"
}


@dataclass(frozen=True)
class Report:
    """What one configuration needs on one chip; registers per thread, bytes."""

    kernel: str
    chip: str
    configuration: str
    registers: int
    spilled: int
    shared: int

    def problem(self) -> str | None:
        if self.spilled > CHIPS[self.chip].spilled:
            return f"spills {self.spilled} bytes of registers"
        if self.shared > CHIPS[self.chip].shared:
            return f"takes {self.shared} bytes of shared memory of {CHIPS[self.chip].shared}"
        return None


def every_launch() -> Iterator[Launch]:
    """Every configuration that the launchers can launch, once."""
    seen = set()
    for op in choice.OPS:
        for call in importlib.import_module(f"janus.kernels.{op}").every_launch():
            with recorded() as launches:
                call()
            for launch in launches:
                key = describe(launch)
                if key not in seen:
                    seen.add(key)
                    yield launch


def specialized(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and attributes, as Triton's JIT would derive them from the arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def describe(launch: Launch) -> str:
    """Kernel, dtypes, constants and options in one line; equal for equal compilations."""
    signature, constants, attributes = specialized(launch)
    types = ",".join(kind for kind in signature.values() if kind != "constexpr")
    named = ",".join(f"{name}={value}" for name, value in {**constants, **launch.options}.items())
    aligned = "".join(str(int((index,) in attributes)) for index in range(len(signature)))
    return f"{launch.kernel.__name__} {types} {named} {aligned}"


def _ptxas(ptx: str, architecture: int) -> tuple[int, int]:
    """Registers per thread and bytes spilled, as NVIDIA's assembler reports them."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    # Newer chips have an assembler of their own in Triton's package.
    tools = [folder / "ptxas-blackwell", folder / "ptxas"] if architecture >= 100 else [folder / "ptxas"]
    tool = next(tool for tool in tools if tool.exists())
    target = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        command = [
            str(tool),
            "-v",
            f"--gpu-name={target[1]}",
            str(source),
            "-o",
            str(Path(scratch) / "kernel.cubin"),
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(int(number) for number in re.findall(r"Used (\d+) registers", report))
    spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", report))
    return registers, spills


def compile_for(launch: Launch, chip_name: str) -> Report:
    """Compile one configuration for one chip, with Triton's own compiler and cache."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    chip = CHIPS[chip_name]
    signature, constants, attributes = specialized(launch)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(
        source,
        target=GPUTarget(chip.backend, chip.architecture, chip.warp),
        options=launch.amd_options if chip.backend == "hip" else launch.options,
    )
    if chip.backend == "cuda":
        registers, spilled = _ptxas(compiled.asm["ptx"], int(chip.architecture))
    else:
        counts = dict(
            re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"])
        )
        registers = int(counts["vgpr_count"])
        spilled = 4 * int(counts["vgpr_spill_count"])
    return Report(
        launch.kernel.__name__, chip_name, describe(launch), registers, spilled, compiled.metadata.shared
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", action="append", choices=CHIPS, help="only this one (may be repeated)")
    parser.add_argument("--kernel", default="", help="only kernels of this op, or whose name contains this")
    parser.add_argument("--part", default="1/1", help="only the i-th of n parts, i/n, to share the work")
    parser.add_argument("--json", metavar="FILE", help="write the reports there too")
    options = parser.parse_args()
    if triton is None or INTERPRETED:
        print("compiling needs triton, and TRITON_INTERPRET unset", file=sys.stderr)
        return 2
    part, parts = (int(number) for number in options.part.split("/"))
    reports, failures = [], 0
    for launch in every_launch():
        module = launch.kernel.__module__.rpartition(".")[2]
        name = f"{module}.{launch.kernel.__name__}"
        for chip in options.chip or CHIPS:
            share = int(hashlib.sha256(f"{describe(launch)} {chip}".encode()).hexdigest(), 16) % parts
            if options.kernel not in name or share != part - 1:
                continue
            report = compile_for(launch, chip)
            reports.append(report)
            problem = report.problem()
            failures += problem is not None
            print(
                f"{chip:7} {report.registers:4} registers {report.shared:7} shared  {report.configuration}"
                + (f"  FAILS: {problem}" if problem else ""),
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps([asdict(report) for report in reports], indent=1))
    print(f"{len(reports)} compiled, {failures} of them unfit")
    return 1 if failures or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
