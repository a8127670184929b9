"""The test helpers themselves: each must be able to fail."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)


def test_rule_accepts_twice_the_error_of_pytorch() -> None:
    truth = torch.randn(100, dtype=torch.float64)
    theirs = (truth + 1e-3).float()
    assert_close_to_oracle((truth - 1.9e-3).float(), theirs, truth)
    with pytest.raises(AssertionError, match="grad of x: largest error"):
        assert_close_to_oracle((truth - 2.1e-3).float(), theirs, truth, name="grad of x")


def test_rule_sees_a_small_error_everywhere_behind_one_large_error_of_pytorch() -> None:
    truth = torch.randn(1000, dtype=torch.float64)
    theirs = truth.float()
    theirs[0] += 1e-2
    with pytest.raises(AssertionError, match="root mean square error"):
        assert_close_to_oracle((truth + 5e-3).float(), theirs, truth)


def test_rule_allows_rounding_where_pytorch_is_exact() -> None:
    truth = torch.ones(10, dtype=torch.float64)
    almost = torch.nextafter(torch.ones(10), torch.full((10,), 2.0))
    assert_close_to_oracle(almost, truth.float(), truth)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rule_refuses_nan_and_infinity(bad: float) -> None:
    truth = torch.ones(3, dtype=torch.float64)
    ours = truth.float()
    ours[1] = bad
    with pytest.raises(AssertionError, match="where float64 is finite"):
        assert_close_to_oracle(ours, ours, truth)
    same = truth.clone()
    same[1] = bad
    assert_close_to_oracle(ours, ours, same)
    with pytest.raises(AssertionError, match="where float64 has another value"):
        assert_close_to_oracle(truth.float(), ours, same)


def test_rule_refuses_other_shapes_and_dtypes() -> None:
    truth = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_close_to_oracle(torch.ones(3, 1), torch.ones(3), truth)
    with pytest.raises(AssertionError, match="dtypes differ"):
        assert_close_to_oracle(torch.ones(3), torch.ones(3).bfloat16(), truth)
    with pytest.raises(AssertionError, match="oracle must be float64"):
        assert_close_to_oracle(torch.ones(3), torch.ones(3), torch.ones(3))


def test_to_float64_keeps_what_is_no_float() -> None:
    ids = torch.tensor([1, 2])
    x, listed, nothing = to_float64([torch.ones(2, requires_grad=True), [ids], None])
    assert x.dtype == torch.float64
    assert x.requires_grad
    assert x.is_leaf
    assert listed[0] is ids
    assert nothing is None


def test_outputs_and_gradients() -> None:
    x, w = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    y, gradients = outputs_and_gradients(lambda x, w, unused: x * w * w, x, w=w, unused=x)
    assert y.item() == 18
    assert {key: value.item() for key, value in gradients.items()} == {0: 9.0, "w": 12.0, "unused": 0.0}
    assert x.grad is None
    assert outputs_and_gradients(torch.neg, torch.ones(1))[1] == {}


def test_poison_finds_reads_and_writes_outside() -> None:
    poison = Poison()
    inside = poison.around(torch.ones(2, 3))
    outside = torch.as_strided(inside, (1,), (1,), inside.storage_offset() + 6)
    assert outside.isnan().all()
    poison.check()
    outside.fill_(0.0)
    with pytest.raises(AssertionError, match=r"written outside of a tensor of shape \[2, 3\]"):
        poison.check()


def test_fresh_memory_is_nan() -> None:
    with nan_filled_empty():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
