"""`completion`: the scripts by which shells complete our commands and options."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

SHELLS: Final = ("bash", "zsh", "fish")


def _command(program: str, more: str = "") -> click.Command:
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"

    @click.command(
        name="completion",
        help=f'Print the completion script of SHELL; for bash: `eval "$({program} completion bash)"`.{more}',
    )
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def command(context: click.Context, shell: str) -> None:
        kind = get_completion_class(shell)
        assert kind is not None, shell
        click.echo(kind(context.find_root().command, {}, program, variable).source())

    return command


completion = _command("fencekv")
kubectl_completion = _command(
    "kubectl-fencekv",
    " For `kubectl fencekv`, kubectl itself asks kubectl_complete-fencekv, which is installed beside.",
)
