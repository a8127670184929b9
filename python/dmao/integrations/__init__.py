"""Grow-and-drop inside of other people's training loops: Lightning, HF Trainer, HF Accelerate (docs/INTEGRATIONS.md).

Each module imports its framework; none of them is needed for a loop of one's own, where GrowAndDrop stands alone.
"""
