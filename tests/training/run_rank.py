"""A run of training in a process of its own: `run_rank.py RECIPE FOLDER [STEPS [KILLED]]`.

KILLED says where it is killed, as by `kill -9`: "writing", while the checkpoint of step 4 is on its way to
the disk; "learning", in step 6, when weights have moved that no checkpoint holds.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from janus.training import checkpoint, train
from janus.training.log import RunLog

REACHED = {"writing": 4, "learning": 6}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_writing(folder: Path, *rest: Any) -> None:
    """In place of the checkpoint's last files: what has been written by now is also torn."""
    if "step-00000004" in str(folder):
        for file in folder.parent.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        kill()
    checkpoint_write(folder, *rest)


def killed_learning(log: RunLog, *rest: Any, **more: Any) -> None:
    if log.done + 1 == REACHED["learning"]:
        kill()
    log_step(log, *rest, **more)


checkpoint_write, log_step = checkpoint._write, RunLog.step


def main(recipe: str, folder: str, steps: str = "", killed: str = "") -> None:
    torch.set_num_threads(1)
    if killed == "writing":
        checkpoint._write = killed_writing
    if killed == "learning":
        RunLog.step = killed_learning
    train(recipe, folder, overrides=[f"steps={steps}"] if steps else [], device="cpu")


if __name__ == "__main__":
    main(*sys.argv[1:])
