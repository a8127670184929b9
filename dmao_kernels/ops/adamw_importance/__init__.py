"""adamw_importance_: AdamW and the running scores of all components in one pass."""

from dmao_kernels.ops.adamw_importance.api import adamw_importance_

__all__ = ["adamw_importance_"]
