"""component_ffn: schema, and the parts that hang on it."""

import torch

from ..._library import define
from ...dispatch import register

define(
    "component_ffn(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? live, int components, "
    "float p, Tensor? seed, str activation, bool keep) -> (Tensor y, Tensor pre_activation)"
)
define(
    "component_ffn_backward(Tensor grad_y, Tensor x, Tensor w1, Tensor w2, Tensor? live, "
    "Tensor pre_activation, int components, float p, Tensor? seed, str activation, bool bias1, bool bias2) "
    "-> (Tensor grad_x, Tensor grad_w1, Tensor grad_b1, Tensor grad_w2, Tensor grad_b2)"
)
register("component_ffn", dtypes=(torch.float32, torch.bfloat16))

from . import autograd, fake  # noqa: E402, F401 - they register on the schemas
from .api import component_ffn  # noqa: E402

__all__ = ["component_ffn"]
