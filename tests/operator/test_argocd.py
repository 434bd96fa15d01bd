"""The health script of docs/argocd.md, run in Lua 5.1 as Argo CD does, on statuses as the operator writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51  # type: ignore[import-untyped]

from fencekv_operator.operations import Operation, Progress, failed, new_status, running, succeeded, waiting

Object = dict[str, Any]

PAGE = Path(__file__).parents[2] / "docs/argocd.md"


def script() -> str:
    """The script, from the page."""
    block = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    custom = yaml.safe_load(yaml.safe_load(block)["data"]["resource.customizations"])
    found: str = custom["fencekv.io/*"]["health.lua"]
    return found


@pytest.fixture(scope="module")
def health() -> Any:
    """The script as a function of an object; gives status and message."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False, attribute_filter=_nothing)
    judge = lua.execute(f"return function(obj)\n{script()}\nend")

    def ask(obj: Object) -> tuple[str, str]:
        answer = judge(lua.table_from(obj, recursive=True))
        return answer["status"], answer["message"]

    return ask


def _nothing(*_: Any) -> Any:
    raise AttributeError("a health script reaches nothing of Python")


def an_object(*true: str, seen: int = 2, deleting: bool = False, reason: str = "Because", **false: str) -> Object:
    names = ["Ready", "Reconciling", "Stalled", "Degraded", "Blocked", "RecordSuspect", "Paused"]
    meta: Object = {"name": "orders", "generation": 2}
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [
        {
            "type": name,
            "status": "True" if name in true else "False",
            "reason": reason,
            "message": f"{name} it is" if name in true else "",
        }
        for name in dict.fromkeys([*names, *true])
    ]
    return {"metadata": meta, "status": {"observedGeneration": seen, "conditions": conditions}}


FRESH: Object = {"metadata": {"name": "orders", "generation": 1}}
CASES = [
    (FRESH, "Progressing", "not seen"),
    ({**FRESH, "status": {"observedGeneration": -1}}, "Progressing", "not seen"),
    (an_object("Ready", seen=1), "Progressing", "not seen"),
    (an_object("Ready"), "Healthy", "Ready it is"),
    (an_object("Ready", "Reconciling"), "Progressing", "Reconciling it is"),
    (an_object("Reconciling"), "Progressing", "Reconciling it is"),
    (an_object(reason="NotGranted"), "Progressing", "NotGranted"),
    (an_object("Stalled"), "Degraded", "Stalled it is"),
    (an_object("Ready", "Degraded", "Reconciling"), "Degraded", "Degraded it is"),
    (an_object("Reconciling", "Blocked"), "Degraded", "Blocked it is"),
    (an_object("Reconciling", "RecordSuspect"), "Degraded", "RecordSuspect it is"),
    (an_object("Ready", "Paused"), "Suspended", "Paused it is"),
    (an_object("Complete"), "Healthy", ""),
    (an_object("Failed"), "Degraded", "Failed it is"),
    (an_object("Ready", "Stalled", deleting=True), "Progressing", "being deleted"),
]


ORDER: Object = {
    "metadata": {"name": "op-1", "namespace": "default", "uid": "u", "generation": 1},
    "spec": {"type": "verify", "table": "orders"},
}


def ordered(progress: Progress) -> Object:
    """A KVOperation as the operator leaves it."""
    return {**ORDER, "status": new_status(Operation.parse(ORDER), progress, now_unix=0.0)}


CASES += [
    ({**ORDER, "status": {"observedGeneration": -1}}, "Progressing", "not seen"),
    (ordered(waiting("Waiting", "nobody owns it")), "Progressing", "nobody owns it"),
    (ordered(running("Comparing")), "Progressing", "Comparing"),
    (ordered(succeeded("all the same", {"verdict": "Same"})), "Healthy", "all the same"),
    (ordered(failed("Different", "sample-2 differs")), "Degraded", "sample-2 differs"),
]


@pytest.mark.parametrize(("obj", "wanted", "words"), CASES)
def test_health(health: Any, obj: Object, wanted: str, words: str) -> None:
    status, message = health(obj)
    assert status == wanted
    assert words in message
