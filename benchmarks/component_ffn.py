"""component_ffn against the dense layer: `make bench ARGS="-k component_ffn"`.

The dense layer computes all components (F.linear, activation, F.dropout, F.linear). Floor: 4 (forward) or 12 (with
backward) T d F flops times the share of live components.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._oracle import check
from benchmarks.registry import Case, Problem, register
from dmao_kernels import component_ffn
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference

COMPONENTS = 4
SHAPES = ((384, 1536, 2000), (384, 1536, 500), (128, 512, 1500), (128, 512, 500), (96, 384, 1000))
SHARES = (1.0, 0.5, 0.25)


def dense(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
    return F.linear(F.dropout(F.silu(F.linear(x, w1, b1)), p), w2, b2)


def make_inputs(width: int, hidden: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, width), (hidden, width), (hidden,), (width, hidden), (width,))
    fans = (1, width, 1, hidden, 1)
    return [
        torch.randn(shape, generator=generator).div(fan**0.5).to(dtype).requires_grad_()
        for shape, fan in zip(shapes, fans, strict=True)
    ]


def _check(inputs: list[Tensor], live: Tensor | None, p: float, seed: Tensor) -> None:
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    options = {"components": COMPONENTS, "p": p, "seed": seed}
    check(component_ffn, component_ffn_reference, *inputs, live, grad=grad, **options)


def make(width: int, hidden: int, tokens: int, dtype: torch.dtype, p: float, share: float, backward: bool) -> Problem:
    """Forward, or forward with backward, with this share of the components live."""
    inputs = make_inputs(width, hidden, tokens, dtype)
    seed = torch.tensor([1])
    live = None if share == 1 else torch.arange(int(COMPONENTS * share), dtype=torch.int32)
    grad = torch.randn_like(inputs[0])

    def run(function: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(function(), inputs, grad)) if backward else function

    def ours(live: Tensor | None) -> Callable[[], object]:
        return run(lambda: component_ffn(*inputs, live, components=COMPONENTS, p=p, seed=seed))

    candidates = {"ours": ours(live), "eager": run(lambda: dense(*inputs, p))}
    if live is None:
        compiled = torch.compile(dense)
        candidates["torch.compile"] = run(lambda: compiled(*inputs, p))
    else:
        candidates["ours, all live"] = ours(None)
    return Problem(
        candidates,
        gate=lambda: _check(inputs, live, p, seed),
        flops=(12 if backward else 4) * tokens * width * hidden * share,
    )


def _targets(dtype: torch.dtype, p: float, share: float) -> dict[str, float]:
    """Of forward with backward."""
    if share < 1:
        return {"ours, all live": 1.08 * share}
    if dtype == torch.float32:
        return {"eager": 0.72 if p else 0.85}
    return {"eager": 0.70 if p else 0.95}


RECORD = SHAPES[0]  # all of its cases are measured, of other sizes those that train with all components
KINDS = [
    (RECORD, torch.float32, p, share, backward)
    for p, share, backward in itertools.product((0.0, 0.1), SHARES, (False, True))
]
KINDS += [(RECORD, torch.bfloat16, p, share, True) for p, share in ((0.0, 1.0), (0.1, 1.0), (0.1, 0.5))]
KINDS += [(shape, torch.float32, 0.1, 1.0, True) for shape in SHAPES[1:]]

for (width, hidden, tokens), dtype, p, share, backward in KINDS:
    name = f"d={width} F={hidden} T={tokens} p={p}"
    direction = "fwd+bwd" if backward else "fwd"
    register(
        Case(
            "component_ffn",
            f"{name} {share:.0%} live {direction}",
            partial(make, width, hidden, tokens, dtype, p, share, backward),
            dtype=dtype,
            targets=_targets(dtype, p, share) if backward and width == 384 else {},
            quick=backward and tokens == 2000 and share != 0.25 and dtype == torch.float32,
            series=f"component_ffn {name} {str(dtype)[6:]} {direction}",
            density=share,
        )
    )
