"""The elastic modules of a model: what they are made of, what a component costs, how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dmao_kernels.layout import ComponentLayout, Pattern
from dmao_kernels.structure.edit import Companion
from dmao_kernels.structure.empty import handles_empty
from dmao_kernels.structure.places import Place, find_place, get_attribute
from dmao_kernels.structure.plan import Group
from dmao_kernels.structure.register import describe, find_family, prepare
from dmao_kernels.structure.state import load_structure, structure_state


class ElasticModule:
    """One module whose components can be dropped and grown.

    name: dotted name in the model.  module, layout: what and how.  components: how many there are now.
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
        if components < 1:
            raise ValueError(f"{name}: a module must be built with at least one component, got {components}")
        self.name, self.module, self.layout = name, module, layout
        self.components = self.standard = components
        self.can_be_empty = can_be_empty
        self.gate: str | None = None  # name of the gate tensor, see ComponentGates
        shapes = {tensor_name: tuple(tensor.shape) for tensor_name, tensor in self.tensors()}
        for required in (*layout.output, layout.scored):
            if required not in shapes:
                raise ValueError(f"{name}: layout {layout.family} needs {required}, but it is None")
        try:
            self.sizes = layout.infer(shapes, components)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not handles_empty(module) and self.sizes.get("d") != self.sizes.get("e", self.sizes.get("d")):
            self.can_be_empty = False  # zeros of the shape of its input would not have the shape of its output
        self.own_cost = sum(t.numel() for n, t in self.tensors() if self.place(n).is_parameter) // components
        if not self.own_cost:
            raise ValueError(f"{name}: the components of a {layout.family} module must own parameters")
        self.shared_cost = sum(t.numel() for t in self.shared_parameters())
        self.dropout: dict[str, float] = {n: float(get_attribute(module, n, name)) for n in layout.dropout}
        self.check()

    @property
    def cost(self) -> float:
        """Parameters of one component, the shared ones amortised over the standard width."""
        return self.own_cost + self.shared_cost / self.standard

    @property
    def parameters(self) -> int:
        """Parameters in use: an empty module uses none, not even the shared ones."""
        return self.components * self.own_cost + (self.shared_cost if self.components else 0)

    def place(self, tensor_name: str, module: nn.Module | None = None) -> Place:
        """The place of a tensor in this module (or in ``module``, a copy of it)."""
        return find_place(module or self.module, tensor_name, self.name)

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
        return tensor.reshape(self.layout.pattern(tensor_name).triple(self.components, self.sizes))

    def check(self, module: nn.Module | None = None) -> None:
        """Raise ValueError unless tensors and attributes (of ``module``, a copy) are as the layout says."""
        where = module or self.module
        for name, tensor in self.tensors(where):
            pattern: Pattern = self.layout.pattern(name)
            expected = pattern.shape(self.components, self.sizes)
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{self.name}: {name} must have the shape {list(expected)} ('{pattern.text}' with "
                    f"{self.components} components, {self.sizes}), got {list(tensor.shape)}"
                )
        for name, value in self.attributes(self.components).items():
            found = get_attribute(where, name, self.name)
            if found != value and found != (value,):
                raise ValueError(f"{self.name}: {name} must be {value} ('{self.layout.attributes[name]}'), got {found}")


class Elastic:
    """Find the elastic modules of ``model``, in module order.

    A module is elastic if it has a method ``component_layout() -> (ComponentLayout, components)``, or if it or its
    class was registered with ``register_family``. ``components`` is the number for registered modules that do
    not tell their own; it may be a mapping from module or family name to number. ``refused`` tells of every
    registered module that is not elastic the reason.

    Raises ValueError where a layout does not fit its module, a tensor has two owners, or nothing is elastic.
    """

    def __init__(self, model: nn.Module, components: int | Mapping[str, int] = 4) -> None:
        self.model = model
        self.edits = 0  # counts the plans applied
        self.version = 0  # counts edits and changes of layouts: what is derived from these compares this number
        self.modules: dict[str, ElasticModule] = {}
        self.refused: dict[str, str] = {}
        prepare(model)
        for name, module in model.named_modules():
            found = _discover(name, module, components)
            if isinstance(found, str):
                self.refused[name] = found
            elif found is not None:
                self.modules[name] = found
        if not self.modules:
            reasons = "".join(f"; {name}: {reason}" for name, reason in self.refused.items())
            raise ValueError(
                f"Elastic: the model has no elastic module (see register_family, component_layout, discover){reasons}"
            )
        self._refuse_tied()

    def counts(self) -> dict[str, int]:
        """Components of every elastic module."""
        return {name: m.components for name, m in self.modules.items()}

    def live_parameters(self) -> int:
        """Parameters in use: all of the model's but for the shared ones of empty modules, and for gates."""
        return self.fixed_parameters() + sum(m.parameters for m in self.modules.values())

    def fixed_parameters(self) -> int:
        """Parameters outside the elastic modules' layouts."""
        elastic = {id(t) for m in self.modules.values() for _, t in m.tensors()}
        elastic |= {id(t) for m in self.modules.values() for t in m.shared_parameters()}
        return sum(p.numel() for p in self.model.parameters() if id(p) not in elastic)

    def groups(self, scores: Mapping[str, Tensor | Sequence[float]]) -> list[Group]:
        """What ``make_plan`` needs to know, from one score per component of every module."""
        if missing := self.modules.keys() - scores.keys():
            raise ValueError(f"groups: scores of {sorted(missing)} are missing")
        groups = []
        for name, m in self.modules.items():
            values = scores[name]
            numbers = tuple(values.tolist() if isinstance(values, Tensor) else values)
            if len(numbers) != m.components:
                raise ValueError(f"groups: {name} has {m.components} components, got {len(numbers)} scores")
            groups.append(Group(name, numbers, m.own_cost, m.shared_cost, m.standard, 0 if m.can_be_empty else 1))
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
                    raise ValueError(f"{m.name}: {name} is tied: {' and '.join(users[id(tensor)])} are one tensor")
                if id(tensor) in claims:
                    raise ValueError(f"{m.name}: {name} is claimed twice: by {claims[id(tensor)]} and by {m.name}")
                claims[id(tensor)] = m.name


def _discover(name: str, module: nn.Module, default: int | Mapping[str, int]) -> ElasticModule | str | None:
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
            return int(get_attribute(module, attribute, name))
    if isinstance(default, int):
        return default
    for key in (name, layout.family):
        if key in default:
            return default[key]
    raise ValueError(f"Elastic: components gives no number for {name} ({layout.family}), only for {sorted(default)}")
