"""Printing: JSON documents, tables, and values in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import click

from fencekv.wire import value_member

VALUE_CHARS_MAX: Final = 60  # of a value in a table


def print_json(document: Any) -> None:
    """One JSON document, indented for people, on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_yaml(document: Any) -> None:
    """One YAML document on stdout, in the order in which it was made."""
    import yaml  # noqa: PLC0415 (help must not wait for it)

    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110), nl=False)


def print_document(document: Any, form: str) -> None:
    """A document as `-o json` or `-o yaml` asks for it."""
    (print_yaml if form == "yaml" else print_json)(document)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table without lines; as wide as it needs when it goes into a pipe."""
    from rich.console import Console  # noqa: PLC0415 (takes a tenth of a second to import)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 4096
    Console(width=width, highlight=False, soft_wrap=False).print(table)


def shown(value: bytes | None) -> str:
    """A value on one line of a table."""
    if value is None:
        return "(deleted)"
    member = value_member(value)
    text = member.get("value")
    text = f"base64:{member['base64']}" if text is None else text.replace("\n", "\\n").replace("\t", "\\t")
    text = text.replace("\r", "\\r")
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


def text_or_none(value: object) -> str | None:
    """A token or version as JSON carries it."""
    return None if value is None else str(value)
