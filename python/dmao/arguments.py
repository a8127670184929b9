"""Whether GrowAndDrop is given what it asks for: an error names the argument, and comes before the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from dmao_kernels.structure import CostModel, Costs, Elastic, ParameterCost
from dmao_kernels.structure.slots.storage import OptimizerOrMany


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


def require_optimizers(optimizer: OptimizerOrMany, elastic: Elastic) -> None:
    """Raise TypeError unless these are optimizers, ValueError where none of them trains the elastic modules."""
    if optimizer is None:
        return
    require_kinds(optimizer=(optimizer, Optimizer, Sequence))
    trained: set[int] = set()
    for each in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
        require_kinds(optimizer=(each, Optimizer))
        trained |= {id(parameter) for group in each.param_groups for parameter in group["params"]}
    tensors = [tensor for m in elastic.modules.values() for _, tensor in m.tensors() if tensor.requires_grad]
    if tensors and not any(id(tensor) in trained for tensor in tensors):
        raise ValueError(
            "GrowAndDrop: optimizer must hold parameters of the model's elastic modules, but holds none: is it of "
            "another copy of the model?"
        )
