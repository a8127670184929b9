"""What tracing believes of results is what the Triton kernels of rows give: shapes, dtypes, strides, no aliases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmao_kernels._library import operators

OPS = operators("triton")


def problems(device: str) -> dict[str, tuple[Any, ...]]:
    def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape).to(device, dtype)

    def ids(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    seed = torch.tensor([1], device=device)
    half = floats(2, 5, 20, dtype=torch.bfloat16)
    statistics = floats(10, 2)
    packed, offsets, lengths = floats(7, 12), ids(0, 3, 7), ids(6, 2)
    conv = floats(12, 3), floats(12), floats(12), floats(12), torch.ones(3, device=device), ids(0, 2)
    options = "layer", 1e-5, "silu"
    return {
        "dropout_add": (half.float(), half, 0.1, seed, 0.5),
        "dropout_add_layer_norm": (half.float(), half, floats(20), floats(20), 0.1, seed, 0.5, 1e-5),
        "dropout_add_layer_norm_backward": (
            None, half, half, floats(20), statistics, 0.1, seed, 0.5, True, torch.bfloat16,
        ),
        "pack": (floats(2, 4, 12), offsets, 7),
        "unpack": (packed, offsets, 4),
        "depthwise_conv1d": (floats(6, 2, 12).transpose(0, 1), conv[0], conv[1], lengths, None),
        "depthwise_conv1d_backward": (packed, packed, conv[0], None, offsets, False),
        "component_conv": (floats(2, 6, 24), *conv, 3, lengths, None, *options, True),
        "component_conv_backward": (
            packed, floats(7, 24), conv[0], *conv[2:], floats(7, 8), floats(7), 3, None, offsets, *options, True,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("op", list(problems("cpu")))
def test_fake(device: str, op: str) -> None:
    torch.library.opcheck(getattr(OPS, op), problems(device)[op], test_utils=("test_schema", "test_faketensor"))
