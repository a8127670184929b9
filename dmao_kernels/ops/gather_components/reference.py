"""gather_components in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


# An operator of its own, because torch.compile cannot look into it: it reads the values of the index.
@torch.library.custom_op("dmao::gather_components_reference", mutates_args=())
def gather_components_reference(
    tensors: Sequence[Tensor], index: Sequence[Tensor], given: Sequence[Tensor]
) -> list[Tensor]:
    """The contract of `gather_components`."""
    return [_gather(i, *each) for i, each in enumerate(zip(tensors, index, given, strict=True))]


def check_rows(i: int, x: Tensor, rows: Tensor, given: Tensor) -> None:
    """Raises RuntimeError where a row of an index names a component that is not there."""
    for j, (source, value) in enumerate(rows.tolist()):
        if not (-1 <= source < x.shape[1] and -1 <= value < given.shape[1]):
            raise RuntimeError(
                f"gather_components: index[{i}][{j}] is ({source}, {value}), but there are {x.shape[1]} components and "
                f"{given.shape[1]} given ones"
            )


def _gather(i: int, x: Tensor, rows: Tensor, given: Tensor) -> Tensor:
    check_rows(i, x, rows, given)
    sources, values = rows.to(x.device).unbind(1)
    gathered = x.new_zeros(x.shape[0], len(rows), x.shape[2])
    old, new = (sources >= 0).nonzero().flatten(), (values >= 0).nonzero().flatten()
    gathered[:, old] = x[:, sources[old]]
    gathered[:, new] = given[:, values[new]]
    rest = ((sources >= 0) & (values >= 0)).nonzero().flatten()
    if len(rest):
        exact = torch.promote_types(x.dtype, torch.float32)
        gathered[:, rest] = (x[:, sources[rest]].to(exact) - given[:, values[rest]].to(exact)).to(x.dtype)
    return gathered
