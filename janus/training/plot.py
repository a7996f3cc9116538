"""The curves of runs, drawn into one picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus.training.log import FILE, read_log

# What is looked at first; whatever else was logged follows, by name.
FIRST = (
    "loss",
    "text_loss",
    "picture_loss",
    "drawn_right",
    "told_apart",
    "rate",
    "norm",
    "tokens_per_second",
    "share_of_peak",
    "memory",
)
# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
COLUMNS = 3
SMOOTH = 0.02  # of a curve's points are averaged into one, and the points themselves drawn faintly
EXACT = ("rate", "memory")  # no noise to be smoothed away


def curves(run: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """What was logged of a run (its folder, or its log): steps and values by name.

    Raises FileNotFoundError or ValueError where there is no log, or nothing in it.
    """
    run = Path(run)
    file = run / FILE if run.is_dir() else run
    found: dict[str, tuple[list[int], list[float]]] = {}
    for record in read_log(file):
        for name, value in record.items():
            if name != "step" and (number := _number(value)) is not None:
                steps, values = found.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(number)
    if not found:
        raise ValueError(f"{file} holds no figures yet: wait for the first record of the run")
    return found


def _number(value: Any) -> float | None:
    """A figure; texts stand for those that JSON has no form for."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def plot(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Draw a panel for each figure, with a curve for each run that has it, into a PNG; -> its path.

    Raises ValueError without matplotlib, for no runs, and as `curves` does.
    """
    if not runs:
        raise ValueError("no run to plot: give the folders of one or more")
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"{output} must end in .png")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install matplotlib") from error
    found = {name: curves(run) for name, run in _names(runs).items()}
    figures = {figure for each in found.values() for figure in each}
    panels = [name for name in FIRST if name in figures] + sorted(figures - set(FIRST))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, panels, strict=False):
        _panel(axis, name, found)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=9)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return output


def _names(runs: Sequence[str | Path]) -> dict[str, str | Path]:
    """What to call runs: their folders' names, or their paths where names are alike."""
    folders = [Path(run).parent if Path(run).name == FILE else Path(run) for run in runs]
    short = [folder.resolve().name for folder in folders]
    alike = len(set(short)) < len(short)
    return {str(run) if alike else name: run for run, name in zip(runs, short, strict=True)}


def _panel(axis: Any, name: str, found: Mapping[str, Mapping[str, tuple[list[int], list[float]]]]) -> None:
    for number, (run, figures) in enumerate(found.items()):
        if name in figures:
            steps, values = figures[name]
            color = COLORS[number % len(COLORS)]
            width = 1 if name in EXACT else max(1, round(SMOOTH * len(values)))
            if width > 1:
                axis.plot(steps, values, color=color, linewidth=0.5, alpha=0.35)
            axis.plot(steps, smooth(values, width), color=color, linewidth=1.4, label=run)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Each value's mean with up to `width - 1` before it."""
    windows = (values[max(0, place - width + 1) : place + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]
