"""Two processes with half of the pictures each against one with all of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq import VQState, VQTraining, vq_step

RANK = Path(__file__).with_name("rank.py")
REPOSITORY = RANK.parents[3]
RATE = 0.05  # of plain gradient descent: Adam would make a sign of the last bits of gradients near 0


@pytest.mark.parametrize("background", [None, (128, 128, 128)], ids=["all alike", "foreground"])
def test_two_processes_train_as_one(
    background: tuple[int, int, int] | None,
    build: Callable[..., VQ],
    squares: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    vq = build()
    config = VQTraining(
        quantize_from=2,
        revive_every=1,
        discriminator_from=3,
        discriminator_channels=4,
        discriminator_layers=1,
        start_latents=90,
        clip=0.5,
        background=background,
        foreground=1.0 if background is None else 6.0,
    )
    pictures = [squares(step, count=4, side=8, tile=4) for step in range(6)]
    for each in pictures:
        each[0] = 128 / 127.5 - 1  # the two have not as much of what has weight
    run = {
        "architecture": vq.config,
        "weights": vq.state_dict(),
        "config": config,
        "pictures": pictures,
        "rate": RATE,
    }
    torch.save(run, tmp_path / "run.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]

    state = VQState.start(vq, config, optimizer=torch.optim.SGD(vq.parameters(), lr=RATE))
    revived = 0
    for pixels in pictures:
        figures = vq_step(vq, pixels, state, config)
        revived += int(figures.get("revived", 0))

    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert revived > 0
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in vq.state_dict().items():
        assert torch.equal(ends[0][0][name], ends[1][0][name]), f"{name} is one and the same on both"
        # Sums over pictures in another order, six steps in a row.
        torch.testing.assert_close(ends[0][0][name], tensor, rtol=1e-4, atol=1e-5)
    for _, usage, unused, others in ends:
        torch.testing.assert_close(usage, state.usage)
        assert torch.equal(unused, state.unused)
        for name in ("codes_used", "revived"):
            assert others[name] == figures[name], name
