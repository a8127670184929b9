"""gather_components: old, given and remaining components, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import dmao_kernels
from dmao_kernels import gather_components
from dmao_kernels.ops.gather_components import api
from dmao_kernels.testing import Poison
from tests.ops.common import BACKENDS, DTYPES, assert_threads_do_not_change_a_bit, native

# (repeats, components, given, run): both sides of a vector and of a chunk (65536 elements).
SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 2, 7),
    (2, 4, 3, 8),
    (2, 4, 1, 17),
    (300, 3, 2, 33),
    (1, 3, 2, 65537),
    (70000, 2, 1, 1),
    (0, 3, 2, 5),
    (3, 2, 2, 0),
]


def problem(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, rows: int = 9) -> list[Any]:
    """A tensor, an index with every kind of row, and given components."""
    repeats, components, given, run = shape
    index = torch.stack([torch.randint(-1, n, (rows,)) for n in (components, given)], 1)
    index[:4] = torch.tensor([[-1, -1], [0, -1], [-1, given - 1], [components - 1, 0]])
    return [torch.randn(repeats, components, run).to(dtype), index, torch.randn(repeats, given, run).to(dtype)]


def by_hand(x: Tensor, index: Tensor, given: Tensor) -> Tensor:
    """Component by component; the difference in float64, whose rounding to the dtype is the only one."""
    made = []
    for source, value in index.tolist():
        old = x[:, source] if source >= 0 else None
        new = given[:, value] if value >= 0 else None
        if old is not None and new is not None:
            made.append((old.double() - new.double()).to(x.dtype))
        else:
            made.append(old if old is not None else new if new is not None else torch.zeros_like(x[:, 0]))
    return torch.stack(made, 1)


def run(backend: str, *problems: list[Any]) -> list[Tensor]:
    with dmao_kernels.use_backend(backend):
        return gather_components(*map(list, zip(*problems, strict=True)))


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_by_hand(shape: tuple[int, int, int, int], dtype: torch.dtype, backend: str) -> None:
    given = problem(shape, dtype)
    (found,) = run(backend, given)
    assert found.is_contiguous()
    assert same_bits(found, by_hand(*given))


_RUN = """
from tests.ops.common import DTYPES
from tests.ops.test_gather_components import SHAPES, test_by_hand

for shape in SHAPES:
    for dtype in DTYPES:
        test_by_hand(shape, dtype, "cpu")
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    run_on_capability(_RUN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_tensors_of_both_dtypes(backend: str) -> None:
    problems = [problem((3, 5, 2, 7)), problem((2, 2, 1, 40), torch.bfloat16), problem((1, 1, 1, 1))]
    for found, given in zip(run(backend, *problems), problems, strict=True):
        assert same_bits(found, by_hand(*given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x, index, given = problem((3, 5, 2, 7))
    x, given = x.to(dtype), given.to(dtype)
    (found,) = gather_components([x], [index], [given])
    assert torch.equal(found, by_hand(x, index, given))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_kept(dtype: torch.dtype, backend: str) -> None:
    """NaN with its payload, infinities, minus zero, subnormals."""
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    top = 16 if dtype == torch.float32 else 0
    bits = torch.tensor([0x7FC1, 0x7F81, -0x40, 0x7F80, -0x80, -0x8000, 1]) * 2**top
    x = bits.to(integers).view(dtype).reshape(1, 7, 1)
    index = torch.tensor([[i, -1] for i in range(7)] + [[-1, i] for i in range(7)])
    (found,) = run(backend, [x, index, x])
    assert same_bits(found, torch.cat([x, x], 1))


def test_every_device_has_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel reads addresses of one device."""
    passes = []
    monkeypatch.setattr(api, "choose_backend", lambda op, *x: passes.append({t.device.type for t in x}) or "reference")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # autograd asks for the real device
        tensors = [torch.zeros(2, 3, 4, device=device) for device in ("cpu", "cuda", "cpu")]
        monkeypatch.setattr(api, "gather_components_reference", lambda tensors, *_: list(tensors))
        made = gather_components(tensors, [INDEX] * 3, tensors)
    assert passes == [{"cpu"}, {"cuda"}]
    assert [x.device.type for x in made] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing(backend: str) -> None:
    assert run(backend, [torch.randn(2, 3, 4), torch.empty(0, 2, dtype=torch.int64), None])[0].shape == (2, 0, 4)
    empty = run(backend, [torch.randn(2, 0, 4), torch.tensor([[-1, -1]]), None])[0]
    assert torch.equal(empty, torch.zeros(2, 1, 4))
    with dmao_kernels.use_backend(backend):
        assert gather_components([], [], []) == []
        x = torch.randn(2, 3, 4)
        assert torch.equal(gather_components([x], [torch.tensor([[2, -1], [2, -1]])])[0], x[:, [2, 2]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided(backend: str) -> None:
    x, index, given = problem((4, 5, 2, 6))
    strided = [t.transpose(0, 2).contiguous().transpose(0, 2) for t in (x, given)]
    assert not strided[0].is_contiguous()
    assert torch.equal(run(backend, [strided[0], index, strided[1]])[0], by_hand(x, index, given))


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_stays_inside_its_tensors(dtype: torch.dtype) -> None:
    x, index, given = problem((3, 5, 2, 7), dtype)
    poison = Poison()
    (found,) = run("cpu", [poison.around(x), index, poison.around(given)])
    poison.check()
    assert same_bits(found, by_hand(x, index, given))


@native
def test_bits_do_not_depend_on_threads() -> None:
    problems = [problem((2, 4, 2, 40000)), problem((3, 2, 1, 5)), problem((700, 5, 2, 60))]
    assert_threads_do_not_change_a_bit(lambda: run("cpu", *problems))
    assert all(same_bits(found, by_hand(*given)) for found, given in zip(run("cpu", *problems), problems, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_full(backend: str) -> None:
    given = problem((3, 5, 2, 7))

    def call(*arguments: Tensor) -> Tensor:
        return gather_components(*([argument] for argument in arguments))[0] + 1

    with dmao_kernels.use_backend(backend):
        found = torch.compile(call, fullgraph=True, backend="aot_eager")(*given)
    assert torch.equal(found, by_hand(*given) + 1)


@native
def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.dmao.gather_components.default, [[each] for each in problem((3, 5, 2, 7))])


X, INDEX = torch.zeros(2, 3, 4), torch.tensor([[0, -1]])
REFUSED = [
    (([X], [], [None]), r"got 1 tensors but 0 index"),
    (([X], [INDEX], []), r"got 1 tensors but 0 given"),
    (
        ([X[0]], [INDEX], [None]),
        r"tensors\[0\] must be floating point \[repeats, .*, got float32 \[3, 4\]",
    ),
    (([X.int()], [INDEX], [None]), r"tensors\[0\] must be floating point .*, got int32 \[2, 3, 4\]"),
    (([X], [INDEX.int()], [None]), r"index\[0\] must be int64 \[new components, 2\] on the CPU, got int32 \[1, 2\]"),
    (([X], [INDEX[0]], [None]), r"index\[0\] must be int64 \[new components, 2\] on the CPU, got int64 \[2\]"),
    (
        ([X], [INDEX], [X.bfloat16()]),
        r"given\[0\] must have the dtype, .* of tensors\[0\], float32 \[2, 3, 4\]",
    ),
    (([X], [INDEX], [X[:, :, :3]]), r"given\[0\] must have .*, got float32 \[2, 3, 3\]"),
    (([X], [INDEX], [X[:0]]), r"given\[0\] must have .*, got float32 \[0, 3, 4\]"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_argument(arguments: tuple[list[Any], ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^gather_components: {message}"):
        gather_components(*arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [(3, -1), (-2, -1), (-1, 2), (0, -2)], ids=str)
def test_a_component_that_is_not_there(row: tuple[int, int], backend: str) -> None:
    message = rf"index\[0\]\[1\] is \({row[0]}, {row[1]}\), but there are 3 components and 2 given ones"
    with pytest.raises(RuntimeError, match=message):
        run(backend, [X, torch.tensor([(0, 0), row]), torch.zeros(2, 2, 4)])


@native
def test_operator_checks_its_own_arguments() -> None:
    """torch.ops can be called without the checks of the public function."""
    for arguments in (([X], [], [X]), ([X[0]], [INDEX], [X]), ([X], [INDEX], [X[:0]]), ([X], [INDEX[0]], [X])):
        with pytest.raises(RuntimeError, match="gather_components: "):
            torch.ops.dmao.gather_components(*arguments)


def test_refuses_to_be_differentiated() -> None:
    with pytest.raises(RuntimeError, match="an edit is not differentiable"):
        gather_components([torch.zeros(2, 3, 4, requires_grad=True)], [INDEX])
