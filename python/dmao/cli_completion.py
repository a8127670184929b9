"""`dmao completion SHELL`: what makes a shell complete the arguments of `dmao`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_DMAO_COMPLETE"  # click answers the shell's questions where it is set


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, files and names of recipes.

    \b
    Examples:
      eval "$(dmao completion bash)"          (in ~/.bashrc, or zsh in ~/.zshrc)
      dmao completion fish > ~/.config/fish/completions/dmao.fish
    """
    script = get_completion_class(shell)
    assert script is not None  # click knows the three
    click.echo(script(context.find_root().command, {}, "dmao", VARIABLE).source(), nl=False)
