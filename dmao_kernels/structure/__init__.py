"""Grow and drop: layouts of known modules, scores, plans, edits.

>>> elastic = Elastic(model)  # which modules, how many components
>>> scores = Scores(elastic)  # after every backward: scores.update()
>>> plan = make_plan(elastic.groups(scores.values()), fraction=0.15)  # at an event
>>> report = apply_plan(plan, elastic, optimizer)
>>> scores.follow(plan)
"""

from dmao_kernels.layout import ComponentLayout
from dmao_kernels.structure import foreign  # noqa: F401 - it registers
from dmao_kernels.structure.adamw import ScoringAdamW
from dmao_kernels.structure.copies import Pairs, copy_cosines, follow_copies
from dmao_kernels.structure.discovery import Discovery, discover
from dmao_kernels.structure.edit import EditReport, apply_plan
from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.families import (
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    glu_convolution_layout,
    packed_attention_layout,
)
from dmao_kernels.structure.gates import ComponentGates
from dmao_kernels.structure.gather import SPLITS, Split
from dmao_kernels.structure.plan import Group, ModulePlan, Plan, given_plan
from dmao_kernels.structure.register import Family, find_family, register_family
from dmao_kernels.structure.scores import Metric, Scope, Scores
from dmao_kernels.structure.selection import SELECTIONS, Selection, make_plan

__all__ = [
    "SELECTIONS",
    "SPLITS",
    "ComponentGates",
    "ComponentLayout",
    "Discovery",
    "EditReport",
    "Elastic",
    "ElasticModule",
    "Family",
    "Group",
    "Metric",
    "ModulePlan",
    "Pairs",
    "Plan",
    "Scope",
    "Scores",
    "ScoringAdamW",
    "Selection",
    "Split",
    "apply_plan",
    "attention_layout",
    "cgmlp_layout",
    "copy_cosines",
    "discover",
    "feedforward_layout",
    "find_family",
    "follow_copies",
    "given_plan",
    "glu_convolution_layout",
    "make_plan",
    "packed_attention_layout",
    "register_family",
]
