"""The self-test: are the kernels right on this machine, and how fast?

    python -m dmao_kernels.testing.selftest --device cuda --out selftest

Checks every operation in every dtype, forward and backward, against float64; that results do not change from call to
call; a short training with an event. Then times everything beside its peers, against the limits of the machine. Writes
report.json and report.md. An operation that is wrong has no times.
"""
