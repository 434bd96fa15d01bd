"""The part of kubectl's JSONPath that printer columns and selectable fields use.

Steps: `.name`, `['name']`, `[3]`, `[-1]`, `[*]`, `[?(@.path=="value")]`. Escaped dots (`\\.`) belong to a name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_STEP = re.compile(
    r"""
    \.(?P<name>(?:\\.|[^.\[\\])+)
  | \[\?\(\s*@(?P<path>(?:\.[\w-]+)+)\s*(?P<verb>==|!=)\s*(?P<value>"[^"]*"|'[^']*'|[\w.-]+)\s*\)\]
  | \[(?P<index>-?\d+)\]
  | \[['"](?P<quoted>[^'"]+)['"]\]
  | (?P<all>\[\*\])
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=512)
def _steps(path: str) -> tuple[re.Match[str], ...] | None:
    path = path.strip()
    if path.startswith("{") and path.endswith("}"):
        path = path[1:-1]
    if not path.startswith((".", "[")):
        path = "." + path
    steps, at = [], 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        steps.append(match)
        at = match.end()
    return tuple(steps)


def is_valid(path: str) -> bool:
    """Whether the path can be read."""
    return _steps(path) is not None


def find(obj: Any, path: str) -> list[Any]:
    """Every value that the path leads to."""
    found = [obj]
    for step in _steps(path) or ():
        found = [after for value in found for after in _follow(value, step)]
    return found


def _follow(value: Any, step: re.Match[str]) -> list[Any]:
    name = step["name"] or step["quoted"]
    if name is not None:
        name = name.replace("\\", "")
        return [value[name]] if isinstance(value, dict) and name in value else []
    if step["all"]:
        if isinstance(value, dict):
            return list(value.values())
        return list(value) if isinstance(value, list) else []
    if not isinstance(value, list):
        return []
    if step["index"] is not None:
        index = int(step["index"])
        return [value[index]] if -len(value) <= index < len(value) else []
    wanted = step["value"].strip("\"'")
    same = step["verb"] == "=="
    return [item for item in value if (_text(find(item, step["path"])) == wanted) is same]


def _text(found: list[Any]) -> str | None:
    if not found:
        return None
    value = found[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
