"""A benchmark that is none: right, wrong and failing implementations of a doubling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import run
import timer
from cases import Case
from machine import Ceilings, identify
from measure import Cost, Session
from rows import Row

CPU = torch.device("cpu")
CASE = Case(name="double_1024_fp32", dtype=torch.float32, cpu=True, quick=True, headline="doubling")
LARGE = Case(name="double_4096_fp32", dtype=torch.float32, cpu=True)
GPU_ONLY = Case(name="double_8192_bf16", dtype=torch.bfloat16)


@dataclass
class Fake:
    """The module, and how often each implementation was called."""

    module: ModuleType
    counts: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def fake() -> Fake:
    found = Fake(ModuleType("bench_fake"))

    def counted(name: str, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Callable[[], Any]]:
        def prepare(x: Tensor) -> Callable[[], Any]:
            def call() -> Any:
                found.counts[name] = found.counts.get(name, 0) + 1
                return function(x)

            return call

        return prepare

    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nand a long explanation")

    def setup(case: Case, device: torch.device) -> dict[str, Any]:
        functions: dict[str, Callable[[Tensor], Any]] = {
            "eager": lambda x: x + x,
            "einsum-wrong": lambda x: 2.01 * x,
            "sdpa-failing": failing,
            "cdist-nan": lambda x: x * torch.nan,
            "flex-shape": lambda x: 2 * x[1:],
            "janus": lambda x: 2 * x,
            "transformers": lambda x: x.mul(2),
        }
        return {name: counted(name, function) for name, function in functions.items()}

    found.module.CASES = (CASE, LARGE, GPU_ONLY)
    found.module.cost = lambda case: Cost(bytes=8 * 1024, flop=1024, arithmetic=torch.float32)
    found.module.inputs = lambda case, device: (torch.randn(1024, device=device),)
    found.module.setup = setup
    return found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a clock: regions are one call long or little more, and rounds are few."""
    monkeypatch.setattr(timer, "CPU_REGION", 1e-6)
    monkeypatch.setattr(run, "QUICK", timer.Budget(0, 3, 3))
    monkeypatch.setattr(run, "FULL", timer.Budget(0, 3, 3))


@pytest.fixture
def session() -> Session:
    return Session(
        device=CPU,
        machine=identify(CPU, "abc"),
        ceilings=Ceilings(bandwidth=8 * 1024 * 1e3, rates={torch.float32: 1024 * 1e2}),
        budget=timer.Budget(0, 3, 3),
        date="2026-11-22T00:00:00+00:00",
        quick=True,
    )


@pytest.fixture
def made() -> Callable[..., Row]:
    """A row of which only what matters is given."""

    def make(**changes: Any) -> Row:
        values: dict[str, Any] = {
            "date": "2026-11-22T00:00:00+00:00",
            "machine": "cray-1",
            "device": "Cray-1",
            "threads": 2,
            "torch": "2.13.0",
            "triton": "3.7.1",
            "commit": "abc",
            "quick": False,
            "benchmark": "fake",
            "case": CASE.name,
            "dtype": "fp32",
            "implementation": "janus",
            "unit": "ms",
            "median": 2.0,
            "quantile_20": 1.5,
            "quantile_80": 2.5,
            "cpu": None,
            "repeats": 3,
            "calls": 7,
            "clock": "wall",
            "floor": 0.5,
            "floor_fraction": 0.25,
            "bytes": 8192,
            "flop": 1024,
            "arithmetic": "fp32",
            "bandwidth": 1e9,
            "rate": 1e10,
            "peak_bytes": 4096,
        }
        return Row(**{**values, **changes})

    return make
