"""gather_components: the edit of all parameters and all optimizer state in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmao_kernels._library import define, operators, register_fake
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import CPU_DTYPES, DTYPES, describe, wants_gradient
from dmao_kernels.ops.gather_components.reference import gather_components_reference

_OP = "gather_components"

define("gather_components(Tensor[] tensors, Tensor[] index, Tensor[] given) -> Tensor[]", triton=__package__, cuda=True)
register(_OP, cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES)


@register_fake("gather_components")
@gather_components_reference.register_fake
def _fake(tensors: Sequence[Tensor], index: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape[0], rows.shape[0], x.shape[2]) for x, rows in zip(tensors, index, strict=True)]


def gather_components(
    tensors: Sequence[Tensor], index: Sequence[Tensor], given: Sequence[Tensor | None] | None = None
) -> list[Tensor]:
    """New tensors whose components are old ones, given ones, or what remains of an old one; one pass for each device.

    A tensor is seen as x [repeats, components, run] (`layout.Pattern.view`). Row j of its index, (s, g), says what the
    new component j is:

        (s, -1)    x[:, s]
        (-1, g)    given[:, g]
        (s, g)     x[:, s] - given[:, g], in float32 (float64 for float64) and rounded once
        (-1, -1)   zero

    So a component whose output weights w two copies share becomes a part p of w, which is given, and w - p. Bits of
    what is not subtracted are kept. Tensors of one module can share one index. The result does not depend on the
    number of threads.

    Floor on time: one read and one write of the new tensors at memory bandwidth, and the page faults of new memory.

    Args:
        tensors: [repeats, components, run] of any floating point dtype; there are kernels for float32, bfloat16 and, on
            GPUs, float16. Copied first where not contiguous.
        index: one per tensor, int64 [new components, 2] on the CPU.
        given: one per tensor, [repeats, given components, run] of its dtype and device, or None where nothing is given.

    Returns: tensors [repeats, new components, run], contiguous, in new memory.

    Raises:
        ValueError: the number of arguments, or a dtype, shape or device is not as above.
        RuntimeError: called where autograd records and a tensor requires grad (call it under torch.no_grad()), or a
            row of an index names a component that is not there.
    """
    for name, found in (("index", index), ("given", tensors if given is None else given)):
        if len(found) != len(tensors):
            raise ValueError(f"{_OP}: got {len(tensors)} tensors but {len(found)} {name}")
    if not tensors:
        return []
    optional = [None] * len(tensors) if given is None else given
    values = [_check(i, *each) for i, each in enumerate(zip(tensors, index, optional, strict=True))]
    if wants_gradient(*tensors, *values):
        raise RuntimeError(f"{_OP}: an edit is not differentiable; call it under torch.no_grad()")
    devices = list(dict.fromkeys([x.device for x in tensors]))
    if len(devices) == 1:
        return _gather(tensors, index, values)
    made: dict[int, Tensor] = {}
    for device in devices:
        own = [i for i, x in enumerate(tensors) if x.device == device]
        made |= zip(own, _gather(*([group[i] for i in own] for group in (tensors, index, values))), strict=True)
    return [made[i] for i in range(len(tensors))]


def _gather(tensors: Sequence[Tensor], index: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Of tensors on one device."""
    backend = choose_backend(_OP, *tensors)
    gather = gather_components_reference if backend == "reference" else operators(backend).gather_components
    return gather(*([tensor.contiguous() for tensor in group] for group in (tensors, index, values)))


def _check(i: int, x: Tensor, rows: Tensor, given: Tensor | None) -> Tensor:
    """Checks what belongs to one tensor, and returns its given components: none where they are None."""
    if x.dim() != 3 or not x.dtype.is_floating_point:
        raise ValueError(f"{_OP}: tensors[{i}] must be floating point [repeats, components, run], got {describe(x)}")
    if rows.dtype != torch.int64 or rows.dim() != 2 or rows.shape[1] != 2 or not rows.is_cpu:
        raise ValueError(
            f"{_OP}: index[{i}] must be int64 [new components, 2] on the CPU, got {describe(rows)} on {rows.device}"
        )
    if given is None:
        return x[:, :0]
    fits = given.dim() == 3 and given.shape[::2] == x.shape[::2]
    if given.dtype != x.dtype or given.device != x.device or not fits:
        raise ValueError(
            f"{_OP}: given[{i}] must have the dtype, device, repeats and run of tensors[{i}], {describe(x)} on "
            f"{x.device}, got {describe(given)} on {given.device}"
        )
    return given
