"""The pictures of the report, as SVG text that follows the light or dark colours of the page.

Every colour that belongs to the page is drawn as a stand-in (`INK`, `GRID`, ...) and replaced in the SVG text
by the CSS variable of the same name; text stays text, so that it can be selected, searched and read aloud.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from dmao.report.records import Arm, Row, families, mapping, number

INK, MUTED, GRID, BASELINE, DMAO, EVENT = (f"#0101{shade:02x}" for shade in range(1, 7))
LEVELS = tuple(f"#0102{shade:02x}" for shade in range(1, 8))  # gone, <= 1/2, < 1, 1, < 2, 2, more
LEVEL_INK = tuple(f"#0103{shade:02x}" for shade in range(1, 8))
ARM_COLOURS = {"baseline": BASELINE, "dmao": DMAO}
_VARIABLES = {
    **dict(
        zip(
            (INK, MUTED, GRID, BASELINE, DMAO, EVENT),
            ["ink", "muted", "grid", "baseline", "dmao", "event"],
            strict=True,
        )
    ),
    **{colour: f"level{i}" for i, colour in enumerate(LEVELS)},
    **{colour: f"level-ink{i}" for i, colour in enumerate(LEVEL_INK)},
}
# Of middling lightness throughout, so that it reads on white and on black.
DEPTH = LinearSegmentedColormap.from_list("depth", ["#3f7fd9", "#7d66d2", "#bb529d", "#da5650", "#cf7c22"])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.use": True,
}
WIDTH = 9.6  # inches; the SVG scales to the page


def learning_curves(arms: Mapping[str, Arm]) -> str | None:
    """Training loss (smoothed; faint: as logged) and evaluated cross-entropy of both arms over the steps."""
    drawn = [arm for arm in arms.values() if arm.train or arm.evals]
    if not drawn:
        return None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "curves"}):
        figure = Figure(figsize=(WIDTH, 3.6))
        left, right = figure.subplots(1, 2)
        for arm in drawn:
            colour = ARM_COLOURS[arm.name]
            steps, losses = _series(arm.train, "loss")
            thin = slice(None, None, 1 + len(losses) // 1000)
            left.plot(steps[thin], losses[thin], color=colour, alpha=0.2, linewidth=0.7)
            left.plot(steps[thin], _smooth(losses)[thin], color=colour, label=arm.name)
            steps, entropies = _series(_first_split(arm.evals), "ce")
            right.plot(steps, entropies, color=colour, marker="o", markersize=3.5, label=arm.name)
        losses = [loss for arm in drawn for loss in _series(arm.train, "loss")[1]]
        if losses:  # the first steps of CTC are far off: they would flatten all the rest
            left.set_ylim(0, max(1e-3, sorted(losses)[int(0.98 * (len(losses) - 1))] * 1.08))
        left.set_title("training loss")
        right.set_title(f"cross-entropy on {_split_name(drawn)}")
        events = [event["step"] for arm in drawn for event in arm.events]
        for axes in (left, right):
            axes.set_xlabel("step")
            _mark_events(axes, events)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="upper right")
        return _svg(figure, "Learning curves of the uniform baseline and of the grow-and-drop model over the steps")


def component_maps(events: Sequence[Row]) -> str | None:
    """Components per block (rows) and family (columns): before the first event and after every one."""
    states = [("before", mapping(event.get("counts_before")), event["step"]) for event in events[:1]]
    states += [("after", mapping(event.get("counts_after")), event["step"]) for event in events]
    states = [state for state in states if state[1]]
    if not states:
        return None
    start = states[0][1]
    columns = families(start)
    rows = sorted({block for blocks in columns.values() for block in blocks})
    across = min(len(states), 2)
    down = math.ceil(len(states) / across)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "map", "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, down * (0.34 * len(rows) + 1.0)))
        for place, (when, counts, step) in enumerate(states):
            axes = figure.add_subplot(down, across, place + 1)
            _draw_map(axes, columns, rows, counts, start)
            axes.set_title(f"{when} the event at step {step:,}")
            if place % across == 0:
                axes.set_ylabel("block")
        return _svg(figure, "Heat map of the number of components per block and family, before and after each event")


def scores_over_time(rows: Sequence[Row], events: Sequence[Row]) -> str | None:
    """Mean score of every module over the steps, one panel per family, one line per block, logarithmic."""
    names = dict.fromkeys(name for row in rows for name in mapping(row.get("scores")))
    if not names:
        return None
    columns = families(names)
    blocks = sorted({block for family in columns.values() for block in family})
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "scores", "lines.linewidth": 1.4}):
        figure = Figure(figsize=(WIDTH, 3.4 * math.ceil(len(columns) / 4)))
        panels = figure.subplots(math.ceil(len(columns) / 4), min(4, len(columns)), sharey=True, squeeze=False)
        for axes, (family, modules) in zip(panels.flat, columns.items(), strict=False):
            for block, name in sorted(modules.items()):
                points = [(row["step"], _mean(mapping(row.get("scores")).get(name))) for row in rows]
                points = [(step, score) for step, score in points if score is not None and score > 0]
                axes.plot(*zip(*points, strict=True) if points else ([], []), color=_depth(DEPTH, block, blocks))
            axes.set_yscale("log")
            axes.set_title(family)
            axes.set_xlabel("step")
            _mark_events(axes, [event["step"] for event in events], label=False)
        for axes in list(panels.flat)[len(columns) :]:
            axes.remove()
        panels[0, 0].set_ylabel("mean score of the module")
        keys = [Line2D([], [], color=_depth(DEPTH, block, blocks)) for block in blocks]
        figure.legend(
            keys, [str(block) for block in blocks], title="block", ncols=len(blocks),
            loc="outside upper left", alignment="left", handlelength=1.2, columnspacing=1.0,
        )  # fmt: skip
        return _svg(figure, "Scores of the modules over the steps, by family and block")


def copy_cosines(rows: Sequence[Row], events: Sequence[Row]) -> str | None:
    """Cosine between every copy and its source since the event, input and output weights apart."""
    sides = {side: curves for side in ("input", "output") if (curves := _cosine_curves(rows, side))}
    if not sides:
        return None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "cosine"}):
        figure = Figure(figsize=(WIDTH, 3.0))
        panels = figure.subplots(1, len(sides), squeeze=False)[0]
        for axes, (side, curves) in zip(panels, sides.items(), strict=True):
            means: dict[float, list[float]] = {}
            for points in curves:
                axes.plot(*zip(*points, strict=True), color=DMAO, alpha=0.3, linewidth=0.9)
                for step, value in points:
                    means.setdefault(step, []).append(value)
            steps = sorted(means)
            mean = [sum(means[step]) / len(means[step]) for step in steps]
            axes.plot(steps, mean, color=DMAO, marker="o", markersize=3, label=f"mean of {len(curves)} modules")
            axes.set_ylim(min(0.0, *(1.15 * value for values in means.values() for value in values)), 1.08)
            axes.set_xlabel("step")
            axes.set_title(f"cosine of copy and source, {side} weights")
            _mark_events(axes, [event["step"] for event in events])
            axes.legend(loc="lower left" if side == "input" else "upper left")
        return _svg(figure, "Cosine similarity of copied components and their sources over the steps")


def _cosine_curves(rows: Sequence[Row], side: str) -> list[list[tuple[float, float]]]:
    """A curve of (step, mean over the module's copies) for every module."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for module, cosines in mapping(row.get("copy_cosine")).items():
            if (value := _mean(list(_numbers(mapping(cosines).get(side))))) is not None:
                series.setdefault(module, []).append((row["step"], value))
    return list(series.values())


def level(count: int, start: int) -> int:
    """Index into `LEVELS`: how a module's width compares with the one it started with."""
    if count == start:
        return 3
    if count <= 0:
        return 0
    if count < start:
        return 1 if 2 * count <= start else 2
    return 4 if count < 2 * start else 5 if count == 2 * start else 6


def _draw_map(
    axes: Axes, columns: Mapping[str, Mapping[int, str]], rows: Sequence[int], counts: Row, start: Row
) -> None:
    for x, modules in enumerate(columns.values()):
        for y, block in enumerate(rows):
            name = modules.get(block)
            if name is None:
                continue
            count, at_start = int(number(counts.get(name)) or 0), int(number(start.get(name)) or 0)
            which = level(count, at_start)
            box = FancyBboxPatch(
                (x - 0.46, y - 0.44), 0.92, 0.88, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=LEVELS[which], edgecolor="none",
            )  # fmt: skip
            axes.add_patch(box)
            axes.text(x, y, str(count), ha="center", va="center_baseline", color=LEVEL_INK[which], fontsize=9.5)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), [_short(family) for family in columns], fontsize=8.5)
    axes.set_yticks(range(len(rows)), [str(block) for block in rows])
    axes.xaxis.tick_bottom()
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(family: str) -> str:
    """Breaks a long family name over two lines: `feedforward1` stays, `convolution_module` does not."""
    return family.replace("_", "\n") if len(family) > 13 else family


def _depth(colours: Colormap, block: int, blocks: Sequence[int]) -> Any:
    return colours(blocks.index(block) / max(1, len(blocks) - 1))


def _series(rows: Iterable[Row], key: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], value) for row in rows if (value := number(row.get(key))) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _first_split(evals: Sequence[Row]) -> list[Row]:
    return [row for row in evals if row.get("split") == evals[0].get("split")]


def _split_name(arms: Sequence[Arm]) -> str:
    return next((str(arm.evals[0].get("split")) for arm in arms if arm.evals), "held-out data (not evaluated yet)")


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred mean over a fiftieth of the series; narrower towards the ends, so that nothing is shifted."""
    reach = len(values) // 100
    sums = list(accumulate(values, initial=0.0))
    smoothed = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        smoothed.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return smoothed


def _mean(values: Any) -> float | None:
    finite = [x for value in values if (x := number(value)) is not None] if isinstance(values, list) else []
    return sum(finite) / len(finite) if finite else None


def _numbers(value: Any) -> Iterator[float]:
    """All finite numbers in nested objects and lists."""
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        yield from _numbers(child)
    if (leaf := number(value)) is not None:
        yield leaf


def _mark_events(axes: Axes, steps: Iterable[float], label: bool = True) -> None:
    for step in sorted(set(steps)):
        axes.axvline(step, color=EVENT, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        if label:
            axes.annotate(
                "event", (step, 1), xycoords=("data", "axes fraction"),
                xytext=(4, -2), textcoords="offset points", color=EVENT, fontsize=8.5, va="top",
            )  # fmt: skip


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", text, count=1, flags=re.S)
    text = re.sub(r'(<svg .*?)height="[^"]*"', r"\1", text, count=1, flags=re.S)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    title = f'<svg role="img" aria-label="{escape(description)}" '
    return text.replace("<svg ", title, 1)
