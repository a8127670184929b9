"""Grow and drop: layouts of known modules, scores, plans, edits."""

from dmao_kernels.structure.elastic import Elastic, ElasticModule
from dmao_kernels.structure.families import (
    attention_layout,
    cgmlp_layout,
    feedforward_layout,
    glu_convolution_layout,
    packed_attention_layout,
    register_family,
)
from dmao_kernels.structure.plan import Group, ModulePlan, Plan, given_plan, make_plan

__all__ = [
    "Elastic",
    "ElasticModule",
    "Group",
    "ModulePlan",
    "Plan",
    "attention_layout",
    "cgmlp_layout",
    "feedforward_layout",
    "given_plan",
    "glu_convolution_layout",
    "make_plan",
    "packed_attention_layout",
    "register_family",
]
