"""One of several processes that share out what Muon computes: `muon_rank.py FOLDER`.

It writes what its matrices are after two steps to FOLDER/<rank>.pt.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from janus.training.muon import Muon
from janus.training.parallel import ranks

SHAPES = ((24, 40), (40, 24), (32, 32), (24, 40), (24, 40))  # of one kind three, of two but one


def two_steps(group: distributed.ProcessGroup | None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    matrices = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = Muon(matrices, lr=0.5, weight_decay=0.25, group=group)
    for _ in range(2):
        for weight in matrices:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach() for weight in matrices]


if __name__ == "__main__":
    with ranks("cpu") as place:
        torch.save(two_steps(place.group), Path(sys.argv[1]) / f"{place.rank}.pt")
