"""The structure of a model as JSON-able data: saved with a checkpoint, replayed on a freshly built model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmao_kernels.structure.elastic import Elastic

VERSION = 1


def structure_state(elastic: Elastic) -> dict[str, Any]:
    """What ``load_structure`` needs: the widths, and what they are counted in."""
    modules = {
        name: {
            "family": m.layout.family,
            "components": m.components,
            "standard": m.standard,
            "sizes": dict(sorted(m.sizes.items())),
        }
        for name, m in elastic.modules.items()
    }
    return {"version": VERSION, "modules": modules}


def load_structure(elastic: Elastic, state: Mapping[str, Any]) -> None:
    """Resize ``elastic``'s model to the saved widths. Raises ValueError, and changes nothing, where they do not belong."""
    raise NotImplementedError
