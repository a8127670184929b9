"""depthwise_conv1d: every channel convolved over its utterance with its own filter."""

from __future__ import annotations

from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import CPU_DTYPES, DTYPES, autocast, check_devices, check_float, check_like
from dmao_kernels.ops._utterances import check_utterances
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference

define(
    "depthwise_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? lengths, Tensor? offsets) -> Tensor",
    triton=__package__,
)
define(
    "depthwise_conv1d_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? lengths, Tensor? offsets, bool bias) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    triton=__package__,
)
register("depthwise_conv1d", cpu=CPU_DTYPES, triton=DTYPES)


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """y[t, c] = bias[c] + sum over j of x[t + j - k // 2, c] weight[c, j], as long as x ("same").

    The taps never cross the ends of an utterance: beyond them there are zeros. Results are bit-identical for
    any number of threads, and for the packed and the padded form of a batch (by Triton but for the gradients of
    parameters, whose sums are cut by rows). Under torch.autocast all floating point inputs are cast, as F.conv1d
    does.

    Floor on time: 2 N C k flops for each of y, dx and dweight, for N rows in all, at the peak of the cores;
    bfloat16 is stored as such and computed in float32.

    Args:
        x: float32, bfloat16 or float16, padded [B, T, C] or packed [N, C]; any strides.
        weight: [C, k], k odd, of x's dtype, like bias.
        bias: [C], or None.
        lengths: int32 [B], frames of each utterance of a padded x; None: all T. What lies beyond is not read,
            its output and its gradient are zero.
        offsets: int32 [B + 1], first row of each utterance of a packed x, and N.

    Returns:
        Of x's shape and dtype.

    Raises:
        ValueError: an argument's dtype, shape or device is not as above.
        RuntimeError: lengths are not in [0, T], or offsets decrease or do not go from 0 to N (CPU kernels
            only), or this is differentiated twice.
    """
    x, weight, bias = autocast(x, weight, bias)
    check_convolution("depthwise_conv1d", x, weight, bias, lengths, offsets)
    if (backend := choose_backend("depthwise_conv1d", x, weight, bias, lengths, offsets)) == "reference":
        return depthwise_conv1d_reference(x, weight, bias, lengths=lengths, offsets=offsets)
    return operators(backend).depthwise_conv1d(x, weight, bias, lengths, offsets)


def check_convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    *,
    halves: int = 1,
    **vectors: Tensor | None,
) -> None:
    """Raises ValueError unless x has so many times C columns and the rest fits; `vectors` are [C] like bias."""
    check_float(op, "x", x)
    check_utterances(op, x, lengths, offsets)
    if weight.dim() != 2 or weight.shape[1] % 2 == 0:
        raise ValueError(f"{op}: weight must be [C, k] with an odd k, got {list(weight.shape)}")
    width = halves * weight.shape[0]
    if x.shape[-1] != width:
        raise ValueError(f"{op}: x must have {width} columns for weight {list(weight.shape)}, got {list(x.shape)}")
    vectors = {"bias": bias, **vectors}
    channels = [weight.shape[0]]
    check_like(op, x, weight=(weight, list(weight.shape)), **{name: (v, channels) for name, v in vectors.items()})
    check_devices(op, "x", x.device, weight=weight, **vectors, lengths=lengths, offsets=offsets)
