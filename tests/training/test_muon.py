"""Muon: a first step by hand, against torch's own, and in the precision that the machine is good at."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from janus import cpu
from janus.training.muon import AT_ONCE, Muon, of_one_shape, orthogonal

PROGRAM = Path(__file__).with_name("muon_rank.py")
SHAPES = ((24, 40), (40, 24), (32, 32), (24, 40), (48, 32))


def matrices(seed: int = 0) -> list[nn.Parameter]:
    """One kind comes twice; each has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    for weight in found:
        weight.grad = torch.randn(weight.shape, generator=generator)
    return found


@pytest.fixture(params=[True, False], ids=["float32", "bfloat16"])
def off_diagonal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """What rounding leaves of U' (U V') V off its diagonal, of a machine that widens 16 bits or does not."""
    monkeypatch.setattr(cpu, "widens", lambda device, dtype: request.param)
    # Fifteen products in a row, of singular values about 1: float32 is off by 2 ** -23 each, bfloat16 by -8.
    return 1e-4 if request.param else 0.1


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)], ids=str)
def test_singular_values_end_about_one(shape: tuple[int, int], off_diagonal: float) -> None:
    given = torch.randn((3, *shape), generator=torch.Generator().manual_seed(1))
    found = orthogonal(given)
    assert found.shape == given.shape
    assert found.dtype == given.dtype
    for before, after in zip(given, found, strict=True):
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        within = u.T @ after @ v.T
        # Jordan (2024): between 0.68 and 1.14, and what 16 bits add to it.
        assert ((within.diagonal() > 0.6) & (within.diagonal() < 1.25)).all()
        assert (within - within.diagonal().diag()).abs().max() < off_diagonal


def test_a_matrix_of_zeros_stays_so(off_diagonal: float) -> None:
    assert not orthogonal(torch.zeros(2, 8, 4)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 brought its own Muon")
def test_steps_are_those_of_torch(off_diagonal: float) -> None:
    ours, theirs = matrices(), matrices()
    settings = {"lr": 0.5, "weight_decay": 0.25}
    first = Muon(ours, **settings)
    second = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        first.step()
        second.step()
    for mine, other in zip(ours, theirs, strict=True):
        # Theirs are always of 16 bits, off by 2 ** -4 of what a step moves a number by, which is about 0.1.
        assert (mine - other).abs().max() < 3 * 0.1 * 2**-4
        assert torch.equal(first.state[mine]["momentum_buffer"], second.state[other]["momentum_buffer"])


def test_what_has_no_gradient_stands_still() -> None:
    first, second = matrices()[:2]
    first.grad = None
    before: list[Tensor] = [first.detach().clone(), second.detach().clone()]
    optimizer = Muon([first, second], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(first, before[0])
    assert not torch.equal(second, before[1])
    assert first not in optimizer.state


def test_matrices_alike_come_together_and_large_ones_alone() -> None:
    small = matrices()
    large = [nn.Parameter(torch.empty(1024, AT_ONCE // 1024, device="meta")) for _ in range(2)]
    for weight in large:
        weight.grad = weight.detach()
    parts = list(of_one_shape([*small, *large]))
    assert [[each.shape for each in part] for part in parts] == [
        [(24, 40), (24, 40)],
        [(40, 24)],
        [(32, 32)],
        [(48, 32)],
        [(1024, AT_ONCE // 1024)],
        [(1024, AT_ONCE // 1024)],
    ]
    assert parts[0][0] is small[0]
    assert parts[0][1] is small[3]


def test_processes_share_the_matrices_out(
    tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = torchrun(PROGRAM, tmp_path)
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    # A step moves a number by about 0.1, and products of stacks as high as these are rounded alike but for
    # the order of their sums: in bfloat16 by 2 ** -8 of it.
    for shared, alone in zip(first, runpy.run_path(str(PROGRAM))["two_steps"](None), strict=True):
        torch.testing.assert_close(shared, alone, rtol=0, atol=1e-3)
