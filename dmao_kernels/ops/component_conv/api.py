"""component_conv: GLU, depthwise convolution, norm and activation over the live components, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import (
    CPU_DTYPES,
    DTYPES,
    autocast,
    check_choice,
    check_devices,
    check_live,
    describe,
    wants_gradient,
)
from dmao_kernels.ops.component_conv.reference import CONV_ACTIVATIONS, NORMS, component_conv_reference
from dmao_kernels.ops.depthwise_conv1d.api import check_convolution

_OPTIONS = "int components, Tensor? lengths, Tensor? offsets, str norm, float eps, str activation"

define(
    "component_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, "
    f"Tensor? statistics_weight, Tensor? live, {_OPTIONS}, bool keep) "
    "-> (Tensor y, Tensor normed, Tensor scales)",
    triton=__package__,
)
define(
    "component_conv_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, "
    f"Tensor? statistics_weight, Tensor? live, Tensor normed, Tensor scales, {_OPTIONS}, bool bias) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_norm_weight, Tensor grad_norm_bias)",
    triton=__package__,
)
register("component_conv", cpu=CPU_DTYPES, triton=DTYPES)


def component_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    statistics_weight: Tensor | None = None,
    live: Tensor | None = None,
    *,
    components: int = 1,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    norm: str = "layer",
    eps: float = 1e-5,
    activation: str = "silu",
) -> Tensor:
    """y = act(norm(depthwise_conv1d(glu(x)))) over the channels of the live components.

    What stands between the two pointwise layers of the Conformer's convolution module (Gulati et al., 2020),
    with LayerNorm for BatchNorm. The C channels form `components` components of C // components neighbouring
    ones. Only live ones are read and computed: dead components may hold anything, NaN included, their output
    and their gradients are zero, and they take no part in the statistics of the norm. The result is that of
    the layer without them.

    With gradients the convolution's output, normed, and one scale per row are kept. Results are bit-identical for
    any number of threads, and for the packed and the padded form of a batch (by Triton but for the gradients of
    parameters, whose sums are cut by rows). Under torch.autocast all floating point inputs are cast, as F.conv1d
    does; statistics are computed in float32.

    Floor on time: 2 N n k flops forward and 4 N n k backward at the peak of the cores, for N rows and n live
    channels, and beside them two sigmoids per element each way; bfloat16 is stored as such and computed in
    float32.

    Args:
        x: float32, bfloat16 or float16, padded [B, T, 2 C] or packed [N, 2 C], values first and then gates, as F.glu;
            any strides.
        weight: [C, k], k odd, of x's dtype, like the vectors that follow.
        bias: [C] of the convolution, or None.
        norm_weight, norm_bias: [C] gain and bias of the norm; None: one and zero.
        statistics_weight: floating point [components], the weight of each component in mean and variance (see
            `dmao_kernels.nn.ComponentLayerNorm`), not differentiable; None: equal, which is LayerNorm.
        live: int32 [n], ids of the live components in strictly increasing order; None: all. `components` behind
            them fills the list up, so that its length need not depend on what lives.
        components: number of components, a divisor of C (0 only if C = 0).
        lengths: int32 [B], frames of each utterance of a padded x; None: all T. What lies beyond is not read,
            its output and its gradient are zero.
        offsets: int32 [B + 1], first row of each utterance of a packed x, and N.
        norm: "layer", or "none".
        eps: added to the variance.
        activation: "silu", "relu", "gelu" (the exact one, with erf) or "none".

    Returns:
        [B, T, C] or [N, C] in x's dtype.

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: live is not strictly increasing or out of range, lengths are not in [0, T], offsets
            decrease or do not go from 0 to N, weights of statistics are negative or zero for all live
            components (CPU kernels only), or this is differentiated twice.
    """
    x, weight, bias, norm_weight, norm_bias = autocast(x, weight, bias, norm_weight, norm_bias)
    check_convolution(
        "component_conv",
        x,
        weight,
        bias,
        lengths,
        offsets,
        halves=2,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
    )
    _check(x, weight, norm_weight, norm_bias, statistics_weight, live, components, norm, activation)
    tensors = x, weight, bias, norm_weight, norm_bias
    if (backend := choose_backend("component_conv", *tensors, live, lengths, offsets)) == "reference":
        return component_conv_reference(
            *tensors,
            statistics_weight,
            live,
            components=components,
            lengths=lengths,
            offsets=offsets,
            norm=norm,
            eps=eps,
            activation=activation,
        )
    if statistics_weight is not None:
        statistics_weight = statistics_weight.to(torch.float32).contiguous()
    keep = wants_gradient(*tensors)
    y, _, _ = operators(backend).component_conv(
        *tensors, statistics_weight, live, components, lengths, offsets, norm, eps, activation, keep
    )
    return y


def _check(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics_weight: Tensor | None,
    live: Tensor | None,
    components: int,
    norm: str,
    activation: str,
) -> None:
    check_live("component_conv", live, components, weight.shape[0], "channels")
    check_choice("component_conv", "norm", norm, NORMS)
    if norm == "none":
        given = {"norm_weight": norm_weight, "norm_bias": norm_bias, "statistics_weight": statistics_weight}
        for name, tensor in given.items():
            if tensor is not None:
                raise ValueError(f"component_conv: {name} must be None with norm 'none', got {describe(tensor)}")
    check_choice("component_conv", "activation", activation, CONV_ACTIVATIONS)
    if statistics_weight is not None:
        if not statistics_weight.dtype.is_floating_point or list(statistics_weight.shape) != [components]:
            raise ValueError(
                f"component_conv: statistics_weight must be floating point [{components}], "
                f"got {describe(statistics_weight)}"
            )
        if statistics_weight.requires_grad:
            raise ValueError("component_conv: statistics_weight must not require gradients")
    check_devices("component_conv", "x", x.device, statistics_weight=statistics_weight, live=live)
