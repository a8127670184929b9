"""Machine code as it is read: which loop counts."""

from __future__ import annotations

from dmao_kernels.testing.sass import hottest, parse_instructions

OUTER = """
.L_x_1:
        /*0000*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
{inner}
        /*0050*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
.L_x_9:
        /*0070*/                   BRA `(.L_x_9) ;
"""
INNER = """
.L_x_2:
        /*0010*/                   {name} R0, R4, R8, R0 ;
        /*0020*/               @P1 BRA `(.L_x_2) ;
"""


def loop(name: str) -> tuple[int, int]:
    """Matrix instructions and instructions of the hottest loop, where an inner one has an instruction of this name."""
    _, loops = parse_instructions(OUTER.format(inner=INNER.format(name=name)))
    found = hottest(loops)
    return found.matrix, len(found.instructions)


def test_the_innermost_loop_with_matrix_instructions_counts() -> None:
    assert loop("HMMA.16816.F32") == (1, 2)


def test_a_loop_around_others_counts_where_these_have_no_matrix_instructions() -> None:
    assert loop("IADD3") == (2, 5)
