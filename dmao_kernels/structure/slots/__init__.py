"""Slots storage: tensors have room for a capacity of components, and events never change a shape.

The live components are the first ones of every tensor, in the order that tight storage would have; the rest holds
zeros. What lives is a tensor on the device, bool [capacity] per module, in the module's buffer ``live_slots``.
"""
