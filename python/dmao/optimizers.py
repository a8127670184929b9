"""What GrowAndDrop asks of optimizers, and what it gives them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dmao.arguments import require_kinds
from dmao_kernels.structure import ComponentGates, Elastic
from dmao_kernels.structure.moments import check_state, holders, listed, refuse_buckets
from dmao_kernels.structure.slots.storage import OptimizerOrMany

_log = logging.getLogger(__name__)


def require_optimizers(optimizer: OptimizerOrMany, elastic: Elastic) -> None:
    """Raise TypeError unless these are optimizers, ValueError where none of them trains the elastic modules or one
    cannot follow an edit. A warning tells what none of them holds.
    """
    if optimizer is None:
        return
    require_kinds(optimizer=(optimizer, Optimizer, Sequence))
    for each in [] if isinstance(optimizer, Optimizer) else optimizer:
        require_kinds(optimizer=(each, Optimizer))
    optimizers = listed(optimizer)
    refuse_buckets(holders(optimizers, elastic), in_place=elastic.storage == "slots")
    trains = elastic.frozen() != elastic.modules.keys()
    if trains and not holders(optimizers, elastic, trained=True):
        raise ValueError(
            "GrowAndDrop: optimizer must hold parameters of the model's elastic modules, but holds none: is it of "
            "another copy of the model?"
        )
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    tensors = [(f"{m.name}.{name}", tensor) for m in elastic.modules.values() for name, tensor in m.tensors()]
    if lacking := [name for name, tensor in tensors if tensor.requires_grad and id(tensor) not in held]:
        _log.warning(
            "GrowAndDrop: optimizer holds %d trainable parameters of elastic modules less than there are, as %s: give "
            "all that train the model, in a list: the moments of others do not follow an event",
            len(lacking),
            lacking[0].removeprefix("."),
        )


def state_follows(optimizer: OptimizerOrMany, elastic: Elastic) -> bool:
    """Whether the optimizers' state can follow the components at an event; False while they keep none.

    Raises ValueError where it cannot: to be told at the first steps, and not hours later.
    """
    optimizers = listed(optimizer)
    if not any(any(each.state.values()) for each in optimizers):
        return False
    check_state(elastic, optimizers)
    return True


def add_gates(elastic: Elastic, optimizer: OptimizerOrMany, companions: Sequence[nn.Module]) -> ComponentGates:
    """Gates on all components, as parameters of the optimizer. Raises ValueError where that cannot be."""
    if not (optimizer is None or isinstance(optimizer, Optimizer)):
        raise ValueError("GrowAndDrop: metric='gate' adds parameters to the optimizer: give one, not several")
    if optimizer is not None and any("initial_lr" in group for group in optimizer.param_groups):
        raise ValueError("GrowAndDrop: metric='gate' adds parameters to the optimizer: make its scheduler afterwards")
    if any(not isinstance(companion, nn.Module) for companion in companions):
        raise ValueError("GrowAndDrop: metric='gate' adds gates to companions: they must be modules, got a mapping")
    gates = ComponentGates(elastic, companions)
    if optimizer is not None:
        # weight decay would pull every gate, and with it the module's output, towards nothing
        added: list[Any] = list(gates.parameters())
        if "param_names" in optimizer.param_groups[0]:
            names = {id(parameter): name for name, parameter in elastic.model.named_parameters()}
            added = [(names[id(gate)], gate) for gate in added]
        optimizer.add_param_group({"params": added, "weight_decay": 0.0})
    return gates
