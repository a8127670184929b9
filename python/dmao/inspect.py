"""What a checkpoint's model is made of: elastic modules, their components and costs, and the events behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmao.evaluate import load_checkpoint
from dmao.step import restore
from dmao_kernels.structure import Elastic


def structure_of(path: str | Path) -> dict[str, Any]:
    """Modules, parameters and events of a checkpoint (or of a run's newest one) as plain data."""
    state = load_checkpoint(path)
    model, _, controller, _ = restore(state)
    elastic = controller.elastic if controller else Elastic(model)
    modules = [
        {
            "name": name,
            "family": module.layout.family,
            "components": module.components,
            "standard": module.standard,
            "parameters_per_component": module.own_cost,
            "parameters": module.parameters,
        }
        for name, module in elastic.modules.items()
    ]
    return {
        "step": state["step"],
        "parameters": elastic.live_parameters(),
        "adaptable": sum(module["parameters"] for module in modules),
        "modules": modules,
        "events": [event.to_dict() for event in controller.events] if controller else [],
    }


def describe(found: Mapping[str, Any]) -> str:
    """``structure_of`` as text: a line per elastic module, then a line per event."""
    share = 100 * found["adaptable"] / found["parameters"] if found["parameters"] else 0.0
    width = max([6, *(len(m["name"]) for m in found["modules"])])
    lines = [
        f"step {found['step']}: {found['parameters']:,} parameters, {share:.1f} % of them in elastic modules",
        f"{'module':<{width}} {'family':<18} {'components':>10} {'standard':>8} {'per component':>13} "
        f"{'parameters':>12}",
    ]
    lines += [
        f"{m['name']:<{width}} {m['family']:<18} {m['components']:>10} {m['standard']:>8} "
        f"{m['parameters_per_component']:>13,} {m['parameters']:>12,}"
        for m in found["modules"]
    ]
    lines += [
        f"event after step {e['step']}: {e['dropped']} components dropped, {e['grown']} grown, "
        f"{e['parameters_before']:,} -> {e['parameters']:,} parameters"
        for e in found["events"]
    ]
    return "\n".join(lines)
