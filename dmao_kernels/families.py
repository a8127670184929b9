"""Layouts of the known kinds of module, tensor names as arguments."""

from __future__ import annotations

from typing import Literal

from dmao_kernels.layout import ComponentLayout

Norm = Literal["component", "layer", "group", "batch", "none"]
Pointwise = Literal["linear", "conv1d"]


def feedforward_layout(
    up: str = "w1",
    down: str = "w2",
    norm: str | None = "norm",
    components: str | None = None,
    dropout: tuple[str, ...] = (),
) -> ComponentLayout:
    """Linear, activation, Linear: a component is u hidden units.

    Here as below, ``norm`` is the norm over the input, which no component owns, ``components`` the attribute
    that counts the components, where there is one, ``dropout`` the rates (floats) that follow the width.
    """
    return ComponentLayout(
        family="feedforward",
        tensors={f"{up}.weight": "(C u) d", f"{up}.bias": "(C u)", f"{down}.weight": "e (C u)"},
        output=(f"{down}.weight",),
        scored=f"{up}.weight",
        shared=_shared(norm, down),
        attributes={
            **_counter(components),
            f"{up}.out_features": "(C u)",
            f"{down}.in_features": "(C u)",
        },
        dropout=dropout,
    )


def glu_convolution_layout(
    pointwise1: str = "pointwise1",
    depthwise: str = "depthwise",
    depthwise_norm: str | None = "depthwise_norm",
    pointwise2: str = "pointwise2",
    norm: str | None = "norm",
    norm_kind: Norm = "component",
    pointwise: Pointwise | tuple[Pointwise, Pointwise] = "linear",
    components: str | None = None,
    dropout: tuple[str, ...] = (),
) -> ComponentLayout:
    """Convolution module: pointwise, GLU, depthwise, norm, activation, pointwise. A component is u channels.

    The value row and the gate row of a channel belong to the same component. ``pointwise`` tells whether the
    pointwise convolutions (both, or each) are nn.Linear or nn.Conv1d of kernel 1; for ``norm_kind`` see
    ``_channel_norm``.
    """
    kinds = (pointwise, pointwise) if isinstance(pointwise, str) else pointwise
    tails = ["" if kind == "linear" else " one" for kind in kinds]
    widths = ["features" if kind == "linear" else "channels" for kind in kinds]
    norm_tensors, norm_attributes, even = _channel_norm(depthwise_norm, norm_kind)
    return ComponentLayout(
        family="glu_convolution",
        tensors={
            f"{pointwise1}.weight": "(two C u) d" + tails[0],
            f"{pointwise1}.bias": "(two C u)",
            **_depthwise(depthwise),
            **norm_tensors,
            f"{pointwise2}.weight": "e (C u)" + tails[1],
        },
        output=(f"{pointwise2}.weight",),
        scored=f"{pointwise1}.weight",
        shared=_shared(norm, pointwise2),
        even=even,
        attributes={
            **_counter(components),
            f"{pointwise1}.out_{widths[0]}": "(two C u)",
            **_depthwise_attributes(depthwise),
            **norm_attributes,
            f"{pointwise2}.in_{widths[1]}": "(C u)",
        },
        dropout=dropout,
    )


def attention_layout(
    q: str = "q",
    k: str = "k",
    v: str = "v",
    out: str = "out",
    norm: str | None = "norm",
    heads: str = "heads",
    dropout: tuple[str, ...] = (),
    pos: str | None = None,
    biases: tuple[str, ...] = (),
    table: str | None = None,
) -> ComponentLayout:
    """Attention with separate projections: a component is one head, counted by the attribute ``heads``.

    Relative positions: ``pos`` is a Linear that projects their encodings to the heads, ``biases`` are parameters
    [heads, head_dim] that are added to the queries, ``table`` is a parameter [distances, heads, head_dim].
    """
    tensors = {
        f"{name}.{part}": pattern for name in (q, k, v) for part, pattern in (("weight", "(C k) d"), ("bias", "(C k)"))
    }
    if v != q:  # values may be wider than keys
        tensors |= {f"{v}.weight": "(C v) d", f"{v}.bias": "(C v)"}
    tensors |= dict.fromkeys(biases, "C k")
    if pos:
        tensors |= {f"{pos}.weight": "(C k) p", f"{pos}.bias": "(C k)"}
    if table:
        tensors[table] = "r C k"
    return ComponentLayout(
        family="attention",
        tensors={**tensors, f"{out}.weight": "e (C v)"},
        output=(f"{out}.weight",),
        scored=f"{out}.weight",
        shared=_shared(norm, out),
        attributes={
            heads: "C",
            f"{q}.out_features": "(C k)",
            f"{k}.out_features": "(C k)",
            f"{v}.out_features": "(C v)",
            **({f"{pos}.out_features": "(C k)"} if pos else {}),
            f"{out}.in_features": "(C v)",
        },
        dropout=dropout,
    )


def packed_attention_layout(
    qkv: str = "qkv",
    out: str = "out",
    norm: str | None = "norm",
    heads: str = "heads",
    dropout: tuple[str, ...] = (),
) -> ComponentLayout:
    """Attention whose q, k and v are one Linear of 3 x heads x head_dim rows: a component is one head."""
    return ComponentLayout(
        family="packed_attention",
        tensors={f"{qkv}.weight": "(three C k) d", f"{qkv}.bias": "(three C k)", f"{out}.weight": "e (C k)"},
        output=(f"{out}.weight",),
        scored=f"{out}.weight",
        shared=_shared(norm, out),
        attributes={heads: "C", f"{qkv}.out_features": "(three C k)", f"{out}.in_features": "(C k)"},
        dropout=dropout,
    )


def cgmlp_layout(
    linear1: str = "linear1",
    gate_norm: str | None = "gate_norm",
    depthwise: str = "depthwise",
    linear2: str = "linear2",
    norm: str | None = "norm",
    norm_kind: Norm = "component",
    components: str | None = None,
    dropout: tuple[str, ...] = (),
) -> ComponentLayout:
    """Convolutional gating MLP: linear to two halves; one half normed, convolved, times the other; linear back.

    A component is u channels of BOTH halves. For ``norm_kind`` see ``_channel_norm``.
    """
    norm_tensors, norm_attributes, even = _channel_norm(gate_norm, norm_kind)
    return ComponentLayout(
        family="cgmlp",
        tensors={
            f"{linear1}.weight": "(two C u) d",
            f"{linear1}.bias": "(two C u)",
            **norm_tensors,
            **_depthwise(depthwise),
            f"{linear2}.weight": "e (C u)",
        },
        output=(f"{linear2}.weight",),
        scored=f"{linear1}.weight",
        shared=_shared(norm, linear2),
        even=even,
        attributes={
            **_counter(components),
            f"{linear1}.out_features": "(two C u)",
            **norm_attributes,
            **_depthwise_attributes(depthwise),
            f"{linear2}.in_features": "(C u)",
        },
        dropout=dropout,
    )


def _shared(norm: str | None, output: str) -> tuple[str, ...]:
    return (*((f"{norm}.weight", f"{norm}.bias") if norm else ()), f"{output}.bias")


def _counter(attribute: str | None) -> dict[str, str]:
    return {attribute: "C"} if attribute else {}


def _depthwise(name: str) -> dict[str, str]:
    return {f"{name}.weight": "(C u) one taps", f"{name}.bias": "(C u)"}


def _depthwise_attributes(name: str) -> dict[str, str]:
    return {f"{name}.{attribute}": "(C u)" for attribute in ("in_channels", "out_channels", "groups")}


def _channel_norm(name: str | None, kind: Norm) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """Tensors, attributes and even buffers of a norm over the channels of all components.

    component: a LayerNorm whose statistics weigh each component (buffer ``statistics_weight``, one entry per
        component).
    batch: nn.BatchNorm1d.
    layer, group: plain nn.LayerNorm, or nn.GroupNorm with one group; the statistics count a copied component
        twice, so that growth changes the function a little (the other kinds preserve it).
    none: no norm.
    """
    if name is None or kind == "none":
        return {}, {}, ()
    tensors = {f"{name}.weight": "(C u)", f"{name}.bias": "(C u)"}
    if kind == "batch":
        running = {f"{name}.running_mean": "(C u)", f"{name}.running_var": "(C u)"}
        return tensors | running, {f"{name}.num_features": "(C u)"}, ()
    if kind == "layer":
        return tensors, {f"{name}.normalized_shape": "(C u)"}, ()
    if kind == "group":
        return tensors, {f"{name}.num_channels": "(C u)"}, ()
    weights = f"{name}.statistics_weight"
    return tensors | {weights: "C"}, {}, (weights,)
