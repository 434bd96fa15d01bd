"""What the operator believes of the cluster, when its two sources of news overtake each other."""

from __future__ import annotations

from typing import Any

from fencekv.kube import KV_TABLES
from fencekv_operator.cache import Cache


def table(*, uid: str = "u1", version: str) -> dict[str, Any]:
    meta = {"name": "orders", "namespace": "default", "uid": uid, "resourceVersion": version}
    return {"metadata": meta, "spec": {"namespace": "sample"}}


def tables(cache: Cache) -> list[str]:
    """Versions of the tables that it knows, by both ways of asking."""
    known = [each["metadata"]["resourceVersion"] for each in cache.all(KV_TABLES)]
    assert known == [each["metadata"]["resourceVersion"] for each in cache.of_kvns(KV_TABLES, "default", "sample")]
    return known


def test_an_answer_read_after_the_deletion_does_not_bring_the_object_back() -> None:
    cache = Cache()
    cache.put(KV_TABLES, table(version="1"))
    # The write that took the last finalizer ended the object; the watch was faster than the write's own answer.
    cache.drop(KV_TABLES, "default", "orders", uid="u1")

    assert not cache.put(KV_TABLES, table(version="2"))
    assert tables(cache) == []


def test_a_namesake_made_after_a_deletion_is_seen() -> None:
    cache = Cache()
    cache.put(KV_TABLES, table(version="1"))
    cache.drop(KV_TABLES, "default", "orders", uid="u1")

    assert cache.put(KV_TABLES, table(uid="u2", version="3"))
    assert tables(cache) == ["3"]


def test_a_late_deletion_of_an_earlier_namesake_removes_nothing() -> None:
    cache = Cache()
    cache.put(KV_TABLES, table(uid="u2", version="3"))

    assert cache.drop(KV_TABLES, "default", "orders", uid="u1") is None
    assert tables(cache) == ["3"]


def test_a_list_does_not_undo_what_was_learned_after_it_was_begun() -> None:
    cache = Cache()
    cache.put(KV_TABLES, table(version="1"))
    begun = cache.tick
    cache.drop(KV_TABLES, "default", "orders", uid="u1")

    assert cache.relisted(KV_TABLES, [table(version="1")], since=begun, namespace=None) == []
    assert tables(cache) == []
    assert cache.relisted(KV_TABLES, [], since=cache.tick, namespace=None) == []
    assert tables(cache) == []


def test_a_watch_that_lags_undoes_nothing_that_a_writes_answer_showed() -> None:
    cache = Cache()
    cache.put(KV_TABLES, table(version="9"))
    cache.put(KV_TABLES, table(version="10"))

    assert not cache.put(KV_TABLES, table(version="9"))
    assert tables(cache) == ["10"]
    # Another incarnation, whatever its version, and a list after a store was put back, are believed.
    assert cache.put(KV_TABLES, table(uid="u0", version="2"))
    assert [
        each["metadata"]["resourceVersion"]
        for each in cache.relisted(KV_TABLES, [table(uid="u0", version="1")], since=cache.tick, namespace=None)
    ] == ["1"]
    assert tables(cache) == ["1"]
