"""gather_components in Triton: all tensors in one launch, through tables of their addresses.

Floor: one read and one write of the new tensors at memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.pieces import (
    COLUMNS,
    ROWS,
    Cut,
    Pieces,
    address,
    options_on,
    owner_of_piece,
    place_of_piece,
    tile_of_piece,
)
from dmao_kernels.ops._triton.scored import DTYPES
from dmao_kernels.ops._triton.tables import Addresses, upload
from dmao_kernels.ops.gather_components.reference import check_rows

_TABLE = tl.constexpr(4)
_SIZES = tl.constexpr(5)
_NO_SUMS = -1


def gather_components(tensors: Sequence[Tensor], index: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The contract of `gather_components`."""
    checked = set()  # tensors of one module share an index
    for i, (x, rows, values) in enumerate(zip(tensors, index, given, strict=True)):
        if (key := (id(rows), x.shape[1], values.shape[1])) not in checked:
            check_rows(i, x, rows, values)
            checked.add(key)
    made = [x.new_empty(x.shape[0], len(rows), x.shape[2]) for x, rows in zip(tensors, index, strict=True)]
    rows, firsts = _joined(index)
    rows = upload(rows, tensors[0].device)
    of: dict[torch.dtype, list[int]] = {}
    for i, new in enumerate(made):
        if new.numel():
            of.setdefault(new.dtype, []).append(i)
    for dtype, chosen in of.items():
        _gather([(tensors[i], given[i], made[i]) for i in chosen], rows, [firsts[i] for i in chosen], dtype)
    return made


def _joined(index: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """All indices in one tensor, those that are the same one once, and the first row of each."""
    distinct = {id(rows): rows for rows in index}
    firsts, count = {}, 0
    for key, rows in distinct.items():
        firsts[key] = count
        count += len(rows)
    return torch.cat(list(distinct.values())), [firsts[id(rows)] for rows in index]


def _gather(
    entries: Sequence[tuple[Tensor, Tensor, Tensor]], rows: Tensor, firsts: Sequence[int], dtype: torch.dtype
) -> None:
    """Fills the new tensors, the last of each entry, from old and given ones of the same dtype."""
    device = rows.device
    cuts = [Cut.of(*new.shape) for _, _, new in entries]
    even = [cut.even for cut in cuts]
    pieces = Pieces(cuts, [_NO_SUMS] * len(cuts), device)
    sizes = [
        (new.shape[1], new.shape[2], x.shape[1], values.shape[1], first)
        for (x, values, new), first in zip(entries, firsts, strict=True)
    ]
    gather_kernel[(pieces.count,)](
        pieces.owners,
        pieces.shapes,
        Addresses(even, device).table(
            *([tensor.data_ptr() for tensor in column] for column in zip(*entries, strict=True))
        ),
        upload(torch.tensor(sizes, device="cpu"), device),
        rows,
        DTYPES[dtype],
        **options_on(device),
    )


@kernel()
def gather_kernel(owners, shapes, table, sizes, index, DTYPE: tl.constexpr):
    """One piece of one new tensor.

    Its entry (repeat, component, e) is made from the old (repeat, source, e) and the given (repeat, value, e), where
    (source, value) is the component's row of the index; or from one of them, whose bits are kept then.
    """
    owner = owner_of_piece(owners)
    if tl.load(table + owner * _TABLE + 3) != 0:
        _fill(shapes, owner, table, sizes, index, DTYPE, True)
    else:
        _fill(shapes, owner, table, sizes, index, DTYPE, False)


@triton.jit
def _fill(shapes, owner, table, sizes, index, DTYPE: tl.constexpr, EVEN: tl.constexpr):
    block, first, rest, rows, stride, columns, _, folded = place_of_piece(shapes, owner)
    size = sizes + owner * _SIZES
    components, run, old, given = tl.load(size), tl.load(size + 1), tl.load(size + 2), tl.load(size + 3)
    index += tl.load(size + 4) * 2
    x = address(table, owner * _TABLE, DTYPE, EVEN)
    values = address(table, owner * _TABLE + 1, DTYPE, EVEN)
    new = address(table, owner * _TABLE + 2, DTYPE, EVEN)
    if folded:
        repeat, component = block // components, block % components
        source, value = tl.load(index + component * 2), tl.load(index + component * 2 + 1)
        x += _multiple((repeat * old + source - block) * run, EVEN)
        values += _multiple((repeat * given + value - block) * run, EVEN)
        for row in range(0, rows, ROWS):
            at, there = tile_of_piece(first, rest, stride, columns, row, EVEN)
            _fill_run(x, values, new, source, value, at, there)
    else:
        begin, column = first // (components * run), first % (components * run)
        for row in range(0, rows, ROWS):
            at, there = tile_of_piece(first, rest, stride, columns, row, EVEN)
            _fill_columns(x, values, new, index, components, run, old, given, begin + row, column, at, there)


@triton.jit
def _fill_run(x, values, new, source, value, at, there):
    """Entries of one component of one repeat; all three tensors begin where these entries would be at `at`."""
    entries = tl.zeros([ROWS, COLUMNS], x.dtype.element_ty)
    if source >= 0:
        entries = tl.load(x + at, mask=there)
    if value >= 0:
        taken = tl.load(values + at, mask=there)
        entries = tl.where(source >= 0, _rest(entries, taken), taken)
    tl.store(new + at, entries, mask=there)


@triton.jit
def _fill_columns(x, values, new, index, components, run, old, given, repeat, column, at, there):
    """Entries of many components, from a repeat and a column of [repeats, components * run] on."""
    columns = column + tl.arange(0, COLUMNS)
    component = columns // run
    inside = component < components
    source = tl.load(index + component * 2, mask=inside, other=-1)[None, :]
    value = tl.load(index + component * 2 + 1, mask=inside, other=-1)[None, :]
    entry = (columns - component * run)[None, :]
    repeats = (repeat + tl.arange(0, ROWS))[:, None]
    entries = tl.load(x + (repeats * old + source) * run + entry, mask=there & (source >= 0), other=0.0)
    taken = tl.load(values + (repeats * given + value) * run + entry, mask=there & (value >= 0), other=0.0)
    entries = tl.where(value < 0, entries, tl.where(source < 0, taken, _rest(entries, taken)))
    tl.store(new + at, entries, mask=there)


@triton.jit
def _multiple(offset, EVEN: tl.constexpr):
    return tl.multiple_of(offset, 8) if EVEN else offset


@triton.jit
def _rest(whole, part):
    """What remains, rounded once."""
    return (whole.to(tl.float32) - part.to(tl.float32)).to(whole.dtype)
