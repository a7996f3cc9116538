"""Pictures of what was measured: bars of times, and a roofline, for each benchmark of one machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rows import Row, by_case, latest, number, read

# Okabe and Ito's colors, told apart by color-blind readers too; ours is the vermilion.
OURS = "#D55E00"
OTHERS = ("#0072B2", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000", "#999999")
MARKERS = "osD^vP*Xh<>p"
COLUMNS = 3


def _styles(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Color and marker of each implementation; the same in both pictures of a benchmark."""
    names = sorted(
        {row.implementation for row in rows}, key=lambda name: (not name.startswith("janus"), name)
    )
    own = [name for name in names if name.startswith("janus")]
    others = [name for name in names if name not in own]
    styles = {name: (OURS, MARKERS[index % len(MARKERS)]) for index, name in enumerate(own)}
    for index, name in enumerate(others):
        marker = MARKERS[(index + len(own)) % len(MARKERS)]
        styles[name] = OTHERS[index % len(OTHERS)], marker
    return styles


def _title(rows: Sequence[Row]) -> str:
    row = max(rows, key=lambda row: row.date)
    return f"{row.benchmark} on {row.device} ({row.machine}), torch {row.torch}, {row.date[:10]}"


def _bars(figure: Any, rows: Sequence[Row]) -> None:
    """A panel for each case: times by implementation, and the floor."""
    cases = sorted(by_case(rows).items())
    styles = _styles(rows)
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    most = max(len(group) for _, group in cases)
    figure.set_size_inches(6 * columns, lines * (1.1 + 0.3 * most) + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, ((_, case), group) in zip(panels, cases, strict=False):
        names = [row.implementation for row in group]
        medians = [row.median for row in group]
        spread = [
            [row.median - row.quantile_20 for row in group],
            [row.quantile_80 - row.median for row in group],
        ]
        colors = [styles[name][0] for name in names]
        panel.barh(
            names, medians, xerr=spread, color=colors, ecolor="#444444", edgecolor="black", linewidth=0.4
        )
        for place, row in enumerate(group):
            panel.annotate(
                number(row.median),
                (row.quantile_80, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        # Fewer bits to a weight have a lower floor; this is the one of all others.
        floor = max(row.floor for row in group)
        panel.axvline(floor, color="black", linestyle="--", linewidth=1, label="floor")
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.set_xlim(left=0)
        panel.set_title(case, fontsize=11)
        panel.set_xlabel(f"{group[0].unit} per call, median, 20 % and 80 % quantiles", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(cases) :]:
        panel.set_visible(False)
    figure.suptitle(_title(rows), fontsize=12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", fontsize=10)


def _roofline(figure: Any, rows: Sequence[Row]) -> None:
    """FLOP a second over FLOP per byte, under what memory and arithmetic allow."""
    figure.set_size_inches(10, 6)
    panel = figure.subplots()
    styles = _styles(rows)
    intensities = [row.flop / row.bytes for row in rows]
    ends = min(intensities) / 4, max(intensities) * 4
    roofs = {(row.arithmetic, row.bandwidth, row.rate) for row in rows}  # of every run that rows are of
    for arithmetic, bandwidth, rate in sorted(roofs):
        corner = min(max(rate / bandwidth, ends[0]), ends[1])
        points = sorted({ends[0], corner, ends[1]})
        heights = [min(point * bandwidth, rate) / 1e12 for point in points]
        label = f"{bandwidth / 1e9:.0f} GB/s, {rate / 1e12:.3g} TFLOP/s {arithmetic}"
        panel.plot(
            points, heights, color="black", linestyle="-" if arithmetic == "bf16" else ":", label=label
        )
    for name, (color, marker) in styles.items():
        its = [row for row in rows if row.implementation == name]
        panel.scatter(
            [row.flop / row.bytes for row in its],
            [row.flop / row.median * 1e3 / 1e12 for row in its],
            color=color,
            edgecolors="black",
            linewidths=0.4,
            marker=marker,
            s=42,
            alpha=0.85,
            label=name,
            zorder=3,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("FLOP per byte that must be moved")
    panel.set_ylabel("TFLOP/s")
    panel.grid(which="major", color="#dddddd")
    panel.set_title(_title(rows), fontsize=11)
    figure.legend(loc="outside right upper", fontsize=9)


def draw(folder: Path, machine: str, benchmarks: Collection[str]) -> list[str]:
    """Draw the last runs in `folder`/`machine`.csv; -> the files written, or why there are none."""
    if find_spec("matplotlib") is None:
        return ["no pictures: matplotlib is not installed (pip install matplotlib)"]
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    written = []
    for benchmark in benchmarks:
        rows = [row for row in latest(read(folder / f"{machine}.csv")) if row.benchmark == benchmark]
        for kind, picture in (("bars", _bars), ("roofline", _roofline)):
            if not rows or (kind == "roofline" and all(row.flop == 1 for row in rows)):
                continue  # loading computes nothing
            figure = Figure(layout="constrained", dpi=100)
            picture(figure, rows)
            file = folder / machine / f"{benchmark}-{kind}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(file)
            written.append(str(file))
    return written
