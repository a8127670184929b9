"""Memory that is computed is memory that is kept."""

from __future__ import annotations

import pytest
from dmao.memory import expected_memory, saved_bytes, table
from dmao.models import ConformerConfig, ConformerCTC

SHAPE = {"outputs": 20, "width": 32, "blocks": 2, "head_dim": 8, "kernel": 5}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("block", ["conformer", "e_branchformer"])
def test_two_lengths_tell_the_third(block, precision):
    config = ConformerConfig(**SHAPE, block=block)
    memory = expected_memory(config, precision)
    model = ConformerCTC(config).train()
    for seconds in (1.0, 6.0, 11.36):
        assert saved_bytes(model, seconds, precision) == pytest.approx(memory.constant + seconds * memory.per_second)
    assert memory.total(5.0) == memory.fixed + memory.constant + 5 * memory.per_second


def test_what_is_counted():
    config = ConformerConfig(**SHAPE)
    memory = expected_memory(config)
    assert memory.parameters == sum(p.numel() for p in ConformerCTC(config).parameters())
    assert memory.fixed == 16 * memory.parameters
    deeper, wider = (expected_memory(ConformerConfig(**{**SHAPE, **more})) for more in ({"blocks": 4}, {"width": 64}))
    assert memory.per_second < deeper.per_second < 2 * memory.per_second  # the front end stays
    assert memory.per_second < wider.per_second < 2 * memory.per_second
    # a block keeps at least its input, the result of the first linear of both FFNs and of the convolution, q, k and v
    frames, width = 25, SHAPE["width"]
    assert deeper.per_second - memory.per_second > 2 * 4 * frames * width * (1 + 8 + 2 + 3)
    assert expected_memory(config, "bf16").per_second < memory.per_second


def test_table():
    memory = expected_memory(ConformerConfig(**SHAPE))
    lines = table([("a/b", memory, 150.0)]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| a/b | 0.")
    assert "| 150 s |" in lines[2]
