"""`fencekv txn`: a transaction from a JSON document, or put together from options."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fencekv.cli.output import print_json, print_table, shown, text_or_none
from fencekv.cli.run import DONE, NO, client_options
from fencekv.codec import decode_json
from fencekv.errors import Invalid
from fencekv.wire import json_form, value_of

if TYPE_CHECKING:
    from fencekv.client import FenceKV
    from fencekv.results import Done, TxnAnswer


@click.command()
@click.argument("table")
@click.argument("document", required=False, type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--if-version", multiple=True, metavar="KEY=VERSION", help="Only if the key is at this version.")
@click.option("--if-absent", multiple=True, metavar="KEY", help="Only if the key does not exist.")
@click.option("--if-exists", multiple=True, metavar="KEY", help="Only if the key exists.")
@click.option("--put", "puts", multiple=True, metavar="KEY=VALUE", help="Set a key.")
@click.option("--delete", "deletes", multiple=True, metavar="KEY", help="Remove a key.")
@click.option("--get", "gets", multiple=True, metavar="KEY", help="Read a key, after the writes.")
@click.option("--idempotency-key", default=None, help="Repeating with the same key gives the first outcome.")
@client_options
def txn(
    run: Any,
    output: str | None,
    table: str,
    document: str | None,
    idempotency_key: str | None,
    **flags: tuple[str, ...],
) -> None:
    """Commit a transaction on TABLE: a JSON document from a file or `-`, or what the options say.

    \b
    {"compare": [{"key": "a", "target": "exists", "op": "==", "exists": false}],
     "then": [{"put": {"key": "a", "value": "1"}}], "else": [{"get": {"key": "a"}}]}

    Exit status 1: the conditions did not hold.
    """
    if (document is None) == (not any(flags.values())):
        raise click.UsageError("want either a document or options like --put")
    built = None if document is not None else _from_flags(flags)

    async def act(client: FenceKV) -> int:
        body = built
        if document is not None:
            body = _with_bytes(decode_json(await asyncio.to_thread(_read, document), what="document"))
        answer = await client.table(table).txn_raw(body, idempotency_key=idempotency_key)
        if output == "json":
            print_json(json_form(_document(answer)))
        else:
            held = "yes" if answer.succeeded else "no"
            print_table(
                ["SUCCEEDED", "VERSION", "TOKEN", "PARTITION"],
                [[held, answer.version, answer.token, answer.partition]],
            )
            if answer.results:
                print_table(["RESULT", "KEY", "VERSION", "VALUE"], [_row(result) for result in answer.results])
        return DONE if answer.succeeded else NO

    run(act)


def _from_flags(flags: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    compare: list[dict[str, Any]] = []
    for text in flags["if_version"]:
        key, version = _pair(text, "--if-version")
        compare.append({"key": key, "target": "version", "op": "==", "version": version})
    for name, expected in (("if_absent", False), ("if_exists", True)):
        compare += [{"key": key, "target": "exists", "op": "==", "exists": expected} for key in flags[name]]
    then: list[dict[str, Any]] = []
    for text in flags["puts"]:
        key, value = _pair(text, "--put")
        then.append({"put": {"key": key, "value": value.encode("utf-8", "surrogateescape")}})
    then += [{"delete": {"key": key}} for key in flags["deletes"]]
    then += [{"get": {"key": key}} for key in flags["gets"]]
    return {"compare": compare, "then": then, "else": []}


def _pair(text: str, option: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise click.UsageError(f"{option}: want KEY=…, got {text!r}")
    return key, value


def _read(path: str) -> bytes:
    return sys.stdin.buffer.read() if path == "-" else _file(path)


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Invalid(f"document: {error}", field="document") from error


def _with_bytes(document: Any) -> Any:
    """The document with the values of its puts and compares as bytes; what is malformed a shard will say."""
    if isinstance(document, list):
        return [_with_bytes(item) for item in document]
    if not isinstance(document, dict):
        return document
    if "key" in document and ("value" in document) != ("base64" in document):
        rest = {name: member for name, member in document.items() if name not in {"value", "base64"}}
        return {**rest, "value": value_of(document, field=str(document["key"])[:64])}
    return {name: _with_bytes(member) for name, member in document.items()}


def _row(result: Done) -> list[object]:
    from fencekv.results import DeleteDone, GetDone  # noqa: PLC0415 (after parsing: help must not wait for it)

    if isinstance(result, GetDone):
        return ["get", result.key, result.version, "(none)" if result.value is None else shown(result.value)]
    if isinstance(result, DeleteDone):
        return ["delete", None, None, "existed" if result.existed else "did not exist"]
    return ["put", None, result.version, None]


def _document(answer: TxnAnswer) -> dict[str, Any]:
    return {
        "succeeded": answer.succeeded,
        "results": [_result(result) for result in answer.results],
        "version": text_or_none(answer.version),
        "token": str(answer.token),
        "partition": answer.partition,
    }


def _result(result: Done) -> dict[str, Any]:
    from fencekv.results import DeleteDone, GetDone  # noqa: PLC0415 (after parsing: help must not wait for it)

    if isinstance(result, DeleteDone):
        return {"existed": result.existed}
    if not isinstance(result, GetDone):
        return {"version": str(result.version)}
    value = {} if result.value is None else {"value": result.value}
    found = {"key": result.key, "found": result.value is not None}
    return {**found, **value, "version": text_or_none(result.version)}
