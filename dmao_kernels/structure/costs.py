"""What the parts of a model cost, in whole units: parameters, multiply-accumulates, or nanoseconds (see latency.py).

A cost model is anything with a ``unit`` and ``measure(elastic) -> Costs``; `Costs` are data and measure themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import gcd, lcm, prod
from typing import TYPE_CHECKING, Any, Protocol

from dmao_kernels.layout import COMPONENT, NUMBER_WORDS

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule


@dataclass(frozen=True)
class Costs:
    """What a model's parts cost; plain data.

    unit: of all numbers.  own: one component of every elastic module.  shared: what the module costs besides, while
        it has components.  fixed: the rest of the model.  measured: whether a measurement made them, so that another
        one may differ.

    Raises ValueError where a number is not whole, a component costs nothing, or another part less than nothing.
    """

    unit: str
    own: Mapping[str, int]
    shared: Mapping[str, int]
    fixed: int = 0
    measured: bool = False

    def __post_init__(self) -> None:
        if self.own.keys() != self.shared.keys():
            raise ValueError(f"Costs: own and shared must be of the same modules, got {[*self.own]}, {[*self.shared]}")
        for least, parts in ((1, self.own), (0, self.shared), (0, {"the rest": self.fixed})):
            for name, cost in parts.items():
                if isinstance(cost, bool) or not isinstance(cost, int) or cost < least:
                    what = f"a component of {name}" if least else name
                    raise ValueError(f"Costs: {what} must cost a whole number from {least} of {self.unit}, got {cost}")

    def of(self, name: str, components: int) -> int:
        """What a module costs with so many components; an empty one nothing."""
        return self.own[name] * components + (self.shared[name] if components else 0)

    def total(self, counts: Mapping[str, int]) -> int:
        """What the model costs with these numbers of components."""
        return self.fixed + sum(self.of(name, n) for name, n in counts.items())

    def measure(self, elastic: Elastic) -> Costs:
        """Themselves. Raises ValueError where they are of another model."""
        if self.own.keys() != elastic.modules.keys():
            raise ValueError(f"Costs: the modules must be {sorted(elastic.modules)}, got {sorted(self.own)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Costs:
        """The inverse of to_dict."""
        return cls(**values)

    def require_same(self, saved: Costs) -> None:
        """Raise ValueError, naming the first difference, unless ``saved`` may take the place of these."""
        if saved.unit != self.unit:
            raise ValueError(f"load_state_dict: cost must be in {self.unit}, got a state with a budget in {saved.unit}")
        if saved.own.keys() != self.own.keys():
            raise ValueError(f"load_state_dict: cost must be of {sorted(self.own)}, got {sorted(saved.own)}")
        if self.measured:
            return
        for what in ("own", "shared"):
            here, there = getattr(self, what), getattr(saved, what)
            for name in here:
                if here[name] != there[name]:
                    raise ValueError(
                        f"load_state_dict: {name}: the {what} cost must be {here[name]} {self.unit}, got {there[name]}"
                    )
        if saved.fixed != self.fixed:
            raise ValueError(
                f"load_state_dict: the cost outside of elastic modules must be {self.fixed} {self.unit}, "
                f"got {saved.fixed}"
            )


class CostModel(Protocol):
    """How costs are found."""

    @property
    def unit(self) -> str:
        """The unit of the costs."""

    def measure(self, elastic: Elastic) -> Costs:
        """The costs of this model."""


@dataclass(frozen=True)
class ParameterCost:
    """A component costs its parameters; gates are not counted."""

    unit = "parameters"

    def measure(self, elastic: Elastic) -> Costs:
        """The costs of this model."""
        modules = elastic.modules.items()
        return Costs(
            self.unit,
            {name: m.own_cost for name, m in modules},
            {name: m.shared_cost for name, m in modules},
            elastic.fixed_parameters(),
        )


@dataclass(frozen=True)
class MacCost:
    """A component costs the multiply-accumulates of one forward pass of its module.

    length: frames (tokens) of one utterance as the elastic modules see it.  batch: utterances.
    fixed: multiply-accumulates of everything that is not elastic; 0 leaves it out of the budget.

    Every tensor of two or more axes (Linear, pointwise and depthwise convolution) is taken to be used once per
    frame, vectors (biases, norms) to cost nothing. Heads add their products of all pairs of frames. For modules that
    compute otherwise see ``register_macs``. Raises ValueError where a number is out of range.
    """

    length: int
    batch: int = 1
    fixed: int = 0
    unit = "MACs"

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("batch", 1), ("fixed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"MacCost: {name} must be {least} or more, got {getattr(self, name)}")

    def measure(self, elastic: Elastic) -> Costs:
        """The costs of this model."""
        own, shared = {}, {}
        for name, m in elastic.modules.items():
            own[name] = self.batch * _MACS.get(m.layout.family, weight_macs)(m, self.length)
            matrices = (t.numel() for t in m.shared_parameters() if t.dim() > 1)
            shared[name] = self.batch * self.length * sum(matrices)
        return Costs(self.unit, own, shared, self.fixed)


Macs = Callable[["ElasticModule", int], int]


def weight_macs(m: ElasticModule, length: int) -> int:
    """The rule for one component and one utterance: every entry of a tensor of two or more axes, once per frame."""
    return length * sum(prod(shape) for shape in _component_shapes(m).values() if len(shape) > 1)


def attention_macs(m: ElasticModule, length: int) -> int:
    """One head: its projections, logits and weighted values of all pairs of frames, and relative positions.

    These are the axes ``p`` of a projection of 2 length - 1 encodings and ``r`` of a table of distances; both add
    a second product to every logit. A window or chunks are not taken into account.
    """
    if "k" not in m.sizes:
        raise ValueError(f"MacCost: {m.title}: an attention layout must call the width of a head k, got {m.sizes}")
    keys, values = m.sizes["k"], m.sizes.get("v", m.sizes["k"])
    macs = length * length * (keys + values)
    for name, shape in _component_shapes(m).items():
        others = {n for axis in m.layout.pattern(name).axes for n in axis} - {COMPONENT, "k", "v"}
        if len(shape) == 1 or not others:  # a bias, perhaps [heads, head_dim]
            continue
        rows = 2 * length - 1 if "p" in others else 0 if "r" in others else length
        macs += rows * prod(shape)
        macs += length * length * keys if others & {"p", "r"} else 0
    return macs


_MACS: dict[str, Macs] = {"attention": attention_macs, "packed_attention": attention_macs}


def register_macs(family: str, macs: Macs) -> None:
    """Tell `MacCost` what one component of this family of layouts computes for one utterance.

    macs: of the module and the number of frames, e.g. ``lambda m, length: weight_macs(m, length) + length**2``.
    """
    _MACS[family] = macs


def _component_shapes(m: ElasticModule) -> dict[str, tuple[int, ...]]:
    """The shapes that the layout's parameters would have with one component."""
    names = (name for name, _ in m.tensors() if m.place(name).is_parameter and name != m.gate)
    return {name: m.layout.pattern(name).shape(1, m.sizes) for name in names}


def aligned_components(m: ElasticModule, align: int) -> int:
    """The number of components whose multiples make widths that are multiples of ``align``.

    A width is an axis that holds the components together with their units, ``(C u)``; where halves or thirds stand
    on it, ``(two C u)``, each of them is aligned.
    """
    axes = [axis for name, _ in m.tensors() for axis in m.layout.pattern(name).axes if COMPONENT in axis]
    units = [[m.sizes[name] for name in axis if name != COMPONENT and name not in NUMBER_WORDS] for axis in axes]
    return lcm(*(align // gcd(align, prod(sizes)) for sizes in units if sizes))
