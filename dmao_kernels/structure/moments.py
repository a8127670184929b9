"""What optimizers keep beside a parameter, and how it follows the parameter's components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dmao_kernels.layout import COMPONENT, Pattern
from dmao_kernels.structure.targets import WEIGHT_COPIES, expect, follows, states_of

if TYPE_CHECKING:
    from dmao_kernels.structure.edit import TensorEdit
    from dmao_kernels.structure.elastic import Elastic

# torch.optim.Adafactor: means of the squared gradient over the columns and over the rows of a matrix
FACTORS = {"row_var": "col_var", "col_var": "row_var"}

Values = dict[str, Callable[[], Tensor]]


def listed(optimizer: Optimizer | Sequence[Optimizer] | None) -> list[Optimizer]:
    """The optimizers that are given, and those inside of these with state of their own, as in a wrapper."""
    found = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    for each in found:  # which grow on the way
        found += [o for o in _inside(list(vars(each).values())) if all(o is not other for other in found)]
    states = [each.state for each in found]  # held, as some are made when they are asked for
    return [each for i, each in enumerate(found) if all(states[i] is not state for state in states[:i])]


def _inside(values: Iterable[Any]) -> Iterator[Optimizer]:
    for value in values:
        if isinstance(value, Optimizer):
            yield value
        elif type(value) in (list, tuple, dict):
            yield from _inside(list(value.values()) if isinstance(value, dict) else value)


def refuse_buckets(optimizers: Sequence[Optimizer], in_place: bool) -> None:
    """Raise ValueError for options of ZeroRedundancyOptimizer with which it cannot go on after an edit.

    in_place: whether parameters keep their shapes.
    """
    for each in optimizers:
        kind = type(each).__name__
        if getattr(each, "_overlap_with_ddp", False):
            raise ValueError(f"{kind}: overlap_with_ddp must be False, got True: no edit finds its moments")
        if not in_place and getattr(each, "parameters_as_bucket_view", False):
            raise ValueError(
                f"{kind}: parameters_as_bucket_view must be False where edits change shapes, got True: leave it out, "
                "or make the optimizer of a model that is in slots storage"
            )


def check_state(elastic: Elastic, optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError where an optimizer keeps what could not follow the components at an edit."""
    tight = elastic.storage == "tight"
    for optimizer in holders(optimizers, elastic):
        refuse_flat_state(optimizer)
        for m in elastic.modules.values():
            for name, tensor in m.tensors():
                for state in states_of([optimizer], tensor):
                    for key, value in state.items():
                        if not (tight and _is_factor(key, state)) and follows(m, name, tensor, key, value):
                            expect(m, name, value, f"optimizer state '{key}'", in_place=not tight)


def holders(optimizers: Sequence[Optimizer], elastic: Elastic, trained: bool = False) -> list[Optimizer]:
    """The optimizers that hold tensors of elastic modules.  trained: of those, only what is not frozen counts."""
    tensors = [tensor for m in elastic.modules.values() for _, tensor in m.tensors()]
    wanted = {id(tensor) for tensor in tensors if tensor.requires_grad or not trained}
    return [o for o in optimizers if any(id(p) in wanted for group in o.param_groups for p in group["params"])]


def _is_factor(key: str, state: Mapping[str, Any]) -> bool:
    return key in FACTORS and FACTORS[key] in state


def refuse_flat_state(optimizer: Optimizer) -> None:
    """Raise ValueError where the optimizer keeps vectors over all of its parameters at once, as LBFGS does."""
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    for parameter, state in optimizer.state.items():
        for key, value in (state or {}).items():
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, Tensor) and each.numel() == total > 0 and each.shape != parameter.shape:
                    raise ValueError(
                        f"apply_plan: {type(optimizer).__name__} keeps '{key}' over all parameters in one vector: "
                        "it cannot follow their components"
                    )


def follow_state(edit: TensorEdit, parameter: Tensor, state: Mapping[str, Any]) -> Values:
    """The edited tensors of one parameter's optimizer state, to be called once the gathering was made.

    What has one entry per entry of the parameter follows its components, as a moment unless its key is known to be
    that of a copy of the weights; scalars stay.
    Raises ValueError for anything else.
    """
    values: Values = {}
    for key, value in state.items():
        if _is_factor(key, state):
            values |= _follow_factor(edit, parameter, key, value)
        elif follows(edit.m, edit.name, parameter, key, value):
            weights = key in WEIGHT_COPIES
            values[key] = edit.weights(value) if weights else edit.follow(value, f"optimizer state '{key}'")
    for key, partner in FACTORS.items():
        if partner in values and key in state and key not in values:
            values[key] = _rescaled(edit, state[key], state[partner], values[partner])
    return values


def _component_axis(edit: TensorEdit) -> tuple[int, Pattern]:
    """Which axis of the parameter holds the components, and how."""
    axes = edit.m.layout.pattern(edit.name).axes
    axis = next(i for i, names in enumerate(axes) if COMPONENT in names)
    return axis, Pattern(f"({' '.join(axes[axis])})")


def _follow_factor(edit: TensorEdit, parameter: Tensor, key: str, factor: Tensor) -> Values:
    """A factor with an entry per component follows; one that is a mean over them does not (see `_rescaled`)."""
    axis, pattern = _component_axis(edit)
    if factor.shape[axis] != parameter.shape[axis]:
        return {}
    repeats, components, run = pattern.triple(edit.m.components, edit.m.sizes)
    left, right = factor.shape[:axis], factor.shape[axis + 1 :]
    view = factor.reshape(prod(left) * repeats, components, run * prod(right))
    shape = (*left, *pattern.shape(len(edit.plan.sources), edit.m.sizes), *right)
    return {key: edit.gathering.add(view, edit.moved, None, shape)}


def _rescaled(
    edit: TensorEdit, factor: Tensor, partner: Tensor, new_partner: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """The factor that is a mean over components, so that the product of both estimates what it did for those that stay.

    The estimate is row x column / mean; both factors have that mean.
    """
    axis, _ = _component_axis(edit)

    def make() -> Tensor:
        new = new_partner()
        if not (new.numel() and partner.numel()):
            return factor
        ratio = new.mean(axis, keepdim=True) / partner.mean(axis, keepdim=True)
        return factor * torch.where(ratio.isfinite(), ratio, 1)

    return make
