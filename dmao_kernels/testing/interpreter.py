"""A guard for Triton's interpreter: bfloat16 that is right, and an error for what a GPU would do silently wrong.

The interpreter (TRITON_INTERPRET=1) runs kernels on the CPU, one program after the other, in NumPy. As it comes, it
computes with the bits of bfloat16 as if they were integers, rounds to bfloat16 wrongly, reads and writes anywhere in
the process, cannot see a race and ignores assertions. `install()` mends that:

- bfloat16 arithmetic happens in float32 and is rounded to the nearest, ties to even; float32 operands of a dot with the
  precision "tf32", Triton's default, are rounded to it;
- a load or store must hit a tensor that the kernel got, aligned: else `KernelMemoryError`. Tensors behind a table of
  addresses (an int64 argument) count as well;
- no program reads or writes what another one writes, no store hits an address twice, nothing is added up by float
  atomics, whose order changes the bits: else `KernelRaceError`;
- sums in half precision are refused: the GPU would round every step;
- `tl.device_assert` and `tl.assume` raise AssertionError;
- programs run in a random order if INTERP_SEED is set to something other than 0.

What it cannot see: layouts, asynchronous copies, synchronisation inside of a program, the rounding of tensor cores,
what a wrong promise (`tl.multiple_of`) would do, and how fast anything is.

TRITON_INTERPRET=1 has to be set before Triton is imported, and holds for the whole process.
"""

from __future__ import annotations

import bisect
import dataclasses
import gc
import os
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

Array = np.ndarray[Any, Any]
Program = tuple[int, int, int]

_NOBODY, _SEVERAL = 0, -1  # instead of the number of one program


class KernelMemoryError(RuntimeError):
    """A program reads or writes outside of the tensors that the kernel got, or across elements."""


class KernelRaceError(RuntimeError):
    """The result depends on the order of programs, or of the lanes of one store."""


class _Region:
    """The memory of one tensor's storage, and which program wrote and read what stands there."""

    def __init__(self, start: int, size: int) -> None:
        self.start, self.end = start, start + size
        # By byte, at the address of the element: programs are numbered from 1.
        self.writer = np.zeros(size, np.int32)
        self.reader = np.zeros(size, np.int32)
        self.atomic = np.zeros(size, bool)


class _Memory:
    """All that a kernel may touch in one launch."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}
        self._tables: list[torch.Tensor] = []
        self.program = _NOBODY
        self.grid_index: Program = (0, 0, 0)

    def open(self, tensors: list[torch.Tensor]) -> None:
        """Begins a launch with these arguments."""
        self._regions = {}
        self._tables = [tensor for tensor in tensors if tensor.dtype == torch.int64]
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() > 0 and storage.data_ptr() not in self._regions:
            self._regions[storage.data_ptr()] = _Region(storage.data_ptr(), storage.nbytes())

    def _open_tables(self) -> None:
        """Adds the tensors whose addresses stand in arguments."""
        addresses = sorted({address for table in self._tables for address in table.flatten().tolist()})
        self._tables = []
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        for tensor in tensors:
            if tensor.layout == torch.strided and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                first = bisect.bisect_left(addresses, storage.data_ptr())
                if first < len(addresses) and addresses[first] < storage.data_ptr() + storage.nbytes():
                    self._add(tensor)

    def load(self, pointers: Array, mask: Array, size: int) -> None:
        for region, offsets in self._hit("load", pointers, mask, size):
            self._no_other(region.writer[offsets], "reads what program {} writes")
            seen = region.reader[offsets]
            alone = (seen == _NOBODY) | (seen == self.program)
            region.reader[offsets] = np.where(alone, self.program, _SEVERAL)

    def store(self, pointers: Array, mask: Array, size: int) -> None:
        for region, offsets in self._hit("store", pointers, mask, size):
            if np.unique(offsets).size != offsets.size:
                raise KernelRaceError(f"program {self.grid_index}: one store hits an address twice")
            self._no_other(region.writer[offsets], "writes what program {} writes")
            self._no_other(region.reader[offsets], "writes what program {} reads")
            if region.atomic[offsets].any():
                raise KernelRaceError(f"program {self.grid_index}: a store to an address of atomics")
            region.writer[offsets] = self.program

    def atomic(self, pointers: Array, mask: Array, size: int) -> None:
        for region, offsets in self._hit("atomic", pointers, mask, size):
            self._no_other(region.writer[offsets], "atomically updates what program {} writes")
            region.atomic[offsets] = True

    def _no_other(self, seen: Array, what: str) -> None:
        others = seen[(seen != _NOBODY) & (seen != self.program)]
        if others.size:
            other = "several" if others[0] == _SEVERAL else f"number {others[0]}"
            raise KernelRaceError(f"program {self.grid_index} (number {self.program}) {what.format(other)}")

    def _hit(self, what: str, pointers: Array, mask: Array, size: int) -> Iterator[tuple[_Region, Array]]:
        """The regions that the lanes hit, with the offsets there."""
        addresses = np.asarray(pointers)[np.broadcast_to(mask, np.shape(pointers)).astype(bool)].astype(np.int64)
        if (addresses % size).any():
            raise KernelMemoryError(f"program {self.grid_index}: a {what} of {size} bytes is not aligned to them")
        missed = np.ones(addresses.shape, bool)
        for region in self._regions.values():
            inside = (addresses >= region.start) & (addresses + size <= region.end)
            if inside.any():
                missed &= ~inside
                yield region, addresses[inside] - region.start
        if not missed.any():
            return
        if self._tables:
            self._open_tables()
            yield from self._hit(what, addresses[missed], np.array(True), size)
            return
        nearest = min(self._regions.values(), key=lambda region: abs(region.start - addresses[missed][0]), default=None)
        place = f", the first {addresses[missed][0] - nearest.start} bytes after a start" if nearest else ""
        raise KernelMemoryError(
            f"program {self.grid_index}: {int(missed.sum())} lane(s) of a {what} are outside of every argument{place}"
        )


def bfloat16_to_float32(bits: Array) -> Array:
    """The values of bfloat16 numbers that are given by their bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: Array) -> Array:
    """The bits (uint16) of the nearest bfloat16 numbers, ties to even."""
    values = np.ascontiguousarray(values, np.float32).reshape(np.shape(values))
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _widened(value: Any) -> Any:
    return TensorHandle(bfloat16_to_float32(value.data), tl.float32) if _is_bfloat16(value) else value


def _narrowed(value: TensorHandle) -> TensorHandle:
    return TensorHandle(float32_to_bfloat16(value.data), tl.bfloat16)


class _GuardedBuilder(InterpreterBuilder):
    """What runs the operations of a program."""

    def __init__(self, memory: _Memory, seed: int) -> None:
        super().__init__()
        # Overflow of integers is left to wrap around, as on the GPU: random numbers need it.
        self.options: Any = dataclasses.replace(self.options, debug=True, sanitize_overflow=False)
        self._memory = memory
        self._seed = seed
        self._order: list[Program] = []

    def set_grid_dim(self, *sizes: int) -> None:
        super().set_grid_dim(*sizes)
        self._order = [(int(x), int(y), int(z)) for x, y, z in np.ndindex(*sizes)]
        if self._seed:
            random.Random(self._seed).shuffle(self._order)
        self._memory.program = 0

    def set_grid_idx(self, *_: int) -> None:
        """Called for each program in turn; which one it is, the shuffled order says."""
        self._memory.grid_index = self._order[self._memory.program]
        self._memory.program += 1
        super().set_grid_idx(*self._memory.grid_index)

    def create_splat(self, ret_ty: Any, arg: Any) -> Any:
        """Comparisons keep the dtype of what they compare beside their bools, and splats of scalars believed it."""
        return TensorHandle(np.full(ret_ty.shape, arg.data, arg.data.dtype), arg.dtype.scalar)

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *policy: Any) -> Any:
        self._memory.load(ptrs.data, mask.data, _bytes_of(ptrs))
        return super().create_masked_load(ptrs, mask, other, *policy)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *policy: Any) -> Any:
        self._memory.store(ptrs.data, mask.data, _bytes_of(ptrs))
        return super().create_masked_store(ptrs, value, mask, *policy)

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        if self.ir_rmw_op_to_interpreter_rmw_op[op].name == "FADD":
            raise KernelRaceError("atomic addition of floats: its bits depend on the order of programs")
        self._memory.atomic(ptr.data, mask.data, _bytes_of(ptr))
        return super().create_atomic_rmw(op, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr: Any, *rest: Any) -> Any:
        self._memory.atomic(ptr.data, np.array(True), _bytes_of(ptr))
        return super().create_atomic_cas(ptr, *rest)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if _is_bfloat16(src) else _narrowed(src)
        return super().cast_impl(_widened(src), dst_type)

    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if tl.bfloat16 in (dst_type.scalar, src.dtype.scalar) and getattr(rounding_mode, "name", "") != "RTZ":
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.float32 and input_precision.name == "TF32":
            a, b = (TensorHandle(interpreter._round_f32_to_tf32(x.data), tl.float32) for x in (a, b))
        return super().create_dot(_widened(a), _widened(b), d, input_precision, *rest)


def _bytes_of(pointers: TensorHandle) -> int:
    return int(interpreter._get_np_dtype(pointers.get_element_ty()).itemsize)


def _in_float32(operation: Callable[..., Any], gives_bool: bool) -> Callable[..., Any]:
    def compute(self: _GuardedBuilder, *operands: Any) -> Any:
        if not any(map(_is_bfloat16, operands)):
            return operation(self, *operands)
        result = operation(self, *map(_widened, operands))
        return result if gives_bool else _narrowed(result)

    return compute


_ARITHMETIC = (
    *("fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fma", "clampf", "precise_divf", "approx_divf"),
    *("minimumf", "maximumf", "minnumf", "maxnumf"),
    *("exp", "exp2", "log", "log2", "sqrt", "precise_sqrt", "rsqrt", "sin", "cos", "erf", "floor", "ceil"),
)
_COMPARISONS = ("OLT", "OGT", "OLE", "OGE", "OEQ", "ONE", "ULT", "UGT", "ULE", "UGE", "UEQ", "UNE")
for _names, _gives_bool in ((_ARITHMETIC, False), (tuple(f"fcmp{name}" for name in _COMPARISONS), True)):
    for _name in _names:
        _operation = getattr(InterpreterBuilder, f"create_{_name}")
        setattr(_GuardedBuilder, f"create_{_name}", _in_float32(_operation, _gives_bool))


def _no_half_sums(operation: Any) -> None:
    """Makes the sums of ReduceOps or ScanOps refuse half precision; maxima and minima are exact in it."""
    run = operation.apply_impl
    exact = (tl.standard._elementwise_max, tl.standard._elementwise_min)

    def apply_impl(self: Any, operands: Any) -> Any:
        if self.combine_fn not in exact and any(x.dtype in (tl.float16, tl.bfloat16) for x in operands):
            raise TypeError("sum or scan in half precision: convert to float32 first, the GPU rounds every step")
        return run(self, operands)

    operation.apply_impl = apply_impl


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in(item)
    elif hasattr(value, "base"):  # a descriptor, or triton.reinterpret of a tensor
        yield from _tensors_in(value.base)


def installed() -> bool:
    """Whether kernels run under the guard."""
    return isinstance(interpreter.interpreter_builder, _GuardedBuilder)


def install() -> None:
    """Puts all kernels of this process under the guard; INTERP_SEED shuffles their programs.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 is not set, so that kernels would be compiled.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("the guard of Triton's interpreter needs TRITON_INTERPRET=1, before Triton is imported")
    if installed():
        return
    memory = _Memory()
    builder = _GuardedBuilder(memory, int(os.environ.get("INTERP_SEED") or 0))
    interpreter.interpreter_builder = builder
    interpreter.interpreter_semantic = interpreter.TritonSemantic(builder)
    interpreter.GridExecutor = _guarded(interpreter.GridExecutor, memory)
    _no_half_sums(interpreter.ReduceOps)
    _no_half_sums(interpreter.ScanOps)
    _patch_the_language_once()


def _guarded(executor: Any, memory: _Memory) -> Any:
    class GuardedExecutor(executor):
        """Runs all programs of a launch."""

        def __call__(self, *arguments: Any, **options: Any) -> None:
            memory.open(list(_tensors_in((arguments, list(options.values())))))
            try:
                super().__call__(*arguments, **options)
            except InterpreterError as error:
                cause: BaseException = error
                while cause.__cause__ is not None:
                    cause = cause.__cause__
                raise cause from None

    return GuardedExecutor


def _patch_the_language_once() -> None:
    """Lets tl.* run in the interpreter from now on, where it else would be switched by every launch and call."""
    for_both = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core})
    interpreter._patch_lang(for_both)
    interpreter._patch_lang = lambda _: interpreter._LangPatchScope()
