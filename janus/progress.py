"""Progress of long work: a bar with a rate on a terminal, a caller's function, or nothing."""

import sys
from collections.abc import Callable

from tqdm import tqdm

Report = Callable[[int, int], None]


def announce(text: str) -> None:
    """Tell somebody who looks on at a terminal what takes so long."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


class Progress:
    """Counts to `total`. `show`: None for a bar on terminals, True, False, or a function (done, total)."""

    def __init__(self, total: int, unit: str, show: bool | Report | None) -> None:
        if show not in (None, True, False) and not callable(show):
            raise ValueError(f"progress must be None, True, False or a function (done, total), not {show!r}")
        self.total = total
        self.done = 0
        self.report = show if callable(show) else None
        hidden = show if show is None else callable(show) or not show
        self.bar = tqdm(total=total, unit=unit, disable=hidden, leave=False, smoothing=0.1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.bar.update(count)
        if self.report:
            self.report(self.done, self.total)
