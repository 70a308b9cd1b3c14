"""A group of commands that imports a command's module only when that command is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


@dataclass(frozen=True, kw_only=True)
class LazyCommand:
    """Where a command lives and what the overview says of it.

    Attributes:
        module: dotted name of the module.
        attribute: a function (one command) or a `typer.Typer` (a group of them) in that module.
        help: the line `hyperdp --help` shows.
    """

    module: str
    attribute: str
    help: str


def load(name: str, command: LazyCommand) -> TyperCommand | TyperGroup:
    """Import a command and build what typer runs.

    Args:
        name: the word that calls it.
        command: where it lives.

    Returns:
        The command, with its own options and help.
    """
    target = getattr(importlib.import_module(command.module), command.attribute)
    if isinstance(target, typer.Typer):
        group = get_group(target)
        group.name = name
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name)(target)
    built = get_command(single)
    if not isinstance(built, TyperCommand):
        raise TypeError(f"{command.module}:{command.attribute} is not a command")
    return built


class LazyGroup(TyperGroup):
    """Lists stubs, and loads the real command once it is known which one was asked for."""

    table: dict[str, LazyCommand] = {}  # noqa: RUF012 - set once, by the subclass

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, command in self.table.items():
            self.commands[name] = TyperCommand(name=name, help=command.help)

    def resolve_command(
        self, ctx: Any, args: list[str]
    ) -> tuple[str | None, TyperCommand | TyperGroup | None, list[str]]:
        """Find the command that the words name and import it.

        Args:
            ctx: typer's context.
            args: the words that are left.

        Returns:
            Its name, the command, the words after it; no command while completing a wrong name.
        """
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name, self.table[name]), rest
