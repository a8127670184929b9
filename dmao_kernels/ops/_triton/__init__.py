"""Device functions and launch settings that Triton kernels share. Imported with them only: Triton may be missing."""
