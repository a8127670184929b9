"""Where width went: modules' widths relative to uniform over depth, beside the published ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from dmao.report.records import families

# arXiv 2506.13180, Conformer of 12 blocks: means over the runs that were released with it, read off its code's records.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "ffn1": (0.80, 1.19, 1.01, 1.00, 0.99, 0.98, 0.98, 1.00, 1.02, 1.15, 1.40, 1.14),
    "conv": (0.40, 0.95, 1.14, 1.28, 1.36, 1.46, 1.52, 1.82, 2.00, 2.28, 2.43, 2.00),
    "attention": (1.76, 1.53, 1.20, 1.05, 0.99, 0.97, 0.91, 0.95, 0.99, 0.96, 0.91, 0.28),
    "ffn2": (0.61, 0.86, 0.77, 0.53, 0.43, 0.43, 0.38, 0.60, 0.77, 0.94, 1.00, 0.76),
}
# The same of E-Branchformer, where every block is known.
PUBLISHED_BRANCHES = {"attention": (1.02, 1.16, 1.03, 1.01, 0.95, 0.84, 0.67, 0.51, 0.33, 0.45, 0.21, 0.04)}

Counts = Mapping[str, int]
Curves = dict[str, dict[str, list[list[float]]]]


def relative_widths(arms: Mapping[str, Sequence[Counts]], uniform: Counts) -> Curves:
    """{family: {arm: [per seed: components relative to `uniform`, block by block]}}; arms that moved nothing left out.

    arms: the components of every module, seed by seed.
    """
    found: Curves = {}
    for family, blocks in families(uniform).items():
        for arm, runs in arms.items():
            if any(run[name] != uniform[name] for run in runs for name in uniform):
                found.setdefault(family, {})[arm] = [
                    [run[name] / uniform[name] for _, name in sorted(blocks.items())] for run in runs
                ]
    return found


def redistribution_plot(curves: Curves) -> str:
    """An SVG: a panel per family; thin lines are seeds, thick ones their means, grey is what was published."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    published = PUBLISHED_BRANCHES if "cgmlp" in curves else PUBLISHED
    with rc_context({"svg.hashsalt": "dmao", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, (family, arms) in zip(panels, curves.items(), strict=True):
            axes.axhline(1, color="grey", linewidth=0.6)
            if family in published:
                axes.plot(*_over_depth(published[family]), color="grey", linewidth=4, alpha=0.4, label="published")
            for number, (arm, runs) in enumerate(arms.items()):
                for run in runs:
                    axes.plot(*_over_depth(run), color=f"C{number}", linewidth=0.5, alpha=0.3)
                axes.plot(*_over_depth(np.mean(runs, axis=0)), color=f"C{number}", linewidth=1.8, label=arm)
            axes.set(title=family, xlabel="depth", xlim=(0, 1))
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("width, relative to uniform")
        lines = {line.get_label(): line for axes in panels for line in axes.get_legend_handles_labels()[0]}
        figure.legend(handles=list(lines.values()), loc="outside upper center", ncols=8, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _over_depth(widths: Sequence[float] | np.ndarray) -> tuple[np.ndarray, Sequence[float] | np.ndarray]:
    """Blocks lie at the middles of equal parts of [0, 1], so that encoders of different depth can be compared."""
    return (np.arange(len(widths)) + 0.5) / len(widths), widths
