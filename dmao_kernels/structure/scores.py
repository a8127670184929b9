"""How much every component is worth: a moving average on the device, from the gradients that training has anyway."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.ops.importance import METRICS, importance_
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.places import Place
from dmao_kernels.structure.plan import FRESH, Plan
from dmao_kernels.structure.shards import REMEDY, called_on, holders, is_sharded, part, pieces, reshard, summed
from dmao_kernels.structure.slots.edit import Moves, slot_sources

Metric = Literal["taylor", "gradient", "magnitude", "signed", "gate"]
Scope = Literal["slice", "component"]
VERSION = 2

_Take = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Table:
    """What one ``importance_`` call needs to know about the structure; rebuilt only when that changes."""

    key: tuple[object, ...]
    tensors: list[Tensor]
    segments: Tensor
    inverse_count: Tensor
    parts: list[tuple[Tensor, _Take]]  # instead of ``tensors``: parameters, and what is scored of this rank's part


class Scores:
    """One score per component of every elastic module.

    metric: mean over the scored entries of
        taylor |w g| (first-order Taylor, the published one), gradient |g|, magnitude |w|, gate |gate| (see
        ComponentGates); or signed: |mean w g|, the absolute value taken after averaging over entries and
        steps, so that what training pushes to and fro cancels.
    scope: "slice" scores the layout's published slice, "component" all parameters that the component owns
        (gates excepted).
    beta: weight of the old average in s <- beta s + (1 - beta) s_new; it starts at 0. (Published: 0.1, one
        batch.)
    every: of so many updates that are asked for, the first is made.  calls, updates: asked for, and made.

    What is not scored keeps its average: components whose mean is not finite (NaN gradients never poison
    scores), and those of whose scored parameters none has a gradient. Frozen parameters are left out of the
    mean, except for "magnitude" and "gate".

    Raises ValueError for unknown names, beta outside [0, 1), every below 1, or metric "gate" without gates.
    """

    def __init__(
        self,
        elastic: Elastic,
        metric: Metric = "taylor",
        scope: Scope = "slice",
        beta: float = 0.99,
        every: int = 1,
    ) -> None:
        if metric not in (*METRICS, "gate"):
            raise ValueError(f"Scores: metric must be one of {', '.join(METRICS)}, gate, got '{metric}'")
        if scope not in ("slice", "component"):
            raise ValueError(f"Scores: scope must be slice or component, got '{scope}'")
        if not 0 <= beta < 1:
            raise ValueError(f"Scores: beta must be in [0, 1), got {beta}")
        if every < 1:
            raise ValueError(f"Scores: every must be 1 or more, got {every}")
        self.elastic, self.metric, self.scope, self.beta, self.every = elastic, metric, scope, beta, every
        self.calls = self.updates = 0
        self._counts, self._edits = elastic.widths(), elastic.edits
        self._fitting_version = elastic.version  # at which the averages were last seen to fit
        self._places: list[tuple[ElasticModule, list[tuple[str, Place]]]] = []
        self._places_version = -1
        self._table: _Table | None = None
        device = next(iter(elastic.modules.values())).device
        self.ema = torch.zeros(sum(self._counts.values()), dtype=torch.float32, device=device)
        self._current_table()

    @torch.no_grad()
    def update(self) -> None:
        """Take the present gradients into account: one pass over the scored tensors, no host synchronisation.

        Call it after ``loss.backward()`` and before gradients are cleared. Raises RuntimeError where the
        model was edited and the scores were not told (``follow``, once per ``apply_plan``; ``refit``, once per
        ``to_slots`` or ``to_tight``), or edited by another Elastic.
        """
        if (begun := self.begin_update()) is not None:
            tensors, arguments = begun
            if parts := self._current_table().parts:
                tensors = [take(part(parameter)[0]) for parameter, take in parts]
                grads = [_part_of_gradient(parameter, take) for parameter, take in parts]
            else:
                grads = [t.new_empty(0) if t.grad is None else t.grad for t in tensors]
            importance_(weights=tensors, grads=grads, **arguments)

    def begin_update(self) -> tuple[list[Tensor], dict[str, Any]] | None:
        """For whoever makes the update himself: what is scored, and how.

        The parameters, and the other arguments of ``importance_``, or of ``adamw_importance_``, by name. None
        where ``every`` passes this one over. Raises RuntimeError as ``update`` does.
        """
        if self._edits != self.elastic.edits:
            raise RuntimeError(
                "Scores.update: the structure has changed: call follow(plan) after apply_plan(plan, ...)"
            )
        if self._fitting_version != self.elastic.version:
            if self._counts != self.elastic.widths():
                raise RuntimeError(
                    "Scores.update: the widths have changed: call refit() after to_slots() or to_tight()"
                )
            self._fitting_version = self.elastic.version
        self.calls += 1
        if (self.calls - 1) % self.every:
            return None
        self.updates += 1
        table = self._current_table()
        return table.tensors, {
            "ema": self.ema,
            "segments": table.segments,
            "inverse_count": table.inverse_count,
            "metric": "magnitude" if self.metric == "gate" else self.metric,
            "beta": self.beta,
        }

    @property
    def partial(self) -> bool:
        """Whether parameters are sharded: then every rank averages what it holds of each component."""
        return bool(self._current_table().parts)

    def values(self) -> dict[str, Tensor]:
        """The scores, {module: [components]}, on the device; higher is worth more. In slots storage one per slot.

        Of sharded parameters all ranks have to ask, for these and for ``state_dict``: they are summed up.
        """
        return {n: s.abs() if self.metric == "signed" else s.clone() for n, s in self._split(self._whole()).items()}

    def frozen(self) -> set[str]:
        """Names of the modules that keep their width, since all parameters that are scored are frozen."""
        return {
            m.name
            for m in self.elastic.modules.values()
            if not any(place.tensor is not None and place.tensor.requires_grad for _, place in self._scored(m))
        }

    def unscored(self, scores: Mapping[str, Sequence[float]], frozen: Collection[str]) -> set[str]:
        """Names of the modules with components, and not frozen, of which all have scores of exactly zero."""
        if self.metric in ("magnitude", "gate"):
            return set()
        reached = {name for name, values in scores.items() if any(values) or not len(values)}
        return scores.keys() - reached - set(frozen)

    def reset(self) -> None:
        """Begin anew (as the published code does after an event)."""
        self.ema.zero_()
        self.calls = self.updates = 0

    def follow(self, plan: Plan) -> None:
        """Let the averages follow their components through an edit.

        A copy inherits its source's score; a fresh component begins at the mean of its module's others, or 0.
        Raises ValueError where the plan was not made for the components that are scored.
        """
        if self.elastic.storage == "slots":
            self.follow_slots(slot_sources(plan, self.elastic))
            return
        averages, counts = self._by_module(), dict(self._counts)
        for module in plan.modules:
            if counts.get(module.name) != module.components:
                raise ValueError(f"Scores.follow: the plan is not for {module.name or 'the model'} as it is scored")
            counts[module.name] = len(module.sources)
            averages[module.name] = _follow(averages[module.name], module.sources)
        self.ema, self._counts = torch.cat(list(averages.values())), counts
        self._edits += 1

    def follow_slots(self, sources: Mapping[str, Tensor]) -> None:
        """``follow`` in slots storage: of every module that was edited the old slot of every new one."""
        for name, average in self._by_module().items():
            if name in sources:
                average.copy_(_follow_slots(average, Moves(sources[name])))
        self._edits += 1

    def refit(self) -> None:
        """Go on after the model went from one storage to the other: dead slots score nothing."""
        widths = self.elastic.widths()
        parts = [F.pad(part, (0, widths[name] - len(part))) for name, part in self._by_module().items()]
        self.ema, self._counts = torch.cat(parts), widths

    def _by_module(self) -> dict[str, Tensor]:
        """The averages of every module, as views."""
        return self._split(self.ema)

    def _split(self, averages: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._counts, averages.split(list(self._counts.values())), strict=True))

    def _whole(self) -> Tensor:
        """The averages; of sharded parameters those of all ranks together."""
        parts = self._current_table().parts
        return summed(self.ema, parts[0][0]) if parts else self.ema

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on after a restart."""
        return {
            "version": VERSION,
            "metric": self.metric,
            "scope": self.scope,
            "beta": self.beta,
            "calls": self.calls,
            "updates": self.updates,
            "counts": dict(self._counts),
            "ema": self._whole().cpu().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; the structure must have been loaded before (``Elastic.load_state_dict``).

        Raises ValueError, and changes nothing, where metric, scope or structure differ.
        """
        counts = self.elastic.widths()
        expected = {"version": VERSION, "metric": self.metric, "scope": self.scope, "counts": counts}
        for key, value in expected.items():
            if state.get(key) != value:
                raise ValueError(f"Scores.load_state_dict: {key} must be {value}, got {state.get(key)}")
        ema = state["ema"]
        if tuple(ema.shape) != (sum(counts.values()),):
            raise ValueError(
                f"Scores.load_state_dict: ema has the shape {list(ema.shape)}, not one entry per component"
            )
        beta, calls, updates = float(state["beta"]), int(state["calls"]), int(state["updates"])
        if not 0 <= beta < 1 or min(calls, updates) < 0 or not ema.is_floating_point() or not ema.isfinite().all():
            raise ValueError(
                f"Scores.load_state_dict: ema must be finite, beta in [0, 1), calls and updates 0 or more, got {beta}, "
                f"{calls}, {updates} and {ema.dtype}"
            )
        parts = self._current_table().parts
        ranks = holders(parts[0][0]) if parts else 1
        self.ema = ema.to(device=self.ema.device, dtype=torch.float32) / ranks  # which add up to what was saved
        self._counts, self._edits = counts, self.elastic.edits
        self.beta, self.calls, self.updates = beta, calls, updates

    def _scored(self, m: ElasticModule) -> list[tuple[str, Place]]:
        """The parameters whose entries are averaged, frozen ones among them."""
        if self.metric == "gate":
            if m.gate is None:
                raise ValueError(f"Scores: metric 'gate' needs ComponentGates(elastic) first: {m.title} has none")
            names = [m.gate]
        elif self.scope == "slice":
            names = [m.layout.scored]
        else:
            names = [name for name, _ in m.tensors() if name != m.gate]
        places = [(name, m.place(name)) for name in names]
        return [(name, place) for name, place in places if place.is_parameter]

    def _current_table(self) -> _Table:
        """The table, rebuilt where the structure, a parameter's identity, size or its being frozen has changed."""
        if self._table is None or self._table.parts:
            reshard(self.elastic.model)
        device = next(iter(self.elastic.modules.values())).device
        if self.ema.device != device:  # frameworks move a model after their callbacks were made
            self.ema, self._table = self.ema.to(device), None
        if self._places_version != self.elastic.version:
            self._places = [(m, self._scored(m)) for m in self.elastic.modules.values()]
            self._places_version = self.elastic.version
        key = tuple(
            (id(t), t.requires_grad, t.numel())
            for _, places in self._places
            for _, place in places
            if (t := place.tensor) is not None
        )
        if self._table is None or self._table.key != (self._places_version, key):
            self._table = self._build_table((self._places_version, key))
        return self._table

    def _build_table(self, key: tuple[object, ...]) -> _Table:
        tensors: list[Tensor] = []
        parts: list[tuple[Tensor, _Take]] = []
        rows: list[tuple[int, int, int, int, int]] = []
        entries: list[int] = []
        for m, places in self._places:
            of_component = 0
            for name, place in places:
                tensor = cast(Tensor, place.tensor)
                repeats, components, run = m.layout.pattern(name).triple(m.stored, m.sizes)
                if tensor.numel() != (expected := repeats * components * run):
                    raise RuntimeError(
                        f"Scores: {m.title}: {name} must have {expected} entries, got {tensor.numel()}: another "
                        "controller or Elastic has edited it: let one alone do so"
                    )
                if components and (tensor.requires_grad or self.metric in ("magnitude", "gate")):
                    of_component += repeats * run
                    if not is_sharded(tensor):
                        rows.append((len(tensors), repeats, components, run, len(entries)))
                        tensors.append(tensor)
                        continue
                    for triple, first, take in _shares(m, name, tensor):
                        rows.append((len(parts), *triple, len(entries) + first))
                        parts.append((tensor, take))
            entries += [of_component] * m.stored
        # The CPU reads them, wherever the scores are.
        segments = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, 5)
        inverse_count = torch.tensor(entries, dtype=torch.float32, device="cpu").clamp(min=1).reciprocal()
        if parts and tensors:
            raise ValueError("Scores: some of the scored parameters are sharded and some are not: shard all of them")
        return _Table(key, tensors, segments, inverse_count.to(self.ema.device, non_blocking=True), parts)


def _shares(m: ElasticModule, name: str, tensor: Tensor) -> Iterator[tuple[tuple[int, int, int], int, _Take]]:
    """What this rank scores of a sharded parameter: (repeats, components, run), first component, what of its part."""
    _check_sharding(m, name)
    triple = m.layout.pattern(name).triple(m.stored, m.sizes)
    for piece in pieces(triple, *part(tensor)[1:]):
        yield (piece.repeats, piece.components, piece.run), piece.first, piece.of
    # What other ranks hold counts as zero here, so that all averages age alike.
    yield (1, m.stored, 1), 0, lambda flat: flat.new_zeros(m.stored)


def _check_sharding(m: ElasticModule, name: str) -> None:
    if m.slots is None:
        raise ValueError(f"Scores: {m.title}: {name} {REMEDY}")
    if m.hooks:  # which fully_shard leaves behind
        kind = type(m.module).__name__
        raise ValueError(
            f"Scores: {m.title}: {name} is sharded, which modules of dmao_kernels.nn can be, {kind} cannot"
        )
    if inner := [other for other, _ in m.tensors() if called_on(m.place(other).owner)]:  # it could not be copied
        raise ValueError(
            f"Scores: {m.title}: fully_shard was called on what holds {inner[0]}: call it on whole modules"
        )


def _part_of_gradient(parameter: Tensor, take: _Take) -> Tensor:
    if parameter.grad is None:
        return torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    return take(part(parameter.grad)[0])


def _follow(averages: Tensor, sources: tuple[int, ...]) -> Tensor:
    fresh = [i for i, source in enumerate(sources) if source == FRESH]
    if len(fresh) == len(sources):
        return averages.new_zeros(len(sources))
    index = torch.tensor([max(source, 0) for source in sources], dtype=torch.long, device=averages.device)
    followed = averages[index]
    if fresh:
        old = [i for i, source in enumerate(sources) if source != FRESH]
        followed[fresh] = followed[old].mean()
    return followed


def _follow_slots(averages: Tensor, moves: Moves) -> Tensor:
    followed = moves.follow(averages[None, :, None]).flatten()
    mean = followed.sum() / moves.taken.sum().clamp(min=1)
    return torch.where(moves.fresh, mean, followed)
