"""What a model, or a checkpoint's model, is made of: elastic modules, components, costs, events, and what is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmao.checkpoint import used
from dmao.errors import UserError, first_line
from dmao.evaluate import load_checkpoint
from dmao.step import elastic_of, restore
from dmao_kernels.structure import Elastic, discover

NO_FAMILY = "no family knows it"
SHOWN = 3  # names of modules that a line of what is fixed gives


def structure_of(path: str | Path) -> dict[str, Any]:
    """Modules, parameters and events of a checkpoint (or of a run's newest one) as plain data."""
    state = load_checkpoint(path)
    model, _, controller, config = restore(state)
    with used(state):
        elastic = elastic_of(model, controller, config)
        events = [event.to_dict() for event in controller.events] if controller else []
        return {"step": state["step"], **_structure(elastic), "events": events}


def structure_of_model(
    model: nn.Module, components: int | Mapping[str, int] = 4, example: tuple[Tensor, ...] = ()
) -> dict[str, Any]:
    """The same of a model, without step and events, but with what is fixed, and why.

    example: inputs with which modules that no family knows are searched, see ``dmao_kernels.structure.discover``.

    Raises UserError where the model does not take the example, ValueError where nothing in it is elastic.
    """
    reasons = _refused(model, components if isinstance(components, int) else 4, example) if example else {}
    try:
        elastic = Elastic(model, components)
    except ValueError as error:
        if not reasons:
            raise
        told = "; ".join(f"{name or 'it'}: {reason}" for name, reason in list(reasons.items())[:SHOWN])
        raise ValueError(f"{error}; discover left {told}") from error
    return {**_structure(elastic), "fixed": _fixed(elastic, {**reasons, **elastic.refused})}


def _refused(model: nn.Module, components: int, example: tuple[Tensor, ...]) -> Mapping[str, str]:
    try:
        return discover(model, example, components).refused
    except Exception as error:  # a model's forward says it in words, and kinds, of its own
        shapes = ", ".join(f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.") for tensor in example)
        raise UserError(f"the model does not take the example {shapes}: {first_line(error)}") from error


def _structure(elastic: Elastic) -> dict[str, Any]:
    total = elastic.live_parameters()
    modules = [
        {
            "name": name,
            "kind": type(module.module).__name__,
            "family": module.layout.family,
            "components": module.components,
            "standard": module.standard,
            "at_least": 0 if module.can_be_empty else 1,
            "parameters_per_component": module.own_cost,
            "parameters": module.parameters,
            "share": module.parameters / total if total else 0.0,
        }
        for name, module in elastic.modules.items()
    ]
    return {"parameters": total, "adaptable": sum(m.parameters for m in elastic.modules.values()), "modules": modules}


def _fixed(elastic: Elastic, reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Modules with parameters that belong to no elastic module, by class and reason, the largest first."""
    owned = {id(t) for m in elastic.modules.values() for t in (*m.shared_parameters(), *(t for _, t in m.tensors()))}
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name, module in elastic.model.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False) if id(p) not in owned)
        if size:
            kind, reason = type(module).__name__, _reason(name, reasons)
            new: dict[str, Any] = {"kind": kind, "reason": reason, "parameters": 0, "modules": []}
            group = groups.setdefault((kind, reason), new)
            group["parameters"] += size
            group["modules"].append(name)
    return sorted(groups.values(), key=lambda group: -group["parameters"])


def _reason(name: str, reasons: Mapping[str, str]) -> str:
    """The reason of the module or of the nearest one around it."""
    while name not in reasons and name:
        name = name.rpartition(".")[0]
    return reasons.get(name, NO_FAMILY)


def describe(found: Mapping[str, Any]) -> str:
    """``structure_of`` or ``structure_of_model`` as text."""
    share = 100 * found["adaptable"] / found["parameters"] if found["parameters"] else 0.0
    width = max([6, *(len(m["name"]) for m in found["modules"])])
    step = f"step {found['step']}: " if "step" in found else ""
    lines = [
        f"{step}{found['parameters']:,} parameters, {share:.1f} % of them in elastic modules",
        f"{'module':<{width}} {'family':<18} {'components':>10} {'standard':>8} {'at least':>8} {'per component':>13} "
        f"{'parameters':>12} {'share':>7}",
    ]
    lines += [
        f"{m['name'] or '(model)':<{width}} {m['family']:<18} {m['components']:>10} {m['standard']:>8} "
        f"{m['at_least']:>8} {m['parameters_per_component']:>13,} {m['parameters']:>12,} {100 * m['share']:>5.1f} %"
        for m in found["modules"]
    ]
    lines += [
        f"event after step {e['step']}: {e['dropped']} components dropped, {e['grown']} grown, "
        f"{e['parameters_before']:,} -> {e['parameters']:,} parameters"
        for e in found.get("events", ())
    ]
    for group in found.get("fixed", ()):
        names = [name or "(model)" for name in group["modules"]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(
            f"fixed: {group['parameters']:,} in {group['kind']}: {group['reason']}: {', '.join(names[:SHOWN])}{more}"
        )
    return "\n".join(lines)
