"""Grow-and-drop that ranks components by lot: what the mechanics do without the scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmao.controller import GrowAndDrop
from dmao.randomness import generator
from dmao_kernels.structure import Plan


class RandomRanking(GrowAndDrop):
    """Everything as in GrowAndDrop, in tight storage, but plans see random numbers, a function of seed and event.

    Events record the true scores. For comparisons: the same budget, drops, copies and edits.
    """

    def _plan(self, scores: Mapping[str, list[float]]) -> Plan:
        lots = generator(self._seed, "random ranking", len(self.events))
        drawn = {name: torch.rand(len(v), generator=lots, device="cpu").tolist() for name, v in scores.items()}
        return super()._plan(drawn)
