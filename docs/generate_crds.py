"""Writes docs/crds.md, the reference of the custom resources, from crds/*.yaml.

    python docs/generate_crds.py            write it
    python docs/generate_crds.py --check    status 1 if it is not what the CRDs say

Invariants:
  * The page depends on the CRDs alone: the same files give the same bytes.
  * Every field of every kind has a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from generated import ROOT, main

PAGE: Final = ROOT / "docs/crds.md"
KINDS: Final = ("kvnamespaces", "kvtables", "kvpartitions", "kvoperations")

Schema = Mapping[str, Any]

HEAD: Final = """# Custom resources

Made from crds/ by `python docs/generate_crds.py`; do not edit. All are namespaced, of group `fencekv.io`,
version `v1alpha1` and category `fencekv` (`kubectl get fencekv`). The API server alone enforces what stands
here: no operator needs to be up. What this version does not do is refused: `durability: durable` is no value,
and a field that is not listed is unknown (`kubectl` refuses it; other clients get a warning and the field is
dropped).

A KVTable's `replicas`, `minInSync` and `durability` have no default of their own: where the table does not say
them, `spec.defaults` of its KVNamespace holds, so a change there reaches all tables that leave it open.
A `minInSync` taken from there is lowered to the table's `replicas`.
"""


def page() -> str:
    """The whole page."""
    crds = [yaml.safe_load((ROOT / f"crds/{kind}.yaml").read_text()) for kind in KINDS]
    return "\n".join([HEAD, *("\n".join(_kind(crd)) for crd in crds)])


def _kind(crd: Mapping[str, Any]) -> Iterator[str]:
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    yield f"## {names['kind']}\n"
    yield f"{schema['description']} Short name `{names['shortNames'][0]}`.\n"
    columns = [column["name"].upper() for column in version["additionalPrinterColumns"]]
    yield f"Columns: NAME, {', '.join(columns)}.\n"
    for rule in schema.get("x-kubernetes-validations", []):
        yield f"- {rule['message']}."
    yield ""
    for part in ("spec", "status"):
        yield f"| `{part}` | type | default | what it is |"
        yield "|---|---|---|---|"
        required = part in schema.get("required", [])
        yield from _rows("", schema["properties"][part], required=required)
        yield ""


def _rows(path: str, schema: Schema, *, required: bool) -> Iterator[str]:
    """A row for `schema`, unless it is spec or status itself without rules, and rows for what lies below."""
    items = schema["items"] if schema.get("type") == "array" else {}
    text = _sentences(schema.get("description", ""), schema, items) if path else _sentences("", schema)
    if text:
        yield _row(f"`{path}`" if path else "", _type(schema), _default(schema, required=required), text)
    inner = items or schema
    start = f"{path}{'[]' if items else ''}." if path else ""
    for name, below in inner.get("properties", {}).items():
        yield from _rows(start + name, below, required=name in inner.get("required", []))


def _sentences(description: str, *schemas: Schema) -> str:
    """The description, and then the rules of all `schemas`."""
    rules = [rule["message"] for schema in schemas for rule in schema.get("x-kubernetes-validations", [])]
    return " ".join(
        [*([description] if description else []), *(["Rules: " + "; ".join(rules) + "."] if rules else [])]
    )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(schema: Schema, *, required: bool) -> str:
    if "default" in schema:
        return f"`{json.dumps(schema['default'], ensure_ascii=False)}`"
    return "required" if required else ""


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(schema["type"])
    if kind in {"integer", "number"}:
        return kind + _bounds(schema.get("minimum"), schema.get("maximum"))
    if kind == "array":
        items = schema["items"]
        bounds = _bounds(schema.get("minItems"), schema["maxItems"])
        return f"list{bounds} of {_type(items)}"
    if "additionalProperties" in schema:
        return f"map{_bounds(None, schema['maxProperties'])} of {_type(schema['additionalProperties'])}"
    if kind == "string":
        shape = f" ({schema['format']})" if "format" in schema else ""
        return kind + (shape or _bounds(schema.get("minLength"), schema["maxLength"], unit=" characters"))
    return kind


def _bounds(low: object, high: object, *, unit: str = "") -> str:
    if low is not None and high is not None:
        return f" {low}-{high}{unit}"
    if high is not None:
        return f" <= {high}{unit}"
    return f" >= {low}{unit}" if low is not None else ""


if __name__ == "__main__":
    raise SystemExit(main(PAGE, page(), source="crds/*.yaml", how="make docs"))
