"""What an edit touches beside the model's tensors, and what it refuses to touch."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from dmao_kernels.structure.places import Place, innermost
from dmao_kernels.structure.register import prepare
from dmao_kernels.structure.shards import REMEDY, is_sharded

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule

Companion = nn.Module | MutableMapping[str, Tensor]
# Optimizer state that is a copy of the weights, and no moment: averages, slow weights, weights as at the start.
WEIGHT_COPIES = {
    "ax",  # torch.optim.ASGD
    "z",  # Schedule-Free
    "slow_buffer",  # Ranger, Lookahead
    "slow_params",  # Lookahead of pytorch_optimizer and torch_optimizer
    "slow_param",
    "lookahead_params",  # Ranger21
    "lookahead_slow_buff",  # Lookahead of timm
    "cached_params",  # Lookahead
    "backup_params",  # Lookahead that pulls back
    "p0",  # Prodigy
    "old_p",  # SAM
}


class Companions:
    """Averaged copies of the model: where the counterpart of a module or of a tensor is."""

    def __init__(self, elastic: Elastic, companions: Iterable[Companion]) -> None:
        self.models: list[nn.Module] = []
        self.tables: list[MutableMapping[str, Tensor]] = []
        for companion in companions:
            if isinstance(companion, nn.Module):
                companion = innermost(companion)
            if companion is elastic.model:
                raise ValueError("apply_plan: companions must be copies of the model, got the model itself")
            if isinstance(companion, nn.Module):
                prepare(companion)
                self.models.append(companion)
            elif not isinstance(companion, MutableMapping):
                raise TypeError(
                    "apply_plan: companions must be modules, or mappings from names to tensors, got a "
                    f"{type(companion).__name__}"
                )
            else:
                self.tables.append(companion)

    def modules(self, m: ElasticModule) -> list[nn.Module]:
        """The counterparts of an elastic module, checked to have its present structure."""
        found = []
        for model in self.models:
            try:
                module = model.get_submodule(m.name)
            except AttributeError:
                raise ValueError(f"apply_plan: a companion ({type(model).__name__}) has no module {m.name}") from None
            m.check(module)
            found.append(module)
        return found

    def places(self, m: ElasticModule, name: str) -> list[Place]:
        """The places of a tensor in the counterparts of its module, checked not to be empty."""
        places = [m.place(name, module) for module in self.modules(m)]
        if any(place.tensor is None for place in places):
            raise ValueError(f"apply_plan: {m.title}: {name} is None in a companion, but not in the model")
        return places

    def entries(
        self, m: ElasticModule, name: str, required: bool = True
    ) -> list[tuple[MutableMapping[str, Tensor], str]]:
        """The mappings that hold a tensor, and its name there. required: all must, where it is a parameter."""
        key = f"{m.name}.{name}".removeprefix(".")
        if required and m.place(name).is_parameter and not all(key in table for table in self.tables):
            raise ValueError(f"apply_plan: a companion mapping has no {key}")
        return [(table, key) for table in self.tables if key in table]

    def tensors(self, m: ElasticModule, name: str) -> list[Tensor]:
        """The counterparts of a tensor of an elastic module, checked to be there."""
        tensors = [cast(Tensor, place.tensor) for place in self.places(m, name)]
        return [*tensors, *(table[key] for table, key in self.entries(m, name))]


def check_companions(elastic: Elastic, companions: Sequence[Companion], in_place: bool) -> None:
    """Raise ValueError or TypeError unless edits can follow in all of these.

    in_place: in slots storage, by an index that lies on the model's device.
    """
    if not isinstance(companions, Sequence):
        raise TypeError(f"companions must be a list such as [average], got a {type(companions).__name__}")
    _refuse_averages_inside(elastic)
    copies = Companions(elastic, companions)
    for m in elastic.modules.values():
        for name, _ in m.tensors():
            for tensor in copies.tensors(m, name):
                if in_place and tensor.device != m.device:
                    raise ValueError(
                        f"companions must be on the model's device in slots storage, {m.device}, got {m.name}.{name} "
                        f"on {tensor.device}"
                    )


def require_in_place(elastic: Elastic) -> None:
    """Raise RuntimeError where a module was replaced in the model since: edits of it would change nothing there.

    It may stand behind another name by now, in a wrapper.
    """
    present = {id(module) for module in elastic.model.modules()}
    for m in elastic.modules.values():
        if id(m.module) not in present:
            raise RuntimeError(
                f"{m.title} must be the {type(m.module).__name__} that the model had when it was made elastic, got "
                f"{_found(elastic.model, m.name)}: make a new controller of the model, as it is now"
            )


def _found(model: nn.Module, name: str) -> str:
    try:
        found = innermost(model.get_submodule(name))
    except AttributeError:
        return "none"
    return f"another {type(found).__name__}"


def _refuse_averages_inside(elastic: Elastic) -> None:
    """Their modules would be elastic themselves: edited by scores of their own or, frozen, not at all."""
    for name, module in elastic.model.named_modules():
        average = name and isinstance(module, AveragedModel)
        if average and any(each.startswith(f"{name}.module") for each in elastic.modules):
            raise ValueError(
                f"companions must lie outside of the model, but {name} (AveragedModel) is a part of it: give the part "
                "that is trained alone, as in GrowAndDrop(model.student, ..., companions=[model.average])"
            )


def expect(m: ElasticModule, name: str, tensor: Tensor, what: str, in_place: bool = False) -> None:
    """Raise ValueError unless ``tensor`` is a plain one of the shape of the module's tensor ``name``.

    in_place: it keeps its shape, and so it may also be sharded.
    """
    expected = m.layout.pattern(name).shape(m.stored, m.sizes)
    if tuple(tensor.shape) != expected or tensor.layout != torch.strided:
        raise ValueError(
            f"apply_plan: {m.title}: {name}: {what} must be strided and of shape "
            f"{list(expected)}, got {tensor.layout} {list(tensor.shape)}"
        )
    if is_sharded(tensor):
        if not in_place:
            raise ValueError(f"apply_plan: {m.title}: {name}: {what} {REMEDY}")
    elif type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(f"apply_plan: {m.title}: {name}: {what} must be a plain tensor, got {type(tensor).__name__}")


def follows(m: ElasticModule, name: str, parameter: Tensor, key: str, value: Any) -> bool:
    """Whether a piece of optimizer state has one entry per entry of the parameter; scalars stay."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return True
    if value is None or isinstance(value, int | float | str) or (isinstance(value, Tensor) and value.numel() == 1):
        return False
    found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"apply_plan: {m.title}: {name}: optimizer state '{key}' must be a scalar or have the "
        f"parameter's shape {list(parameter.shape)}, got {found}: it cannot follow its components"
    )


def register_weight_copy(key: str) -> None:
    """Let what optimizers keep under ``key`` be edited as the weights are, of which it is a copy, and not as a moment.

    Source and copy then share what leaves a component in it, as they do in the weights. Known are the slow weights of
    Schedule-Free and Lookahead, the average of ASGD, and the weights at the start of Prodigy.
    """
    if not isinstance(key, str) or not key:
        raise ValueError(f"register_weight_copy: key must be a name in an optimizer's state, got {key!r}")
    WEIGHT_COPIES.add(key)


def weight_copies(optimizers: Sequence[Optimizer], parameter: Tensor) -> list[Tensor]:
    """The copies of a parameter that optimizers keep: they are weights, as those of a companion."""
    return [state[key] for state, key in state_beside(optimizers, parameter) if key in WEIGHT_COPIES]


def states_of(optimizers: Sequence[Optimizer], tensor: Tensor) -> list[MutableMapping[str, Any]]:
    """What optimizers keep of a parameter, each once: some hand out that of others, which are inside of them.

    ZeroRedundancyOptimizer has None for what another rank keeps.
    """
    states = (optimizer.state.get(tensor) for optimizer in optimizers)
    return list({id(state): state for state in states if state}.values())


def state_beside(optimizers: Sequence[Optimizer], tensor: Tensor) -> list[tuple[MutableMapping[str, Tensor], str]]:
    """The pieces of optimizer state that have the shape of a vector: in which state, and under which key."""
    return [
        (state, key)
        for state in states_of(optimizers, tensor)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == tensor.shape
    ]


def output_biases(m: ElasticModule) -> list[str]:
    """The biases behind the outputs, which no component owns; some may be None."""
    names = (f"{name.rpartition('.')[0]}.bias".removeprefix(".") for name in m.layout.output)
    return [name for name in names if name in m.layout.shared]
