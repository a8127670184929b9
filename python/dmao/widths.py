"""Widths from the beginning: a model as an earlier training has shaped it, with weights of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from dmao.config import ModelConfig
from dmao.models import ConformerCTC
from dmao.parsing import ConfigError
from dmao_kernels.structure import Elastic, apply_plan, given_plan
from dmao_kernels.structure.plan import MOST_COMPONENTS, resized


def set_widths(model: nn.Module, widths: Mapping[str, int]) -> Elastic:
    """Gives elastic modules of `model` these numbers of components and draws all weights anew, from torch's generator.

    Dropout follows the widths, as after an event. Raises ConfigError for an unknown module or a negative number.
    """
    elastic = Elastic(model)
    present = elastic.counts()
    for name, count in widths.items():
        if name not in present:
            raise ConfigError(f"config: widths: there is no elastic module '{name}'; known here: {', '.join(present)}")
        if not 0 <= count <= MOST_COMPONENTS:
            raise ConfigError(f"config: widths: {name} must have 0 to {MOST_COMPONENTS} components, got {count}")
    sources = {name: resized(present[name], count) for name, count in widths.items() if count != present[name]}
    if sources:
        apply_plan(given_plan(sources, present), elastic)
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)) and all(p.numel() for p in module.parameters()):
            reset()
    return elastic


def require_same_components(model: ModelConfig, source: ModelConfig) -> None:
    """Raises ConfigError where widths that a training of `source` has found are no widths of `model`.

    The uniform models must have the same elastic modules, in as many components each: else one is another share of its
    module. The model's width may be another.
    """
    here, there = _uniform(model), _uniform(source)
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise ConfigError(
                f"config: widths: {name} must have {here.get(name, 'no')} components in the uniform model that they "
                f"were found in, got {there.get(name, 'none')}"
            )


def _uniform(model: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        return Elastic(ConformerCTC(model.conformer(outputs=2))).counts()
