"""From places in the list of live components to the stored channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


class Channels:
    """Which of the stored channels live: those of the listed ones of `components` of neighbouring channels.

    Attributes:
        stored: number of channels.
        listed: number of channels of the listed components, which may hold some that are to be ignored.
        arguments: live_ptr, listed, components, width, ALIGN of `channels_of`. ALIGN neighbours are of one component.
    """

    def __init__(self, stored: int, live: Tensor | None = None, components: int = 1) -> None:
        width = stored // max(components, 1)
        self.stored = stored
        self.listed = stored if live is None else live.shape[0] * width
        live = None if live is None else live.contiguous()
        self.arguments = live, self.listed, components, width, min(width & -width, 16)


@triton.jit
def channels_of(live_ptr, places, listed, components, width, ALIGN: tl.constexpr):
    """The stored channel, and its component, of each place among the channels of the listed components.

    Args:
        live_ptr: ids of the live components, those from `components` on to be ignored; None: all in order.
        places: int32, any shape; neighbours next to each other along its last axis.
        listed: how many channels the listed components have.
        width: channels of a component.

    Returns:
        channels, components, and where both are there: the mask of whatever is loaded or stored.
    """
    inside = places < listed
    component = places // width
    channels = places
    if live_ptr is not None:
        component = tl.load(live_ptr + component, inside, components)
        inside &= (component >= 0) & (component < components)
        channels = component * width + places % width
        channels = tl.max_contiguous(tl.multiple_of(channels, ALIGN), ALIGN)
        inside = tl.max_constancy(inside, ALIGN)
    return channels, component, inside
