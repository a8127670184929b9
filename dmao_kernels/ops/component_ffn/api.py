"""component_ffn: the feed-forward layer over its live components, in one pass."""

from __future__ import annotations

from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import (
    CPU_DTYPES,
    DTYPES,
    autocast,
    check_choice,
    check_devices,
    check_dropout,
    check_float,
    check_like,
    check_live,
    wants_gradient,
)
from dmao_kernels.ops.component_ffn.reference import ACTIVATIONS, component_ffn_reference

define(
    "component_ffn(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? live, int components, "
    "float p, Tensor? seed, str activation, bool keep) -> (Tensor y, Tensor pre_activation)",
    triton=__package__,
    cuda=True,
)
define(
    "component_ffn_backward(Tensor grad_y, Tensor x, Tensor w1, Tensor w2, Tensor? live, "
    "Tensor pre_activation, int components, float p, Tensor? seed, str activation, "
    "bool need_x, bool need_w1, bool need_b1, bool need_w2, bool need_b2) "
    "-> (Tensor grad_x, Tensor grad_w1, Tensor grad_b1, Tensor grad_w2, Tensor grad_b2)",
    triton=__package__,
    cuda=True,
)
register("component_ffn", cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES, tf32=True)


def component_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    live: Tensor | None = None,
    *,
    components: int = 1,
    p: float = 0.0,
    seed: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """y = dropout(act(x w1^T + b1)) w2^T + b2 over the hidden units of the live components.

    The F hidden units form `components` components of u = F // components neighbouring units. Only live ones
    are read and computed: dead components may hold anything, NaN included, and their gradients are exactly
    zero. The result and the gradients are those of the layer without the dead components.

    On the CPU the hidden layer stays in cache; with gradients its pre-activations are kept. Dropout (on the activated
    hidden units) comes from a counter-based generator, Philox4x32-7: its mask is a function of (seed, token,
    unit), is recomputed in the backward pass, and does not depend on which components live, on the batch's
    shape or on the number of threads. Results are bit-identical for any number of threads. Under
    torch.autocast all floating point inputs are cast, as F.linear does.

    Floor on time: 4 T d u n multiply-add flops forward and 8 T d u n backward, for T tokens and n live
    components, at the peak of the cores; gradients that nobody needs are not computed. Sums are float32.
    bfloat16 is multiplied as such where the instruction set does (AVX-512 BF16), else in float32.

    Args:
        x: float32, bfloat16 or float16 [..., d]; any strides.
        w1: [F, d], of x's dtype, like all that follow.
        b1: [F], or None.
        w2: [d_out, F].
        b2: [d_out], or None.
        live: int32 [n], ids of the live components in strictly increasing order; None: all. `components` behind
            them fills the list up, so that its length need not depend on what lives.
        components: number of components, a divisor of F (0 only if F = 0).
        p: probability of dropping a hidden unit, in [0, 1); kept ones are scaled by 1 / (1 - p).
        seed: int64 [1] on x's device, needed when p > 0. Give every call of a step its own.
        activation: "silu", "relu" or "gelu" (the exact one, with erf).

    Returns:
        [..., d_out] in x's dtype; b2 in each row where no component lives.

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: live is not strictly increasing or out of range (CPU kernels only), or this is
            differentiated twice.
    """
    x, w1, b1, w2, b2 = autocast(x, w1, b1, w2, b2)
    _check(x, w1, b1, w2, b2, live, components, p, seed, activation)
    if (backend := choose_backend("component_ffn", x, w1, b1, w2, b2, live, seed)) == "reference":
        return component_ffn_reference(
            x, w1, b1, w2, b2, live, components=components, p=p, seed=seed, activation=activation
        )
    keep = wants_gradient(x, w1, b1, w2, b2)
    y, _ = operators(backend).component_ffn(x, w1, b1, w2, b2, live, components, p, seed, activation, keep)
    return y


def _check(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    live: Tensor | None,
    components: int,
    p: float,
    seed: Tensor | None,
    activation: str,
) -> None:
    check_float("component_ffn", "x", x)
    if x.dim() == 0:
        raise ValueError("component_ffn: x must be [..., d], got a scalar")
    if w1.dim() != 2 or w2.dim() != 2:
        raise ValueError(
            f"component_ffn: w1 must be [F, d] and w2 [d_out, F], got {list(w1.shape)} and {list(w2.shape)}"
        )
    hidden, width, out = w1.shape[0], x.shape[-1], w2.shape[0]
    check_like("component_ffn", x, w1=(w1, [hidden, width]), b1=(b1, [hidden]), w2=(w2, [out, hidden]), b2=(b2, [out]))
    check_live("component_ffn", live, components, hidden, "hidden units")
    check_choice("component_ffn", "activation", activation, ACTIVATIONS)
    check_dropout("component_ffn", p, seed)
    check_devices("component_ffn", "x", x.device, w1=w1, b1=b1, w2=w2, b2=b2, live=live, seed=seed)
