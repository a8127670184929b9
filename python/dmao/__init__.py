"""dmao: train models whose width is trained, too (the callers of `dmao_kernels`)."""
