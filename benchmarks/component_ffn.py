"""component_ffn against the dense layer in eager PyTorch: `python -m benchmarks.component_ffn --threads 1`.

The dense layer computes all components (F.linear, activation, F.dropout, F.linear). A row is printed only
after the kernel's output and gradients passed the comparison with float64. GF/s counts 4 (forward) or 12
(with backward) T d F flops.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels import component_ffn, cpu_capability
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference
from dmao_kernels.testing import assert_close_to_oracle, outputs_and_gradients, to_float64

from ._harness import interleaved, parser, write_results

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


def check(inputs: list[Tensor], live: Tensor | None, p: float, seed: Tensor) -> None:
    """Raises AssertionError unless the kernel is as close to float64 as PyTorch is."""
    options = {"components": COMPONENTS, "p": p, "seed": seed}
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype)
    results = [
        outputs_and_gradients(function, *arguments, live, grad_output=grad, **options)
        for function, arguments in (
            (component_ffn, inputs),
            (component_ffn_reference, inputs),
            (component_ffn_reference, to_float64(inputs)),
        )
    ]
    (ours, our_grads), (torchs, torch_grads), (truth, true_grads) = results
    assert_close_to_oracle(ours, torchs, truth)
    for key in true_grads:
        assert_close_to_oracle(our_grads[key], torch_grads[key], true_grads[key], name=f"gradient {key}")


def measure(
    width: int, hidden: int, tokens: int, dtype: torch.dtype, p: float, seconds: float
) -> Iterator[dict[str, Any]]:
    """Forward, and forward with backward, of one shape: prints and yields a row each."""
    inputs = make_inputs(width, hidden, tokens, dtype)
    seed = torch.tensor([1])
    lives = {
        share: None if share == 1 else torch.arange(int(COMPONENTS * share), dtype=torch.int32) for share in SHARES
    }
    for live in lives.values():
        check(inputs, live, p, seed)
    grad = torch.randn_like(inputs[0])

    def ours(live: Tensor | None) -> Tensor:
        return component_ffn(*inputs, live, components=COMPONENTS, p=p, seed=seed)

    def both(output: Tensor) -> None:
        torch.autograd.grad(output, inputs, grad)

    for name in ("fwd", "fwd+bwd"):
        if name == "fwd":
            calls = {"dense": lambda: dense(*inputs, p)}
            calls |= {f"{share}": lambda live=live: ours(live) for share, live in lives.items()}
        else:
            calls = {"dense": lambda: both(dense(*inputs, p))}
            calls |= {f"{share}": lambda live=live: both(ours(live)) for share, live in lives.items()}
        times = interleaved(calls, seconds)
        base = times["dense"].median
        rate = (4 if name == "fwd" else 12) * tokens * width * hidden / times["1.0"].median / 1e9
        relative = {share: times[f"{share}"].median / base for share in SHARES}
        ratios = "  ".join(f"{ratio:5.3f}" for ratio in relative.values())
        print(
            f"{str(dtype)[6:]:8} d={width:4} F={hidden:4} T={tokens:5} p={p:.1f} {name:8} "
            f"dense {times['dense']} | ours/dense {ratios} | {rate:5.0f} GF/s",
            flush=True,
        )
        shape = {"dtype": str(dtype)[6:], "d": width, "hidden": hidden, "tokens": tokens, "p": p, "pass": name}
        ours_to_dense = {f"ours/dense, {share:.0%} live": ratio for share, ratio in relative.items()}
        yield {**shape, "dense ms": 1e3 * base, **ours_to_dense, "GF/s": rate}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--dtypes", default="float32,bfloat16")
    options.add_argument("--d", type=int, help="only shapes of this width")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    shares = ", ".join(map(str, SHARES))
    print(f"{cpu_capability()}, {arguments.threads} threads, live share {shares}")
    rows: list[dict[str, Any]] = []
    for dtype, shape, p in itertools.product(arguments.dtypes.split(","), SHAPES, (0.0, 0.1)):
        if arguments.d in (None, shape[0]):
            rows += measure(*shape, getattr(torch, dtype), p, arguments.seconds)
    write_results(arguments.out, "component_ffn", rows)


if __name__ == "__main__":
    main()
