"""Going over to slots storage and back: capacity, live lists, gradients of dead slots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmao_kernels.block_mask import plain_bools
from dmao_kernels.structure.edit import resize
from dmao_kernels.structure.empty import handles_empty
from dmao_kernels.structure.places import get_attribute, set_attribute
from dmao_kernels.structure.targets import Companion, Companions

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule

Storage = Literal["tight", "slots"]
OptimizerOrMany = Optimizer | Sequence[Optimizer] | None
LIVE = "live_slots"


def in_slots(model: nn.Module) -> list[str]:
    """The names of the modules that are in slots storage."""
    return [name or "the model" for name, module in model.named_modules() if module._buffers.get(LIVE) is not None]


def enter_slots(elastic: Elastic, headroom: float, optimizer: OptimizerOrMany, companions: Iterable[Companion]) -> None:
    """``Elastic.to_slots``."""
    if elastic.storage == "slots":
        raise ValueError("to_slots: the model is in slots storage already")
    if not 1 <= headroom < math.inf:
        raise ValueError(f"to_slots: headroom must be finite and 1 or more, got {headroom}")
    modules = list(elastic.modules.values())
    capacities = {m.name: _capacity(m, headroom) for m in modules}
    companions = list(companions)
    copies = Companions(elastic, companions)
    live = elastic.counts()
    rates = [
        (m, module, name, get_attribute(module, name, m.name))
        for m in modules
        for module in (m.module, *copies.modules(m))
        for name in m.dropout
    ]
    resize(elastic, capacities, optimizer, companions)
    for m, module, name, rate in rates:
        set_attribute(module, name, rate, m.name)
    for m in modules:
        if not handles_empty(m.module) and m.layout.even:
            m.can_be_empty = False  # shares of nothing are not defined, and only our norms know that
        for module in (m.module, *copies.modules(m)):
            module.register_buffer(LIVE, torch.arange(m.stored, device=m.device) < live[m.name])
            module.register_load_state_dict_pre_hook(_check_live)
            _tell_norms(module, True)
            if not handles_empty(module):
                module.register_forward_hook(_silence_empty)
        if not handles_empty(m.module):
            parameters = [(name, tensor) for name, tensor in m.tensors() if m.place(name).is_parameter]
            m.hooks = [_watch_gradient(m, name, cast(nn.Parameter, tensor)) for name, tensor in parameters]
    elastic.storage = "slots"


def leave_slots(elastic: Elastic, optimizer: OptimizerOrMany, companions: Iterable[Companion]) -> None:
    """``Elastic.to_tight``."""
    if elastic.storage == "tight":
        raise ValueError("to_tight: the model is in tight storage already")
    companions = list(companions)
    copies = Companions(elastic, companions)
    resize(elastic, elastic.counts(), optimizer, companions)
    for m in elastic.modules.values():
        for module in (m.module, *copies.modules(m)):
            _tell_norms(module, False)
            hooks = module._load_state_dict_pre_hooks
            for key in [k for k, wrapped in hooks.items() if getattr(wrapped, "hook", None) is _check_live]:
                del hooks[key]
            if handles_empty(module):
                module._buffers[LIVE] = None
            else:
                delattr(module, LIVE)
                for key in [k for k, hook in module._forward_hooks.items() if hook is _silence_empty]:
                    del module._forward_hooks[key]
        for handle in m.hooks:
            handle.remove()
        m.hooks = []
    elastic.storage = "tight"


def _capacity(m: ElasticModule, headroom: float) -> int:
    """The slots of a module, after a look at whether it can have some."""
    if m.gate is not None:
        raise ValueError(f"to_slots: {m.title} has gates: fold them first")
    if over := [name for name in m.layout.attributes if name.endswith(("normalized_shape", "num_channels"))]:
        raise ValueError(
            f"to_slots: {m.title}: {over[0].rpartition('.')[0]} is a norm over all components, "
            "whose statistics would count dead slots"
        )
    m.check()
    capacity = math.ceil(headroom * m.standard)
    if capacity < m.stored:
        raise ValueError(
            f"to_slots: {m.title} has {m.stored} components, more than a headroom of {headroom} has room "
            f"for: {capacity}"
        )
    return capacity


def _tell_norms(module: nn.Module, slots: bool) -> None:
    for part in module.modules():
        if hasattr(part, "in_slots"):
            part.in_slots = slots  # type: ignore[assignment]


def _check_live(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Before a state is loaded: plans and kernels count on a live list whose first slots live, each True being 1."""
    errors, name = others[-1], prefix + LIVE
    found, present = state.get(name), cast(Tensor, module.live_slots)
    if not isinstance(found, Tensor) or found.shape != present.shape:
        return  # load_state_dict itself says so
    if found.dtype != torch.bool:
        errors.append(f"{name} must be a bool tensor, got {found.dtype}")
        del state[name]
        return
    state[name] = live = plain_bools(found)
    if bool((live[1:] > live[:-1]).any()):
        errors.append(f"{name} must have the live slots first, got {live.int().tolist()}")
        del state[name]


def _silence_empty(module: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook of ordinary modules: an empty one contributes nothing, not even its output bias."""
    first, *others = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, Tensor):
        raise TypeError(f"slots: {type(module).__name__} must return a tensor, got {type(first).__name__}")
    silenced = torch.where(cast(Tensor, module.live_slots).any(), first, 0)
    return (silenced, *others) if isinstance(output, tuple) else silenced


def _watch_gradient(m: ElasticModule, name: str, parameter: nn.Parameter) -> Any:
    """Let gradients of dead slots be zero, in modules that compute over the whole capacity."""

    def clear(parameter: Tensor) -> None:
        if (grad := parameter.grad) is not None:
            cleared = m.view(name, grad).masked_fill_(~cast(Tensor, m.slots)[None, :, None], 0)
            if not grad.is_contiguous():
                grad.copy_(cleared.view(grad.shape))

    was = parameter.requires_grad
    try:  # also on what is frozen now: it may be thawed
        return parameter.requires_grad_(True).register_post_accumulate_grad_hook(clear)
    finally:
        parameter.requires_grad_(was)
