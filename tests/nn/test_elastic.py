"""The layers' layouts: component costs of the publication, and edits that preserve the function."""

import pytest
import torch

from dmao_kernels.nn import ConformerBlock
from dmao_kernels.structure import Elastic


@pytest.mark.parametrize(
    ("d", "ffn", "conv", "attention"),
    [(256, 131_520, 51_648, 65_920), (384, 295_584, 114_336, 98_688), (512, 525_184, 201_600, 131_456)],
)
def test_published_component_costs(d: int, ffn: int, conv: int, attention: int) -> None:
    elastic = Elastic(ConformerBlock(d, d // 64))
    costs = {name: module.cost for name, module in elastic.modules.items()}
    assert costs == {"ffn1": ffn, "conv": conv, "attention": attention, "ffn2": ffn}
    assert elastic.counts() == {"ffn1": 4, "conv": 4, "attention": d // 64, "ffn2": 4}
