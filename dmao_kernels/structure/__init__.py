"""Grow and drop: layouts of known modules, scores, plans, edits.

>>> elastic = Elastic(model)  # which modules, how many components
>>> scores = Scores(elastic)  # after every backward: scores.update()
>>> plan = make_plan(elastic.groups(scores.values()), fraction=0.15)  # at an event
>>> report = apply_plan(plan, elastic, optimizer)
>>> scores.follow(plan)
"""

from dmao_kernels.families import (
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    glu_convolution_layout,
    packed_attention_layout,
)
from dmao_kernels.layout import ComponentLayout
from dmao_kernels.structure import foreign  # noqa: F401 - it registers
from dmao_kernels.structure.adamw import ScoringAdamW
from dmao_kernels.structure.copies import Pairs, copy_cosines, follow_copies
from dmao_kernels.structure.costs import CostModel, Costs, MacCost, ParameterCost, register_macs
from dmao_kernels.structure.discovery import Discovery, discover
from dmao_kernels.structure.edit import EditReport, apply_plan, apply_slot_plan
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.gates import ComponentGates
from dmao_kernels.structure.gather import SPLITS, Split
from dmao_kernels.structure.latency import LatencyCost
from dmao_kernels.structure.plan import Caps, Group, ModulePlan, Plan, given_plan
from dmao_kernels.structure.register import Family, find_family, register_family
from dmao_kernels.structure.scores import Metric, Scope, Scores
from dmao_kernels.structure.selection import SELECTIONS, Selection, budget_range, make_plan
from dmao_kernels.structure.slots.plan import SlotPlan, make_slot_plan
from dmao_kernels.structure.slots.storage import Storage
from dmao_kernels.structure.targets import register_weight_copy

__all__ = [
    "SELECTIONS",
    "SPLITS",
    "Caps",
    "ComponentGates",
    "ComponentLayout",
    "CostModel",
    "Costs",
    "Discovery",
    "EditReport",
    "Elastic",
    "ElasticModule",
    "Family",
    "Group",
    "LatencyCost",
    "MacCost",
    "Metric",
    "ModulePlan",
    "Pairs",
    "ParameterCost",
    "Plan",
    "Scope",
    "Scores",
    "ScoringAdamW",
    "Selection",
    "SlotPlan",
    "Split",
    "Storage",
    "apply_plan",
    "apply_slot_plan",
    "attention_layout",
    "budget_range",
    "cgmlp_layout",
    "copy_cosines",
    "discover",
    "feedforward_layout",
    "find_family",
    "follow_copies",
    "given_plan",
    "glu_convolution_layout",
    "make_plan",
    "make_slot_plan",
    "packed_attention_layout",
    "register_family",
    "register_macs",
    "register_weight_copy",
]
