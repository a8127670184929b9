"""Benchmarks: one module per operation registers its cases (registry.py), `make bench` runs them."""
