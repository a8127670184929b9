"""Sizes that kernels get wrong: nothing, one, and each side of a vector, a tile and a chunk."""

ODD_SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257)
