"""Plots of results, as SVG files whose text does not depend on the day they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """targets.svg: ratios beside their targets. density.svg: ratios over density (float32, most threads)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "dmao", "svg.fonttype": "none", "font.size": 8})
    folder.mkdir(parents=True, exist_ok=True)
    made = [_targets(rows, folder / "targets.svg"), _density(rows, folder / "density.svg")]
    return [path for path in made if path is not None]


def _targets(rows: Sequence[Row], path: Path) -> Path | None:
    from matplotlib import pyplot

    judged = [row for row in rows if row["ratio"] is not None and row["target"] is not None]
    if not judged:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.16 * len(judged)))
    places = range(len(judged), 0, -1)
    for place, row in zip(places, judged, strict=True):
        axes.plot([row["ratio"], row["target"]], [place, place], color="lightgrey", zorder=1)
    met = ["tab:green" if row["met"] else "tab:red" for row in judged]
    axes.scatter([row["ratio"] for row in judged], places, c=met, s=16, label="measured", zorder=2)
    axes.scatter([row["target"] for row in judged], places, c="black", marker="|", s=36, label="target", zorder=2)
    axes.set_yticks(list(places), [f"{row['case']} / {row['peer']}" for row in judged])
    axes.set_xlabel("time of ours / time of peer")
    axes.tick_params(top=True, labeltop=True)  # the plot is longer than a screen
    axes.set_xlim(left=0)
    axes.set_ylim(0, len(judged) + 1)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right")
    return _save(figure, path)


def _density(rows: Sequence[Row], path: Path) -> Path | None:
    from matplotlib import pyplot

    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    most = max((row["threads"] for row in rows), default=0)
    for row in rows:
        shown = row["series"] and row["threads"] == most and "bf16" not in row["case"]
        if shown and row["density"] is not None and row["ratio"] is not None:
            panel = curves.setdefault(f"{row['series']} T{row['threads']}", {})
            panel.setdefault(row["peer"], []).append((row["density"], row["ratio"]))
    if not curves:
        return None
    columns = 3
    lines = -(-len(curves) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(9, 2.4 * lines), squeeze=False)
    for axes, (title, peers) in zip(panels.flat, curves.items(), strict=False):
        for peer, points in peers.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=peer)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_title(title, fontsize=5.5)  # so that the longest stays within its panel
        axes.set(xlabel="density", ylabel="ours / peer", ylim=(0, 1.5), xlim=(0, 1.02))
        axes.legend()
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
