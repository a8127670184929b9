"""`dmao completion`: the script is click's, and what the shell asks is answered at once."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from dmao.cli import main
from dmao.cli_completion import VARIABLE


def ask(words: str, position: int) -> list[str]:
    """What bash is offered for word number `position`."""
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    return CliRunner().invoke(main, env=asked, prog_name="dmao").stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_what_click_makes(shell):
    made = CliRunner().invoke(main, env={VARIABLE: f"{shell}_source"}, prog_name="dmao")
    told = CliRunner().invoke(main, ["completion", shell], prog_name="dmao")
    assert told.exit_code == 0
    assert VARIABLE in told.stdout
    assert told.stdout == made.stdout


def test_commands_options_tables_recipes_and_files():
    assert ask("dmao exp", 1) == ["plain,experiment"]
    assert "plain,--widths-of" in ask("dmao train --w", 2)
    assert ask("dmao experiment gran", 2) == ["plain,granularity"]
    offered = ask("dmao train librispeech/conformer_2", 2)
    assert offered == ["file,librispeech/conformer_2", "plain,librispeech/conformer_256"]


def test_nothing_heavy_is_imported_for_it(run_python):
    loaded = "[name for name in ('torch', 'numpy', 'lhotse', 'yaml') if name in sys.modules]"
    assert run_python("-c", f"import sys, dmao.cli; print({loaded})").stdout.strip() == "[]"
