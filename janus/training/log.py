"""What is seen of a run: one JSON object a line, a line of progress, and TensorBoard where it is installed.

A record says at which `step` it was made, the number of steps done. A run that goes on drops the records of
steps that it does again, and what a kill left of a line, so that the file reads as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from janus.files import write_whole
from janus.training.recipe.watch import Log, PictureAsked
from janus.training.worlds.shapes import Question

FILE = "log.jsonl"
GIB = 1 << 30
CPU = torch.device("cpu")
Number = float | int | torch.Tensor


class RunLog:
    """The log of a run in `folder`, which goes on after `done` of its `steps`.

    `rate` is what the machine computes at most, FLOP a second (`flops.machine_rate`); `memory` tells the
    bytes in use; `show` gets the line of progress; `clock` counts seconds. Only one process of a run has one.
    Raises ValueError for a log that is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Log,
        *,
        steps: int,
        done: int = 0,
        rate: float | None = None,
        memory: Callable[[], int] | None = None,
        show: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings, self.steps, self.done = settings, steps, done
        self.rate, self.memory, self.clock = rate, memory or partial(process_memory, CPU), clock
        self.show = show or (lambda line: print(line, file=sys.stderr, flush=True))
        _forget_after(self.folder / FILE, done)
        self.file = (self.folder / FILE).open("a", encoding="utf-8")
        self.board = _tensorboard(self.folder, done) if settings.tensorboard else None
        self.begin, self.last = (done, clock()), clock()
        self.tokens = self.flop = 0

    def step(self, figures: Mapping[str, Number], *, tokens: int, flop: int) -> None:
        """A step is done, of so many tokens and FLOP; its figures are read where they are due.

        `figures` are scalars by name: `loss` and its parts, `rate`, whatever else; reading them may wait for
        a GPU.
        """
        self.done += 1
        self.tokens, self.flop = self.tokens + tokens, self.flop + flop
        if self.done % self.settings.every and self.done != self.steps:
            return
        now = self.clock()
        seconds, self.last = max(now - self.last, 1e-9), now
        record = {name: float(value) for name, value in figures.items()}
        record["tokens_per_second"] = self.tokens / seconds
        if self.rate is not None:
            record["share_of_peak"] = self.flop / seconds / self.rate
        record["memory"] = self.memory()
        self.tokens = self.flop = 0
        begun, since = self.begin
        left = (now - since) / (self.done - begun) * (self.steps - self.done)
        self.write(record)
        self.show(progress_line(self.done, self.steps, record, left))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that no step takes: samples, scores, checkpoints. The speed is told without it."""
        begun = self.clock()
        try:
            yield
        finally:
            self.last += self.clock() - begun

    def write(self, record: Mapping[str, Any]) -> None:
        """A record of this moment: figures that are not finite become texts, which JSON has a form for."""
        plain = {name: _plain(value) for name, value in record.items()}
        self.file.write(json.dumps({"step": self.done, **plain}, allow_nan=False) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, float | int):
                    self.board.add_scalar(name, value, self.done)

    def samples(
        self,
        drawn: Sequence[tuple[str, Image.Image]] = (),
        answers: Sequence[tuple[PictureAsked, str]] = (),
        scenes: Sequence[tuple[Question, str]] = (),
    ) -> None:
        """Prompts with what was drawn, and pictures and scenes of a world with what was answered.

        What was drawn and scenes go to `samples/`.
        """
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        pictures = []
        for number, (prompt, picture) in enumerate(drawn):
            name = f"{self.done:08d}-{number:02d}.png"
            picture.save(folder / name)
            pictures.append({"prompt": prompt, "picture": f"samples/{name}"})
        asked = [{**vars(each), "answer": answer} for each, answer in answers]
        for number, (scene, answer) in enumerate(scenes):
            name = f"scene-{number:02d}.png"
            if not (folder / name).exists():  # they are the same every time
                Image.fromarray(scene.picture).save(folder / name)
            own = {"picture": f"samples/{name}", "question": scene.question, "answer": answer}
            asked.append(own | {"wanted": scene.answer})
        self.write({"drawn": pictures, "asked": asked})
        if self.board is not None:
            for number, (prompt, picture) in enumerate(drawn):
                pixels = np.asarray(picture.convert("RGB"))
                tag = f"drawn/{number:02d} {prompt[:60]}"
                self.board.add_image(tag, pixels, self.done, dataformats="HWC")
            told = [(each.question, answer) for each, answer in answers]
            told += [(each.question, answer) for each, answer in scenes]
            for number, (question, answer) in enumerate(told):
                self.board.add_text(f"asked/{number:02d} {question[:60]}", answer, self.done)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tensorboard(folder: Path, done: int) -> Any:
    """A writer of TensorBoard's files, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)


def read_log(file: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in order; what a kill left of the last line is not among them.

    Raises FileNotFoundError, or ValueError naming the line that is no record.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there: give the folder of a run, with its {FILE}")
    *lines, _torn = file.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(f"{file}:{number}: not a record of a run: take the line out, or the file away")
        records.append(record)
    return records


def _forget_after(file: Path, done: int) -> None:
    """Leave in a log the records of the first `done` steps, and whole lines."""
    if not file.exists():
        return
    kept = [record for record in read_log(file) if record["step"] <= done]
    whole = "".join(json.dumps(record) + "\n" for record in kept).encode()
    if whole != file.read_bytes():
        write_whole(file, whole)


def process_memory(device: torch.device) -> int:
    """Bytes that this process uses at most so far: of the GPU if it computes on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def progress_line(done: int, steps: int, record: Mapping[str, Any], left: float) -> str:
    """A record in words; `left` are the seconds to go."""
    parts = ", ".join(
        f"{name.removesuffix('_loss')} {value:.4g}"
        for name, value in record.items()
        if name.endswith("_loss")
    )
    words = [f"step {done:>{len(str(steps))}}/{steps}"]
    if "loss" in record:
        words.append(f"loss {record['loss']:.4g}" + (f" ({parts})" if parts else ""))
    if "drawn_right" in record:
        words.append(f"{100 * record['drawn_right']:.0f} % drawn right")
    if "told_apart" in record:
        words.append(f"{100 * record['told_apart']:.0f} % told apart")
    if "dropped" in record:
        words.append(f"{record['dropped']:.0f} too long, {record['cut']:.0f} cut")
    if "rate" in record:
        words.append(f"rate {record['rate']:.2e}")
    words.append(f"{_short(record['tokens_per_second'])} tokens/s")
    if "share_of_peak" in record:
        words.append(f"{100 * record['share_of_peak']:.0f} % of peak")
    words += [f"{record['memory'] / GIB:.1f} GiB", f"{duration(left)} left"]
    return "  ".join(words)


def duration(seconds: float) -> str:
    """As people say it: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _short(number: float) -> str:
    """Three digits and a letter for thousands or millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
