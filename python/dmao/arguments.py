"""Whether GrowAndDrop is given what it asks for: an error names the argument, and comes before the training."""

from __future__ import annotations

from typing import Any

from dmao_kernels.structure import CostModel, Costs, Elastic, ParameterCost


def require_kinds(**arguments: tuple[Any, ...]) -> None:
    """Raise TypeError unless every argument, a value and classes, is of one of its classes."""
    for name, (value, *kinds) in arguments.items():
        if not isinstance(value, tuple(kinds)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            found = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            raise TypeError(f"GrowAndDrop: {name} must be of class {expected}, got {found}")


def measured(cost: CostModel | None, elastic: Elastic) -> Costs:
    """The costs of the model's parts, None: its parameters. Raise TypeError unless ``cost`` can measure them."""
    if isinstance(cost, type) or not (cost is None or callable(getattr(cost, "measure", None))):
        raise TypeError(
            "GrowAndDrop: cost must be ParameterCost(), MacCost(length=...), LatencyCost(example), Costs, or another "
            f"object with a method measure, got {cost!r}"
        )
    return (cost or ParameterCost()).measure(elastic)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of these."""
    if value not in choices:
        raise ValueError(f"GrowAndDrop: {name} must be {' or '.join(choices)}, got {value!r}")
