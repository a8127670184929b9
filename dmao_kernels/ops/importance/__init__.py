"""importance_: the running scores of all components."""

from dmao_kernels.ops.importance.api import importance_
from dmao_kernels.ops.importance.reference import METRICS

__all__ = ["METRICS", "importance_"]
