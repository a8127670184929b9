"""masked_linear in CUDA C++, on the host: its program, planted faults, and the operator against float64 and the CPU."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, masked_linear
from dmao_kernels.ops.masked_linear import LINEAR_ACTIVATIONS
from dmao_kernels.ops.masked_linear.reference import masked_linear_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.emu.build import BUILDS, Compiler, run, slow_unless_plain
from tests.emu.common import check
from tests.native.probe import ROOT
from tests.triton.common import DTYPES, same_bits
from tests.triton.test_masked_linear import SIZES, make, random_mask

SOURCE = ROOT / "csrc/tests/cuda/masked_linear.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    program = compiler(SOURCE, build)
    for seed in (0, 1):
        status, printed = run(program, seed)
        assert status == 0, printed
        assert re.fullmatch(r"right: [1-9]\d* mma, [1-9]\d* ldmatrix, 0 conflicts\n", printed)


def check_op(inputs: list[Tensor], mask: BlockMask | None = None, activation: str = "none") -> None:
    dead = None if mask is None else ~mask.elements(*inputs[1].shape)

    def poison_dead(tensors: list[Tensor]) -> None:
        if dead is not None:
            tensors[1][dead] = torch.nan

    grads = check(masked_linear, masked_linear_reference, inputs, mask, prepare=poison_dead, activation=activation)
    if dead is not None:
        assert not grads[1][dead].any()


@pytest.mark.usefixtures("emulated")
class TestOperator:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("block", "activation"), [(0, "glu"), (48, "silu"), (16, "glu")])
    def test_training_step(self, block, activation, dtype):
        inputs = make("cpu", 70, 130, 140, dtype)
        check_op(inputs, random_mask(inputs[1], block, static=True) if block else None, activation)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_odd_sizes(self, size, dtype):
        inputs = make("cpu", *size, dtype)
        check_op(inputs)
        check_op(inputs, None, "glu")
        for block in (16, 48, 64):
            check_op(inputs, random_mask(inputs[1], block), "glu")

    @pytest.mark.parametrize("activation", LINEAR_ACTIVATIONS)
    @pytest.mark.parametrize("block", [0, 32])
    def test_activations(self, block, activation):
        inputs = make("cpu", 40, 100, 164, torch.bfloat16)
        with torch.no_grad():
            inputs[0].mul_(4)  # reach the flat parts of the activation too
        check_op(inputs, random_mask(inputs[1], block) if block else None, activation)

    @pytest.mark.parametrize("grid", ["empty", "full", "one", "row", "column"])
    def test_extreme_masks(self, grid):
        inputs = make("cpu", 35, 150, 100, torch.float16)
        live = torch.zeros(4, 5, dtype=torch.bool)
        if grid == "full":
            live[:] = True
        elif grid == "one":
            live[3, 4] = True  # the partial block at the corner
        elif grid == "row":
            live[1] = True
        elif grid == "column":
            live[:, 2] = True
        for static in (False, True):
            check_op(inputs, BlockMask.from_dense(live, 32, static=static), "silu")

    @pytest.mark.slow
    @pytest.mark.parametrize("block", range(16, 129, 16))
    def test_all_blocks(self, block):
        inputs = make("cpu", 40, 3 * block - 5, 2 * block + 3, torch.bfloat16)
        check_op(inputs, random_mask(inputs[1], block))

    def test_sums_over_several_spans_of_tokens(self):
        inputs = make("cpu", 1300, 30, 20, torch.float16)
        check_op(inputs)
        check_op(inputs, random_mask(inputs[1], 16), "relu")

    @pytest.mark.parametrize("block", [0, 32])
    def test_only_the_gradient_that_is_wanted(self, block):
        inputs = make("cpu", 40, 50, 60, torch.bfloat16)
        mask = random_mask(inputs[1], block) if block else None
        _, grads = outputs_and_gradients(masked_linear, *inputs, mask, activation="silu")
        for wanted in range(3):
            some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
            _, found = outputs_and_gradients(masked_linear, *some, mask, activation="silu")
            assert found.keys() == {wanted}
            assert torch.equal(found[wanted], grads[wanted])

    def test_leading_dimensions_and_strides(self):
        inputs = x, w, b = make("cpu", 24, 40, 36, torch.bfloat16)
        mask = random_mask(w, 16)
        y, expected = outputs_and_gradients(masked_linear, *inputs, mask, activation="relu")
        assert torch.equal(masked_linear(x.view(2, 3, 4, 40), w, b, mask, activation="relu").flatten(0, 2), y)
        assert torch.equal(masked_linear(x[0], w, b, mask, activation="relu"), y[0])
        odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in inputs]
        again, grads = outputs_and_gradients(masked_linear, *odd, mask, activation="relu")
        assert torch.equal(again, y)
        assert same_bits(list(grads.values()), list(expected.values()))
        for first, width in ((30, 100), (32, 104)):  # rows that are not aligned, and some that are
            wide = torch.full((24, width), torch.nan, dtype=torch.bfloat16)
            wide[:, first : first + 40] = x.detach()
            assert torch.equal(masked_linear(wide[:, first : first + 40], w, b, mask, activation="relu"), y)

    def test_agrees_with_the_native_kernels(self):
        inputs = make("cpu", 60, 100, 96)
        mask, grad = random_mask(inputs[1], 32), torch.randn(60, 96)
        ours = outputs_and_gradients(masked_linear, *inputs, mask, activation="gelu", grad_output=grad)
        with dmao_kernels.use_backend("cpu"):
            theirs = outputs_and_gradients(masked_linear, *inputs, mask, activation="gelu", grad_output=grad)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=1e-2)
        for key, gradient in theirs[1].items():
            torch.testing.assert_close(ours[1][key], gradient, rtol=1e-2, atol=1e-2)

    def test_lists_out_of_range_read_nothing_out_of_bounds(self):
        """Garbage in, garbage out: but from the layer's own memory (the emulation may not see it all)."""
        x, w, b = make("cpu", 20, 64, 64, torch.bfloat16)

        def numbers(*values: int) -> Tensor:
            return torch.tensor(values, dtype=torch.int32)

        mask = BlockMask(32, 2, 2, numbers(-3, 9, 1), numbers(-1, 7), numbers(1, 0, 99), numbers(1 << 30, 0))
        masked_linear(x, w, b, mask, activation="silu").sum().backward()
