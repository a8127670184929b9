"""The elastic modules of a model: what they are made of, what a component costs, how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmao_kernels.layout import ComponentLayout, Pattern
from dmao_kernels.structure.costs import Costs, ParameterCost, aligned_components
from dmao_kernels.structure.empty import handles_empty
from dmao_kernels.structure.places import Place, find_place, get_attribute, uncompiled
from dmao_kernels.structure.plan import Group
from dmao_kernels.structure.register import describe, find_family, prepare
from dmao_kernels.structure.shards import REMEDY, is_sharded, reshard
from dmao_kernels.structure.slots.storage import LIVE, OptimizerOrMany, Storage, enter_slots, in_slots, leave_slots
from dmao_kernels.structure.state import load_structure, structure_state
from dmao_kernels.structure.targets import Companion

_NONE_LEFT = (
    "a module must be made elastic with at least one component, got {}; where an event has emptied it, give the "
    "Elastic of that event (controller.elastic) instead of the model"
)


class ElasticModule:
    """One module whose components can be dropped and grown.

    name: dotted name in the model.  module, layout: what and how.  stored: components that its tensors have room for.
    slots: bool [stored], which of them live, the first ones; None in tight storage, where all do.
    standard: how many it was built with.  sizes: of the layout's names, remembered while the module is empty.
    own_cost: parameters of one component.  shared_cost: parameters that no component owns.
    dropout: rates at the standard width.  can_be_empty: whether all components may go.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        layout: ComponentLayout,
        components: int,
        can_be_empty: bool = True,
    ) -> None:
        self.name, self.module, self.layout = name, module, layout
        if components < 1:
            raise ValueError(f"{self.title}: {_NONE_LEFT.format(components)}")
        self.stored = self.standard = components
        self.can_be_empty = can_be_empty
        self.gate: str | None = None  # name of the gate tensor, see ComponentGates
        self.hooks: list[Any] = []  # on gradients, in slots storage
        if sharded := [tensor_name for tensor_name, tensor in self.tensors() if is_sharded(tensor)]:
            raise ValueError(f"{self.title}: {sharded[0]} {REMEDY}")
        shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in self.tensors()}
        for required in (*layout.output, layout.scored):
            if required not in shapes:
                raise ValueError(f"{self.title}: layout {layout.family} needs {required}, but it is None")
        try:
            self.sizes = layout.infer(shapes, components)
        except ValueError as error:
            raise ValueError(f"{self.title}: {error}") from None
        if not handles_empty(module) and self.sizes.get("d") != self.sizes.get("e", self.sizes.get("d")):
            self.can_be_empty = False  # zeros of the shape of its input would not have the shape of its output
        self.own_cost = sum(t.numel() for n, t in self.tensors() if self.place(n).is_parameter) // components
        if not self.own_cost:
            if any(self.place(n).is_parameter for n in shapes):
                raise ValueError(f"{self.title}: {_NONE_LEFT.format(0)}")
            raise ValueError(f"{self.title}: the components of a {layout.family} module must own parameters")
        self.shared_cost = sum(t.numel() for t in self.shared_parameters())
        self.dropout: dict[str, float] = {n: float(get_attribute(module, n, self.title)) for n in layout.dropout}
        self.check()

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or "the model"

    @property
    def device(self) -> torch.device:
        """Where its components are."""
        return cast(Tensor, self.place(self.layout.scored).tensor).device

    @property
    def slots(self) -> Tensor | None:
        """Which of the stored components live; None: all."""
        return self.module._buffers.get(LIVE)

    @property
    def components(self) -> int:
        """How many there are now. In slots storage this waits for the device."""
        return self.stored if self.slots is None else int(self.slots.sum())

    @property
    def cost(self) -> float:
        """Parameters of one component, the shared ones amortised over the standard width."""
        return self.own_cost + self.shared_cost / self.standard

    @property
    def parameters(self) -> int:
        """Parameters in use: an empty module uses none, not even the shared ones."""
        components = self.components
        return components * self.own_cost + (self.shared_cost if components else 0)

    @property
    def trained(self) -> bool:
        """Whether any of its tensors requires a gradient."""
        return any(tensor.requires_grad for _, tensor in self.tensors())

    def place(self, tensor_name: str, module: nn.Module | None = None) -> Place:
        """The place of a tensor in this module (or in ``module``, a copy of it)."""
        return find_place(module or self.module, tensor_name, self.title)

    def tensors(self, module: nn.Module | None = None) -> Iterator[tuple[str, Tensor]]:
        """The layout's tensors that are there: a bias switched off is passed over."""
        for name in self.layout.tensors:
            if (tensor := self.place(name, module).tensor) is not None:
                yield name, tensor

    def shared_parameters(self) -> Iterator[Tensor]:
        """The parameters that no component owns."""
        for name in self.layout.shared:
            place = self.place(name)
            if place.is_parameter and place.tensor is not None:
                yield place.tensor

    def attributes(self, components: int) -> dict[str, int]:
        """The integer attributes that belong to this number of components."""
        return {name: self.layout.pattern(name).shape(components, self.sizes)[0] for name in self.layout.attributes}

    def view(self, tensor_name: str, tensor: Tensor) -> Tensor:
        """The named tensor (or gradient, moment) as [repeats, components, run]; a view if contiguous."""
        return tensor.reshape(self.layout.pattern(tensor_name).triple(self.stored, self.sizes))

    def check(self, module: nn.Module | None = None) -> None:
        """Raise ValueError unless tensors and attributes (of ``module``, a copy) fit the layout and can follow."""
        where = module or self.module
        for name, tensor in self.tensors(where):
            owner: Any = self.place(name, where).owner
            if getattr(owner, "live_blocks", None) is not None:
                raise ValueError(f"{self.title}: the block mask over {name} cannot follow its components")
            if hasattr(owner, "weight_fake_quant") and getattr(owner.weight_fake_quant, "is_per_channel", True):
                raise ValueError(
                    f"{self.title}: scales per channel that {name} is quantised with cannot follow its components: "
                    "call prepare_qat after the last event, or quantise weights per tensor"
                )
            pattern: Pattern = self.layout.pattern(name)
            expected = pattern.shape(self.stored, self.sizes)
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{self.title}: {name} must have the shape {list(expected)} ('{pattern.text}' with "
                    f"{self.stored} components, {self.sizes}), got {list(tensor.shape)}"
                )
        for name, value in self.attributes(self.stored).items():
            found = get_attribute(where, name, self.title)
            if found != value and found != (value,):
                raise ValueError(
                    f"{self.title}: {name} must be {value} ('{self.layout.attributes[name]}'), got {found}"
                )


class Elastic:
    """Find the elastic modules of ``model``, in module order.

    A module is elastic if it has a method ``component_layout() -> (ComponentLayout, components)``, or if it or its
    class was registered with ``register_family``. ``components`` is the number for registered modules that do
    not tell their own; it may be a mapping from module or family name to number. ``refused`` tells of every
    registered module that is not elastic the reason.

    storage: "tight": tensors shrink and grow at events, and compute what there is. "slots": they are enlarged once, to
        ``headroom`` times the number of components (rounded up), the live ones come first and the others hold zeros;
        shapes never change again, so nothing compiled is compiled anew, and edits write in place. See ``to_slots``.

    Raises ValueError where a layout does not fit its module, a tensor has two owners or is sharded already, or nothing
    is elastic, or the model is in slots storage already.
    """

    def __init__(
        self,
        model: nn.Module,
        components: int | Mapping[str, int] = 4,
        *,
        storage: Storage = "tight",
        headroom: float = 2.0,
    ) -> None:
        if storage not in ("tight", "slots"):
            raise ValueError(f"Elastic: storage must be tight or slots, got {storage!r}")
        if not isinstance(components, int | Mapping):
            raise TypeError(f"Elastic: components must be a whole number or a mapping to such, got {components!r}")
        if not isinstance(model, nn.Module):
            raise TypeError(f"Elastic: model must be an nn.Module, got a {type(model).__name__}")
        self.model = model = uncompiled(model)
        if names := in_slots(model):
            raise ValueError(
                f"Elastic: {names[0]} is in slots storage already: go on with the Elastic that brought it there, or "
                "call its to_tight() before"
            )
        self.storage: Storage = "tight"
        self.edits = 0  # counts the plans applied
        self.version = 0  # counts edits and changes of layouts: what is derived from these compares this number
        self.modules: dict[str, ElasticModule] = {}
        self.refused: dict[str, str] = {}
        prepare(model)
        reshard(model)
        for name, module in model.named_modules():
            found = _elastic_module(name, module, components)
            if isinstance(found, str):
                self.refused[name] = found
            elif found is not None:
                self.modules[name] = found
        if not self.modules:
            reasons = "".join(f"; {name or 'the model'}: {reason}" for name, reason in self.refused.items())
            raise ValueError(
                f"Elastic: the model has no elastic module (see register_family, component_layout, discover){reasons}"
            )
        if isinstance(components, Mapping):
            self._refuse_unknown(components)
        self._refuse_tied()
        if storage == "slots":
            self.to_slots(headroom)

    def to_slots(
        self, headroom: float = 2.0, optimizer: OptimizerOrMany = None, companions: Iterable[Companion] = ()
    ) -> None:
        """Go over to slots storage: enlarge the tensors of all modules, of optimizer state and of averaged copies.

        In modules of ``dmao_kernels.nn`` dead slots are not computed. Other modules compute over the whole capacity:
        there only parameters move. Gradients of their dead slots are set to zero as they arrive, and so weights and
        moments of these stay zero under any optimizer that leaves zeros with zero gradients alone. Dropout rates stay
        what they are, since a rate is a constant of a compiled graph.

        Raises ValueError, and changes nothing, where a module cannot be kept so: under gates, with a LayerNorm or
        GroupNorm over its components (which would count dead ones), or where ``headroom`` is below 1 or gives less
        than there is.
        """
        enter_slots(self, headroom, optimizer, companions)

    def to_tight(self, optimizer: OptimizerOrMany = None, companions: Iterable[Companion] = ()) -> None:
        """Go back to tight storage: cut the dead slots off, so that the model is what tight storage would have."""
        leave_slots(self, optimizer, companions)

    def counts(self) -> dict[str, int]:
        """Components of every elastic module. In slots storage this waits for the device."""
        if self.storage == "tight":
            return self.widths()
        live = torch.stack([cast(Tensor, m.slots).sum() for m in self.modules.values()])
        return dict(zip(self.modules, live.tolist(), strict=True))

    def widths(self) -> dict[str, int]:
        """Components that the tensors of every elastic module have room for; in tight storage all of them live."""
        return {name: m.stored for name, m in self.modules.items()}

    def frozen(self) -> set[str]:
        """Names of the modules of which nothing is trained."""
        return {name for name, m in self.modules.items() if not m.trained}

    def live_parameters(self, counts: Mapping[str, int] | None = None) -> int:
        """Parameters in use: all of the model's but for the shared ones of empty modules, for gates and dead slots.

        counts: with these numbers of components instead of the present ones.
        """
        return ParameterCost().measure(self).total(counts or self.counts())

    def fixed_parameters(self) -> int:
        """Parameters outside the elastic modules' layouts."""
        elastic = {id(t) for m in self.modules.values() for _, t in m.tensors()}
        elastic |= {id(t) for m in self.modules.values() for t in m.shared_parameters()}
        return sum(p.numel() for p in self.model.parameters() if id(p) not in elastic)

    def groups(
        self, scores: Mapping[str, Tensor | Sequence[float]], costs: Costs | None = None, align: int = 1
    ) -> list[Group]:
        """What ``make_plan`` needs to know, from one score per component of every module.

        costs: default: parameters.  align: widths stay multiples of this (``costs.aligned_components``).
        """
        costs = costs or ParameterCost().measure(self)
        if missing := self.modules.keys() - scores.keys():
            raise ValueError(f"groups: scores of {sorted(missing)} are missing")
        groups, counts = [], self.counts()
        for name, m in self.modules.items():
            values = scores[name]
            numbers = tuple(values.tolist() if isinstance(values, Tensor) else values)
            if len(numbers) not in (counts[name], m.stored):
                raise ValueError(f"groups: {m.title} has {counts[name]} components, got {len(numbers)} scores")
            numbers = numbers[: counts[name]]
            keep, multiple = 0 if m.can_be_empty else 1, aligned_components(m, align)
            if counts[name] % multiple:
                raise ValueError(
                    f"groups: {m.title}: align={align} needs a multiple of {multiple} components, got {counts[name]}"
                )
            groups.append(Group(name, numbers, costs.own[name], costs.shared[name], m.standard, keep, multiple))
        return groups

    def state_dict(self) -> dict[str, Any]:
        """The structure as JSON-able data: save it beside the model's state."""
        return structure_state(self)

    def load_state_dict(self, state: Mapping[str, Any], companions: Iterable[Companion] = ()) -> None:
        """Give a freshly built model, and its averaged copies, the saved widths; then the states of all of them, and
        the optimizer's, fit.

        Raises ValueError, and changes nothing, where the state belongs to another model.
        """
        load_structure(self, state, companions)

    def _refuse_unknown(self, components: Mapping[str, int]) -> None:
        """A number for a name that is not here would silently have no effect."""
        families = sorted({m.layout.family for m in self.modules.values()})
        if unknown := sorted(components.keys() - self.modules.keys() - {*families}):
            raise ValueError(
                f"Elastic: components must name elastic modules ({', '.join(self.modules)}) or families "
                f"({', '.join(families)}), got {unknown[0]!r}"
            )

    def _refuse_tied(self) -> None:
        """A tensor that two modules use cannot be resized for one of them."""
        users: dict[int, list[str]] = {}
        for owner_name, owner in self.model.named_modules():
            for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
                if tensor is not None:
                    users.setdefault(id(tensor), []).append(f"{owner_name}.{leaf}".removeprefix("."))
        claims: dict[int, str] = {}
        for m in self.modules.values():
            named = [*m.tensors(), *((n, t) for n in m.layout.shared if (t := m.place(n).tensor) is not None)]
            for name, tensor in named:
                if len(users[id(tensor)]) > 1:
                    raise ValueError(f"{m.title}: {name} is tied: {' and '.join(users[id(tensor)])} are one tensor")
                if id(tensor) in claims:
                    raise ValueError(f"{m.title}: {name} is claimed twice: by {claims[id(tensor)]} and by {m.title}")
                claims[id(tensor)] = m.title


def _elastic_module(name: str, module: nn.Module, default: int | Mapping[str, int]) -> ElasticModule | str | None:
    """The module as an elastic one; the reason why it is none though it is registered; None if nothing is known."""
    described = describe(module)
    if described is None or isinstance(described, str):
        return described
    layout, components = described if isinstance(described, tuple) else (described, None)
    if components is None:
        components = _count(name, module, layout, default)
    family = find_family(module)
    return ElasticModule(name, module, layout, components, family is None or family.can_be_empty)


def _count(name: str, module: nn.Module, layout: ComponentLayout, default: int | Mapping[str, int]) -> int:
    """The components of a module that does not tell them: an attribute such as ``heads``, or the default."""
    for attribute, pattern in layout.attributes.items():
        if pattern == "C":
            return int(get_attribute(module, attribute, name or "the model"))
    if isinstance(default, int):
        return default
    for key in (name, layout.family):
        if key in default:
            return default[key]
    raise ValueError(
        f"Elastic: components gives no number for {name or 'the model'} ({layout.family}), only for {sorted(default)}"
    )
