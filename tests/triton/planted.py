"""Kernels with one fault each, and what they need to be without it."""

import triton
import triton.language as tl


@triton.jit
def double(x, y, n, shift, BLOCK: tl.constexpr):
    """y = 2 x; the shift, in elements, moves what is read."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i + shift, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def unmasked_store(y, BLOCK: tl.constexpr):
    tl.store(y + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def all_write_one_place(y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32) + tl.program_id(0))


@triton.jit
def reads_its_neighbour(x, BLOCK: tl.constexpr):
    """x[p] = x[p + 1] by program p: whether before or after the neighbour has written, nobody knows."""
    i, p, n = tl.arange(0, BLOCK), tl.program_id(0), tl.num_programs(0)
    tl.store(x + p * BLOCK + i, tl.load(x + (p + 1) % n * BLOCK + i))


@triton.jit
def two_lanes_write_one_place(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i // 2, tl.load(x + i))


@triton.jit
def adds_up_atomically(x, y, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(y, tl.sum(tl.load(x + i).to(y.dtype.element_ty)))


@triton.jit
def store_beside_atomics(y):
    tl.atomic_add(y, 1)
    if tl.program_id(0) == 1:
        tl.store(y, 0)


@triton.jit
def misaligned(x, y):
    tl.store(y, tl.load((x.to(tl.int64) + 2).to(tl.pointer_type(tl.float32))))


@triton.jit
def asserts(x):
    tl.device_assert(tl.load(x) > 0, "x must be positive")


@triton.jit
def fill(y, value):
    tl.store(y, value)


@triton.jit
def asserts_in_a_function(x):
    asserts(x)


@triton.jit
def sum_as_it_comes(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, BLOCK))))


@triton.jit
def doubles_behind_a_table(addresses, n, BLOCK: tl.constexpr):
    """Program p doubles the n[p] floats at addresses[p]."""
    p, i = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(addresses + p).to(tl.pointer_type(tl.float32))
    mask = i < tl.load(n + p)
    tl.store(x + i, 2 * tl.load(x + i, mask=mask), mask=mask)


@triton.jit
def product(a, b, c, PRECISION: tl.constexpr, N: tl.constexpr):
    """c = a @ b in float32, square matrices."""
    i = tl.arange(0, N)
    square = i[:, None] * N + i[None, :]
    tl.store(c + square, tl.dot(tl.load(a + square), tl.load(b + square), input_precision=PRECISION))


@triton.jit
def arithmetic(x, y, out, N: tl.constexpr):
    """Rows of out: x + y, x - y, x * y, x / y, max, exp(x), x < y, -x, |x|, x rounded from float32, as int, where."""
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, a + b)
    tl.store(out + N + i, a - b)
    tl.store(out + 2 * N + i, a * b)
    tl.store(out + 3 * N + i, (a / b).to(a.dtype))
    tl.store(out + 4 * N + i, tl.maximum(a, b))
    tl.store(out + 5 * N + i, tl.exp(a.to(tl.float32)).to(a.dtype))
    tl.store(out + 6 * N + i, (a < b).to(a.dtype))
    tl.store(out + 7 * N + i, -a)
    tl.store(out + 8 * N + i, tl.abs(a))
    tl.store(out + 9 * N + i, (a.to(tl.float32) * 1.001).to(a.dtype))
    tl.store(out + 10 * N + i, a.to(tl.int32).to(a.dtype))
    tl.store(out + 11 * N + i, tl.where(a < 0, b, 1.5))
    tl.store(out + 12 * N + i, tl.max(a, 0) + tl.zeros((N,), a.dtype))


@triton.jit
def cast(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def order_of_programs(counter, order):
    tl.store(order + tl.atomic_add(counter, 1), tl.program_id(0))
