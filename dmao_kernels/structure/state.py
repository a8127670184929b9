"""The structure of a model as JSON-able data: saved with a checkpoint, replayed on a freshly built model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dmao_kernels.structure.edit import Companion, apply_plan
from dmao_kernels.structure.plan import MOST_COMPONENTS, given_plan, resized

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic, ElasticModule

VERSION = 1


def structure_state(elastic: Elastic) -> dict[str, Any]:
    """The widths, and what they are counted in; in slots storage the slots as well, of which the first ones live."""
    counts = elastic.counts()
    return {
        "version": VERSION,
        **({"slots": elastic.widths()} if elastic.storage == "slots" else {}),
        "modules": {name: {**_identity(m), "components": counts[name]} for name, m in elastic.modules.items()},
    }


def load_structure(elastic: Elastic, state: Mapping[str, Any], companions: Iterable[Companion] = ()) -> None:
    """Resize ``elastic``'s model and its averaged copies to the saved widths; the values of the
    tensors are to be loaded afterwards.

    Raises ValueError, and changes nothing, where the state belongs to another model.
    """
    if not isinstance(state, Mapping) or not isinstance(saved := state.get("modules"), Mapping):
        raise ValueError("load_state_dict: not the state of an Elastic (it has no 'modules')")
    if state.get("version") != VERSION:
        raise ValueError(f"load_state_dict: version must be {VERSION}, got {state.get('version')}")
    if saved.keys() != elastic.modules.keys():
        missing, unknown = sorted(elastic.modules.keys() - saved), sorted(saved.keys() - elastic.modules)
        raise ValueError(f"load_state_dict: other modules: the state lacks {missing}, the model lacks {unknown}")
    targets = {name: _components(m, saved[name]) for name, m in elastic.modules.items()}
    slots = elastic.widths() if elastic.storage == "slots" else None
    if state.get("slots") != slots:
        raise ValueError(
            f"load_state_dict: the slots must be {slots}, got {state.get('slots')}: load into a model with the same "
            "storage and headroom, then go over to another with to_tight or to_slots"
        )
    counts = elastic.counts()
    sources = {name: resized(counts[name], target) for name, target in targets.items()}
    apply_plan(given_plan(sources, counts), elastic, companions=companions)


def _identity(m: ElasticModule) -> dict[str, Any]:
    return {
        "family": m.layout.family,
        "standard": m.standard,
        "sizes": dict(m.sizes),
        "gate": m.gate is not None,
    }


def _components(m: ElasticModule, saved: Mapping[str, Any]) -> int:
    """The saved number of components, after a look at whether they are components of the same kind."""
    if not isinstance(saved, Mapping):
        raise ValueError(f"load_state_dict: {m.title} must be a mapping, got {saved!r}")
    for key, expected in _identity(m).items():
        if saved.get(key) != expected:
            raise ValueError(f"load_state_dict: {m.title}: {key} must be {expected}, got {saved.get(key)}")
    components = saved.get("components")
    if type(components) is not int or not 0 <= components <= MOST_COMPONENTS:
        raise ValueError(
            f"load_state_dict: {m.title}: components must be a count, got {components} ({MOST_COMPONENTS} at most)"
        )
    return components
