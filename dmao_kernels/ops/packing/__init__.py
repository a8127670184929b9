"""pack, unpack: utterances one behind the other instead of padded to a common length, and back."""

from dmao_kernels.ops.packing.api import pack, unpack

# isort: split
from dmao_kernels.ops.packing import autograd  # noqa: F401 - it registers on the schemas of api

__all__ = ["pack", "unpack"]
