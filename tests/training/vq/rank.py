"""One process of two that train a VQ tokenizer together, for test_ranks.py: `rank.py RANK FOLDER`.

It reads FOLDER/run.pt and writes what it ends with to FOLDER/<rank>.pt.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from janus.models.vq import VQ
from janus.training.vq import VQState, VQTraining, vq_step


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    run = torch.load(folder / "run.pt", weights_only=False)  # the test's own file
    vq = VQ(run["architecture"])
    vq.load_state_dict(run["weights"])
    config: VQTraining = run["config"]
    store = (folder / "store").as_uri()
    # A process whose partner has failed does not wait for it for ever.
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    optimizer = torch.optim.SGD(vq.parameters(), lr=run["rate"])
    state = VQState.start(vq, config, optimizer=optimizer, group=distributed.group.WORLD)
    for pixels in run["pictures"]:
        figures = vq_step(vq, pixels.chunk(2)[rank], state, config)
    torch.save((vq.state_dict(), state.usage, state.unused, figures), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
