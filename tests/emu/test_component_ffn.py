"""component_ffn in CUDA C++, on the host: its program, planted faults, and the operator against float64 and the CPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import component_ffn
from dmao_kernels.ops._philox import keep_mask
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.emu.build import BUILDS, Compiler, run, slow_unless_plain
from tests.emu.common import check
from tests.native.probe import ROOT
from tests.triton.common import DTYPES, same_bits
from tests.triton.test_component_ffn import SIZES, ids, make, seed_on

SOURCE = ROOT / "csrc/tests/cuda/component_ffn.cpp"


@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    program = compiler(SOURCE, build)
    for seed in (0, 1):
        status, printed = run(program, seed)
        assert status == 0, printed
        assert re.fullmatch(r"right: [1-9]\d* mma, [1-9]\d* ldmatrix, 0 conflicts\n", printed)


def check_op(inputs: list[Tensor], live: Tensor | None = None, **options: Any) -> None:
    components, hidden = options["components"], inputs[1].shape[0]
    dead = torch.zeros(hidden, dtype=torch.bool)
    if live is not None and components:
        dead = torch.ones(components + 1, dtype=torch.bool)
        dead[live.long()] = False
        dead = dead[:components].repeat_interleave(hidden // components)

    def poison_dead(tensors: list[Tensor]) -> None:
        tensors[1][dead], tensors[2][dead], tensors[3][:, dead] = torch.nan, torch.nan, torch.nan

    grads = check(component_ffn, component_ffn_reference, inputs, live, prepare=poison_dead, **options)
    assert not grads[1][dead].any()
    assert not grads[2][dead].any()
    assert not grads[3][:, dead].any()


@pytest.mark.usefixtures("emulated")
class TestOperator:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("width", [13, 64])
    def test_training_step(self, width, dtype):
        """All that is special at once: dead components, fillers, dropout, several tiles along every axis."""
        inputs = make("cpu", 70, 40, 5, width, 70, dtype)
        check_op(inputs, ids("cpu", 0, 2, 3, 5), components=5, p=0.3, seed=seed_on("cpu"))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_odd_sizes(self, size, dtype):
        inputs = make("cpu", *size, dtype)
        check_op(inputs, components=size[2])
        live = ids("cpu", *range(0, size[2], 2), size[2])
        check_op(inputs, live, components=size[2], p=0.3, seed=seed_on("cpu"))

    @pytest.mark.parametrize("p", [0.0, 0.2])
    @pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
    def test_activations(self, activation, p):
        inputs = make("cpu", 70, 24, 4, 40, 24, torch.bfloat16)
        with torch.no_grad():
            inputs[0].mul_(4)  # reach the flat parts of the activation too
        check_op(inputs, components=4, activation=activation, p=p, seed=seed_on("cpu"))

    @pytest.mark.parametrize("live", [(), (0,), (0, 1, 2)])
    def test_few_live_components(self, live):
        check_op(make("cpu", 40, 20, 3, 20, 20, torch.float16), ids("cpu", *live, 3, 3), components=3)

    def test_sums_over_several_spans_of_tokens(self):
        inputs = make("cpu", 1300, 16, 3, 16, 16, torch.float16)
        check_op(inputs, ids("cpu", 0, 2), components=3, p=0.1, seed=seed_on("cpu"))

    @pytest.mark.parametrize("absent", [(2,), (4,), (2, 4)])
    def test_absent_biases(self, absent):
        inputs: list[Any] = make("cpu", 35, 11, 3, 21, 13)
        for index in absent:
            inputs[index] = None
        check(component_ffn, component_ffn_reference, inputs, ids("cpu", 0, 2), components=3)

    @pytest.mark.parametrize("wanted", range(5))
    def test_only_the_gradient_that_is_wanted(self, wanted):
        inputs = make("cpu", 40, 12, 3, 20, 14, torch.bfloat16)
        options: dict[str, Any] = {"components": 3, "p": 0.2, "seed": seed_on("cpu")}
        _, grads = outputs_and_gradients(component_ffn, *inputs, ids("cpu", 0, 2), **options)
        some = [tensor.detach().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
        _, found = outputs_and_gradients(component_ffn, *some, ids("cpu", 0, 2), **options)
        assert found.keys() == {wanted}
        assert torch.equal(found[wanted], grads[wanted])

    @pytest.mark.parametrize("width", [16, 23])
    def test_live_subset_equals_the_shrunk_layer(self, width):
        """Bit for bit: the same products in the same order, whatever fills up the list."""
        components, live = 7, (1, 2, 5)
        x, w1, b1, w2, b2 = make("cpu", 40, 40, components, width, 33, torch.bfloat16)
        units = torch.tensor([unit for c in live for unit in range(c * width, (c + 1) * width)])
        grad = torch.randn(40, 33).bfloat16()
        shrunk = [x, w1[units].detach(), b1[units].detach(), w2[:, units].detach().contiguous(), b2]
        expected, shrunk_grads = outputs_and_gradients(
            component_ffn, *(tensor.requires_grad_() for tensor in shrunk), grad_output=grad
        )
        for filled in (0, 3):
            listed = ids("cpu", *live, *[components] * filled)
            y, grads = outputs_and_gradients(
                component_ffn, x, w1, b1, w2, b2, listed, components=components, grad_output=grad
            )
            pairs = [(y, expected), (grads[0], shrunk_grads[0]), (grads[4], shrunk_grads[4])]
            pairs += [(grads[i][units], shrunk_grads[i]) for i in (1, 2)]
            pairs += [(grads[3][:, units], shrunk_grads[3])]
            assert all(torch.equal(a, b) for a, b in pairs)

    def test_leading_dimensions_and_strides(self):
        inputs = x, w1, b1, w2, b2 = make("cpu", 24, 10, 2, 12, 10, torch.bfloat16)
        grad = torch.randn(24, 10).bfloat16()
        y, expected = outputs_and_gradients(component_ffn, *inputs, components=2, grad_output=grad)
        assert torch.equal(component_ffn(x.view(2, 3, 4, 10), w1, b1, w2, b2, components=2).flatten(0, 2), y)
        assert torch.equal(component_ffn(x[0], w1, b1, w2, b2, components=2), y[0])
        odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in inputs]
        again, grads = outputs_and_gradients(component_ffn, *odd, components=2, grad_output=grad.t().contiguous().t())
        assert torch.equal(again, y)
        assert same_bits(list(grads.values()), list(expected.values()))
        component_ffn(*inputs, components=2).sum().backward()  # a gradient of stride 0
        assert x.grad is not None
        assert x.grad.isfinite().all()

    @pytest.mark.parametrize("live", [None, (0, 2, 3)])
    @pytest.mark.parametrize("width", [37, 64])
    def test_dropout_mask_is_the_reference_mask(self, width, live):
        """With relu, b1 = 1, w1 = 0 and w2 = identity the output is the mask, scaled."""
        tokens, components, p = 37, 4, 0.25
        hidden = components * width
        y = component_ffn(
            torch.zeros(tokens, 3),
            torch.zeros(hidden, 3),
            torch.ones(hidden),
            torch.eye(hidden),
            None,
            None if live is None else ids("cpu", *live),
            components=components,
            p=p,
            seed=seed_on("cpu"),
            activation="relu",
        )
        expected = keep_mask(seed_on("cpu"), tokens, torch.arange(hidden), p) / (1 - p)
        for component in range(components):
            if live is not None and component not in live:
                expected[:, component * width : (component + 1) * width] = 0
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=0)

    def test_agrees_with_the_native_kernels(self):
        inputs = make("cpu", 60, 30, 4, 20, 25)
        options: dict[str, Any] = {"components": 4, "p": 0.2, "activation": "gelu", "seed": seed_on("cpu")}
        live, grad = ids("cpu", 1, 3, 4), torch.randn(60, 25)
        ours = outputs_and_gradients(component_ffn, *inputs, live, grad_output=grad, **options)
        with dmao_kernels.use_backend("cpu"):
            theirs = outputs_and_gradients(component_ffn, *inputs, live, grad_output=grad, **options)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=1e-2)
        for key, gradient in theirs[1].items():
            torch.testing.assert_close(ours[1][key], gradient, rtol=1e-2, atol=1e-2)

    def test_bits_do_not_change_when_run_again(self):
        inputs = make("cpu", 600, 16, 4, 16, 16, torch.bfloat16)
        options: dict[str, Any] = {"components": 4, "p": 0.2, "seed": seed_on("cpu")}
        once, twice = (outputs_and_gradients(component_ffn, *inputs, ids("cpu", 0, 3), **options) for _ in range(2))
        assert torch.equal(once[0], twice[0])
        assert same_bits(list(once[1].values()), list(twice[1].values()))

    def test_ids_out_of_range_read_nothing_out_of_bounds(self):
        """Garbage in, garbage out: but from the layer's own memory (the emulation may not see it all)."""
        x, w1, b1, w2, b2 = make("cpu", 20, 8, 3, 20, 8, torch.bfloat16)
        component_ffn(x, w1, b1, w2, b2, ids("cpu", -7, 1 << 30, 1, 3, 0), components=3).sum().backward()
