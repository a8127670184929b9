"""The operations, one folder each: api (contract), reference, fake, autograd."""

from .importance.api import importance_

__all__ = ["importance_"]
