"""Experiments: arms of a table, each with several seeds, trained, decoded and compared."""
