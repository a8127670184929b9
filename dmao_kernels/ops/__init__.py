"""The operations, one folder each: api (contract), reference, fake, autograd."""

from .component_ffn import component_ffn
from .importance.api import importance_

__all__ = ["component_ffn", "importance_"]
