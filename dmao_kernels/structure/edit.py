"""Apply a plan to parameters, gradients, optimizer state, averaged copies and buffers: all or nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from dmao_kernels.structure.empty import set_empty
from dmao_kernels.structure.fresh import fresh_values
from dmao_kernels.structure.gather import SPLITS, Gathering, Split, copied, draw, moved, scale, share, weights_index
from dmao_kernels.structure.moments import follow_state, holders, listed, refuse_buckets, refuse_flat_state
from dmao_kernels.structure.places import Place, get_attribute, set_attribute
from dmao_kernels.structure.plan import ModulePlan, Plan, resized
from dmao_kernels.structure.shards import reshard
from dmao_kernels.structure.slots.edit import edit_slots, slot_sources
from dmao_kernels.structure.slots.plan import SlotPlan
from dmao_kernels.structure.targets import Companion, Companions, expect, output_biases, state_beside, states_of

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule

_LOG = logging.getLogger("dmao_kernels")
MAX_DROPOUT = 0.9  # a rate that follows a module many times its standard width must stay a rate


@dataclass(frozen=True)
class EditReport:
    """What an edit did.

    copies: (source, copy) pairs, numbered as after the edit; fresh: likewise; dropped: as before it.
    before, after: parameters in use.  seconds: wall time.
    """

    copies: dict[str, tuple[tuple[int, int], ...]]
    dropped: dict[str, tuple[int, ...]]
    fresh: dict[str, tuple[int, ...]]
    before: int
    after: int
    seconds: float


@dataclass(frozen=True)
class _Change:
    """One prepared assignment. ``undo`` may also follow a ``do`` that failed half-way."""

    do: Callable[[], None]
    undo: Callable[[], None]


@torch.no_grad()
def apply_plan(
    plan: Plan,
    elastic: Elastic,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    companions: Iterable[Companion] = (),
    split: Split = "asymmetric",
    generator: Generator | None = None,
) -> EditReport:
    """Drop, copy and add components as the plan says: all of it, or nothing where anything fails.

    Parameters keep their identity, so optimizers, their ``param_groups`` and schedulers stay as they are.
    Gradients and every optimizer tensor of a parameter's shape (moments, momentum, maxima) follow their
    components, and so do Adafactor's factors; fresh components start with zero state; scalars such as ``step``
    stay. Copies of the weights in it (``register_weight_copy``) are edited as the weights are. Between an edit and the
    next forward pass nothing computed before it may be differentiated.

    Copies preserve the function up to rounding: source and copy share the output weights. A module revived by
    fresh components contributes nothing at first: their output weights and the module's output bias are zero.
    Otherwise what no component owns (norms over the input, output biases) is not touched. Memory: until the
    end, old and new tensors of the changed modules are both there.

    In slots storage tensors keep their shapes and are rewritten in place, and dropout rates stay as they are. In tight
    storage shapes change, and whatever was compiled with torch.compile is compiled once more.

    optimizer: the optimizer(s) whose state follows.
    companions: averaged copies that follow: modules of the same structure (a deep copy, AveragedModel), or
        mappings from names of parameters and buffers in the model to tensors.
    split: how source and copy share the output weights, see ``gather.share``.
    generator: of the noise; default: one seeded by ``plan.seed``, on the CPU, or on the model's device in slots
        storage.

    Raises ValueError where the plan, a companion or an optimizer's state does not fit.
    """
    start = time.perf_counter()
    if split not in SPLITS:
        raise ValueError(f"apply_plan: split must be one of {', '.join(SPLITS)}, got '{split}'")
    optimizers = _followed(optimizer, elastic, in_place=elastic.storage == "slots")
    edited = _check(plan, elastic)
    copies = Companions(elastic, companions)
    before = elastic.live_parameters()
    fresh = {m.name: fresh_values(m, len(p.fresh), plan.seed) for m, p in edited if p.fresh}
    if elastic.storage == "slots":
        generator = generator or torch.Generator(next(iter(elastic.modules.values())).device).manual_seed(plan.seed)
        edit_slots(elastic, slot_sources(plan, elastic), optimizers, copies, split, generator, fresh)
    else:
        generator = generator or torch.Generator().manual_seed(plan.seed)
        _edit(edited, elastic, optimizers, copies, split, generator, fresh)
        elastic.edits += 1
        if elastic.edits == 1:
            _LOG.info("tight storage: every event changes shapes, so a compiled model is compiled anew after each")
    return EditReport(
        copies={m.name: p.copies for m, p in edited if p.copies},
        dropped={m.name: p.dropped for m, p in edited if p.dropped},
        fresh={m.name: p.fresh for m, p in edited if p.fresh},
        before=before,
        after=elastic.live_parameters(),
        seconds=time.perf_counter() - start,
    )


@torch.no_grad()
def apply_slot_plan(
    plan: SlotPlan,
    elastic: Elastic,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    companions: Iterable[Companion] = (),
    split: Split = "asymmetric",
    generator: Generator | None = None,
) -> None:
    """``apply_plan`` with a plan that only the device knows: nothing is waited for. What it did tells ``plan.plan``.

    Raises ValueError, before anything is changed, where the plan, a module, a companion or an optimizer's state does
    not fit.
    """
    if split not in SPLITS:
        raise ValueError(f"apply_slot_plan: split must be one of {', '.join(SPLITS)}, got '{split}'")
    if elastic.storage != "slots" or plan.edits != elastic.edits or plan.sources.keys() - elastic.modules.keys():
        raise ValueError("apply_slot_plan: the plan was not made for this model as it is now")
    modules = [elastic.modules[name] for name in plan.sources]
    for module in modules:
        module.check()
    fresh = {m.name: fresh_values(m, 1, plan.seed) for m in modules} if plan.revive else {}
    generator = generator or torch.Generator(modules[0].device).manual_seed(plan.seed)
    optimizers = _followed(optimizer, elastic, in_place=True)
    edit_slots(elastic, plan.sources, optimizers, Companions(elastic, companions), split, generator, fresh)


def resize(
    elastic: Elastic,
    widths: Mapping[str, int],
    optimizer: Optimizer | Sequence[Optimizer] | None,
    companions: Iterable[Companion],
) -> None:
    """Give tensors room for so many components: zeros come behind what is there, or the last ones go."""
    edited = []
    for name, width in widths.items():
        m = elastic.modules[name]
        m.check()
        edited.append((m, ModulePlan(name, m.stored, resized(m.stored, width))))
    with torch.no_grad():
        optimizers = _followed(optimizer, elastic, in_place=False)
        _edit(edited, elastic, optimizers, Companions(elastic, companions), "halves", torch.Generator(), {})


def _followed(optimizer: Optimizer | Sequence[Optimizer] | None, elastic: Elastic, in_place: bool) -> list[Optimizer]:
    """The optimizers whose state follows. Raises ValueError where one keeps state that cannot."""
    optimizers = listed(optimizer)
    refuse_buckets(holders(optimizers, elastic), in_place)
    for each in holders(optimizers, elastic):
        refuse_flat_state(each)
    return optimizers


def _edit(
    edited: Sequence[tuple[ElasticModule, ModulePlan]],
    elastic: Elastic,
    optimizers: Sequence[Optimizer],
    companions: Companions,
    split: Split,
    generator: Generator,
    fresh: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Replace the tensors of these modules. Fresh components whose values are not given hold zeros."""
    changes: list[_Change] = []
    gathering = Gathering()
    reshard(elastic.model)
    for m, plan in edited:
        changes += _prepare(m, plan, fresh.get(m.name, {}), optimizers, companions, split, generator, gathering)
    gathering.make()
    _commit(changes)
    torch.clear_autocast_cache()  # an autocast region around the loop keeps casts of the old weights
    elastic.version += 1


def _check(plan: Plan, elastic: Elastic) -> list[tuple[ElasticModule, ModulePlan]]:
    """The modules that change; refuse a plan for another model or another moment."""
    edited = []
    for module_plan in plan.modules:
        if (m := elastic.modules.get(module_plan.name)) is None:
            raise ValueError(f"apply_plan: the model has no elastic module {module_plan.name}")
        if m.components != module_plan.components:
            raise ValueError(
                f"apply_plan: the plan was made for {module_plan.components} components of {m.title}, "
                f"which has {m.components} now"
            )
        if not module_plan.sources and not m.can_be_empty:
            raise ValueError(f"apply_plan: {m.title} ({type(m.module).__name__}) cannot lose all its components")
        if module_plan.changed:
            m.check()
            edited.append((m, module_plan))
    return edited


def _prepare(
    m: ElasticModule,
    plan: ModulePlan,
    fresh: Mapping[str, Tensor],
    optimizers: Sequence[Optimizer],
    companions: Companions,
    split: Split,
    generator: Generator,
    gathering: Gathering,
) -> list[_Change]:
    """Ask for everything that one module's edit will assign."""
    follow = moved(plan)
    changes = []
    for name, tensor in m.tensors():
        noise = _noise(m.view(name, tensor), plan, split, generator) if name in m.layout.output else None
        edit = TensorEdit(m, plan, name, fresh.get(name), split, noise, follow, gathering)
        for place in (m.place(name), *companions.places(m, name)):
            changes += _place_changes(edit, place, optimizers)
        for table, key in companions.entries(m, name):
            changes.append(_item_change(table, key, edit.weights(table[key])))
    modules = (m.module, *companions.modules(m))
    if m.stored == 0:
        for module in modules:
            changes += _silence_output_biases(m, module, optimizers)
        for bias in output_biases(m):
            for table, key in companions.entries(m, bias, required=False):
                changes.append(_item_change(table, key, partial(torch.zeros_like, table[key])))
    for module in modules:
        changes += _attribute_changes(m, module, len(plan.sources))
    changes.append(_attribute_change(m, "stored", len(plan.sources)))
    return changes


def _noise(view: Tensor, plan: ModulePlan, split: Split, generator: Generator) -> Tensor | None:
    if not plan.copies:
        return None
    whole = copied(view, plan)
    return scale(draw(whole.shape, whole, split, generator), whole, split)


@dataclass(frozen=True)
class TensorEdit:
    """The edit of one tensor of the layout, and of whatever has its shape."""

    m: ElasticModule
    plan: ModulePlan
    name: str
    fresh: Tensor | None
    split: Split
    noise: Tensor | None
    moved: Tensor
    gathering: Gathering

    def weights(self, tensor: Tensor) -> Callable[[], Tensor]:
        """The edited weights: copies share what leaves through an output tensor."""
        expect(self.m, self.name, tensor, "it")
        view = self.m.view(self.name, tensor.detach())
        given = [] if self.fresh is None else [self.fresh.to(view)]
        shared: Literal["", "output", "even"] = ""
        if self.plan.copies and self.name in self.m.layout.output:
            shared = "output"
            given.insert(0, share(copied(view, self.plan), self.split, self.noise))
        elif self.plan.copies and self.name in self.m.layout.even:
            shared = "even"
            given.insert(0, copied(view, self.plan) / 2)
        index = weights_index(self.plan, shared, self.fresh is not None)
        return self.gather(view, index, torch.cat(given, 1) if given else None)

    def follow(self, tensor: Tensor, what: str) -> Callable[[], Tensor]:
        """The edited gradient or moment: copies have their source's, fresh components have zero.

        Nothing is halved. The gradient of an output weight is (gradient of the output) x (hidden unit): the
        same for the source before and for both of them after. On the input side gradients do change with the
        output weights, by a factor that Adam's ratio of moments cancels.
        """
        expect(self.m, self.name, tensor, what)
        return self.gather(self.m.view(self.name, tensor.detach()), self.moved, None)

    def gather(self, view: Tensor, index: Tensor, given: Tensor | None) -> Callable[[], Tensor]:
        shape = self.m.layout.pattern(self.name).shape(len(self.plan.sources), self.m.sizes)
        return self.gathering.add(view, index, given, shape)


def _place_changes(edit: TensorEdit, place: Place, optimizers: Sequence[Optimizer]) -> list[_Change]:
    """New values of what stands there, a parameter with all that follows it, or a buffer."""
    tensor = cast(Tensor, place.tensor)
    if place.is_parameter:
        return _parameter_changes(edit, tensor, optimizers)
    return [_item_change(place.owner._buffers, place.leaf, edit.weights(tensor))]


def _parameter_changes(edit: TensorEdit, parameter: Tensor, optimizers: Sequence[Optimizer]) -> list[_Change]:
    """New data, gradient and optimizer state of one parameter."""
    old_data, old_grad = parameter.data, parameter.grad
    new_data = edit.weights(parameter)
    # optimizers that take means, as Adafactor, divide by the number of entries
    emptied = not edit.plan.sources
    new_grad = None if old_grad is None or emptied else edit.follow(old_grad, "its gradient")
    changes = [
        _Change(
            lambda: _replace(parameter, new_data(), new_grad and new_grad()),
            lambda: _replace(parameter, old_data, old_grad),
        )
    ]
    for state in states_of(optimizers, parameter):
        changes += [_item_change(state, key, value) for key, value in follow_state(edit, parameter, state).items()]
    return changes


def _silence_output_biases(m: ElasticModule, module: nn.Module, optimizers: Sequence[Optimizer]) -> list[_Change]:
    """Zero biases behind the outputs of a module that comes back: it contributed nothing, nor may they at once."""
    changes = []
    for name in output_biases(m):
        tensor = m.place(name, module).tensor
        if tensor is None:
            continue
        changes.append(_data_change(tensor, torch.zeros_like(tensor)))
        for state, key in state_beside(optimizers, tensor):
            changes.append(_item_change(state, key, partial(torch.zeros_like, state[key])))
    return changes


def _data_change(tensor: Tensor, data: Tensor) -> _Change:
    old = tensor.data
    return _Change(lambda: setattr(tensor, "data", data), lambda: setattr(tensor, "data", old))


def _replace(parameter: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Give a parameter other data under the same identity."""
    # While an old loss is alive, so is the node that accumulates into this parameter, and it insists on the
    # old shape. PyTorch lets go of it where the dtype changes.
    parameter.data = torch.empty(
        0, dtype=torch.float32 if data.dtype != torch.float32 else torch.float64, device=data.device
    )
    parameter.data = data
    parameter.grad = grad


def _item_change(table: MutableMapping[Any, Any], key: Any, value: Callable[[], Tensor]) -> _Change:
    old = table[key]
    return _Change(lambda: table.__setitem__(key, value()), lambda: table.__setitem__(key, old))


def _attribute_change(target: Any, name: str, value: Any) -> _Change:
    old = getattr(target, name)
    return _Change(lambda: setattr(target, name, value), lambda: setattr(target, name, old))


def _attribute_changes(m: ElasticModule, module: nn.Module, components: int) -> list[_Change]:
    """Integers and dropout rates that follow the width, and what the module does when it is empty."""
    values: dict[str, Any] = dict(m.attributes(components))
    for name, value in values.items():
        if isinstance(get_attribute(module, name, m.name), tuple):
            values[name] = (value,)
    for name, rate in m.dropout.items():
        values[name] = min(max(rate, MAX_DROPOUT), rate * components / m.standard)
    changes = [_dotted_change(m, module, name, value) for name, value in values.items()]
    was_empty = m.stored == 0
    changes.append(_Change(lambda: set_empty(module, components == 0), lambda: set_empty(module, was_empty)))
    return changes


def _dotted_change(m: ElasticModule, module: nn.Module, name: str, value: Any) -> _Change:
    old = get_attribute(module, name, m.name)
    return _Change(
        lambda: set_attribute(module, name, value, m.name),
        lambda: set_attribute(module, name, old, m.name),
    )


def _commit(changes: Sequence[_Change]) -> None:
    """Make all changes, or none."""
    done: list[_Change] = []
    try:
        for change in changes:
            done.append(change)
            change.do()
    except BaseException:
        for change in reversed(done):
            change.undo()
        raise
