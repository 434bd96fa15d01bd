"""A shard's HTTP side over a partition in memory: what is asked of the partition, and what the client is told."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from fake_node import FakeNode, FakePartition, not_owner, serving
from yarl import URL

from fencekv.codec import decode, encode
from fencekv.errors import Exhausted, Fenced, Lost, Unavailable, Unknown
from fencekv.partitioning import HashPartitioning, RangePartitioning
from fencekv.token import Token, Version
from fencekv.transport import Reply, make_session, send
from fencekv_shard import api
from fencekv_shard.http_requests import ROUTES
from fencekv_shard.transaction import Put, Record

KEY = "/v1/sample/orders/keys/k"


@dataclass
class Asker:
    session: aiohttp.ClientSession
    port: int

    async def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        return await send(self.session, method=method, url=url, headers=named, body=body, timeout=10)


@pytest.fixture(name="ask")
async def start(node: FakeNode) -> AsyncIterator[Asker]:
    async with serving(node) as [shard], make_session() as session:
        yield Asker(session, shard.port)


def document(reply: Reply) -> Any:
    return json.loads(reply.body)


async def test_a_put_is_answered_with_version_token_and_partition(ask: Asker) -> None:
    reply = await ask("PUT", KEY, b"hello")
    assert reply.status == 200
    assert document(reply) == {"version": "1.0", "token": "1.1", "partition": "orders-0"}
    assert reply.headers["FenceKV-Token"] == "1.1"
    assert reply.headers["FenceKV-Epoch"] == "1"
    assert reply.headers["FenceKV-Partition"] == "orders-0"
    assert reply.headers["FenceKV-Version"] == "1.0"
    assert reply.headers["FenceKV-Durability"] == "standard"


@pytest.mark.parametrize(
    "value", [b"", b"text", b"\x00\xff binary", b"x" * (1 << 20)], ids=["empty", "text", "binary", "1 MiB"]
)
async def test_a_value_comes_back_byte_for_byte(ask: Asker, value: bytes) -> None:
    await ask("PUT", KEY, value)
    reply = await ask("GET", KEY)
    assert (reply.status, reply.body) == (200, value)
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["FenceKV-Version"] == "1.0"


@pytest.mark.parametrize(
    "key", ["a/b", "é/ü", "{order-17}/lines/3", "..", ".", "a b+c", "100%", "a?b&c=d#e", "\x7f\x02", "k" * 1024]
)
async def test_any_key_survives_the_path(ask: Asker, partition: FakePartition, key: str) -> None:
    encoded = "".join(f"%{octet:02X}" for octet in key.encode())
    assert (await ask("PUT", f"/v1/sample/orders/keys/{encoded}", b"v")).status == 200
    assert list(partition.state) == [key]


async def test_an_absent_key_is_a_problem_named_not_found_with_the_token(ask: Asker) -> None:
    reply = await ask("GET", KEY)
    assert (reply.status, document(reply)["title"]) == (404, "NotFound")
    assert reply.headers["FenceKV-Token"] == "1.0"


async def test_a_delete_says_whether_the_key_existed(ask: Asker) -> None:
    await ask("PUT", KEY, b"v")
    first, second = await ask("DELETE", KEY), await ask("DELETE", KEY)
    assert (document(first)["existed"], document(first)["version"]) == (True, "1.1")
    assert (document(second)["existed"], document(second)["version"]) == (False, None)


async def test_conditions_in_headers_hold_or_are_a_conflict_that_names_the_version(
    ask: Asker, partition: FakePartition
) -> None:
    assert (await ask("PUT", KEY, b"1", If_None_Match="*")).status == 200
    again = await ask("PUT", KEY, b"2", If_None_Match="*")
    assert (again.status, document(again)["title"], document(again)["version"]) == (412, "Conflict", "1.0")
    assert (await ask("PUT", KEY, b"3", If_Match='"1.7"')).status == 412
    assert (await ask("PUT", KEY, b"4", If_Match='"1.0"')).status == 200
    assert (await ask("DELETE", KEY, If_Match='"1.0"')).status == 412
    assert (await ask("DELETE", KEY, If_Match="*")).status == 200
    gone = await ask("PUT", KEY, b"5", If_Match="*")
    assert (gone.status, document(gone).get("version")) == (412, None)
    assert partition.state == {}


async def test_what_a_request_asks_for_reaches_the_partition(ask: Asker, partition: FakePartition) -> None:
    await ask("GET", KEY, FenceKV_Min_Token="1.0", FenceKV_Consistency="cached", FenceKV_Epoch="1")
    await ask("PUT", KEY, b"v", FenceKV_Durability="replicated", Idempotency_Key="i-1")
    read, write = partition.calls
    assert read[2] == api.Options(consistency=api.Consistency.CACHED, min_token=Token(1, 0), epoch=1)
    assert write[2].durability is api.Durability.REPLICATED
    assert write[1].idempotency_key == b"i-1"


async def test_a_request_never_lowers_the_tables_durability(node: FakeNode, ask: Asker) -> None:
    node.add_table("safe", durability=api.Durability.REPLICATED)
    reply = await ask("PUT", "/v1/sample/safe/keys/k", b"v", FenceKV_Durability="standard")
    assert reply.headers["FenceKV-Durability"] == "replicated"


async def test_a_transaction_does_one_branch_and_answers_each_operation(ask: Asker) -> None:
    body = {
        "compare": [{"key": "a", "target": "exists", "op": "==", "exists": False}],
        "then": [
            {"put": {"key": "a", "base64": base64.b64encode(b"\xff").decode()}},
            {"get": {"key": "a"}},
            {"delete": {"key": "b"}},
            {"get": {"key": "c"}},
        ],
        "else": [{"get": {"key": "a"}}],
    }
    send_it = json.dumps(body).encode()
    first = document(await ask("POST", "/v1/sample/orders/txn", send_it, Content_Type="application/json"))
    assert first == {
        "succeeded": True,
        "results": [
            {"version": "1.0"},
            {"key": "a", "found": True, "base64": "/w==", "version": "1.0"},
            {"existed": False},
            {"key": "c", "found": False, "version": None},
        ],
        "version": "1.0",
        "token": "1.1",
        "partition": "orders-0",
    }
    second = document(await ask("POST", "/v1/sample/orders/txn", send_it, Content_Type="application/json"))
    assert (second["succeeded"], second["version"]) == (False, None)
    assert second["results"][0]["version"] == "1.0"


async def test_a_transaction_in_cbor_is_answered_in_cbor_with_bytes_as_bytes(ask: Asker) -> None:
    body = encode({"then": [{"put": {"key": "a", "value": b"\x00\xff"}}, {"get": {"key": "a"}}]})
    reply = await ask("POST", "/v1/sample/orders/txn", body, Content_Type="application/cbor")
    assert reply.headers["Content-Type"] == "application/cbor"
    assert decode(reply.body)["results"][1]["value"] == b"\x00\xff"


async def test_all_compares_of_a_transaction_reach_the_partition(ask: Asker, partition: FakePartition) -> None:
    compares = [
        {"key": "a", "target": "version", "op": "<", "version": "3.4"},
        {"key": "a", "target": "value", "op": "!=", "value": "x"},
        {"key": "a", "target": "value", "op": ">", "base64": "eA=="},
        {"key": "a", "target": "exists", "op": "!=", "exists": True},
    ]
    body = json.dumps({"compare": compares, "then": [{"get": {"key": "a"}}]}).encode()
    await ask("POST", "/v1/sample/orders/txn", body, Content_Type="application/json; charset=utf-8")
    seen = [(str(c.target), str(c.relation), c.operand) for c in partition.calls[0][1].compare]
    assert [str(seen[0][2]), *(operand for _, _, operand in seen[1:])] == ["3.4", b"x", b"x", True]
    assert [relation for _, relation, _ in seen] == ["<", "!=", ">", "!="]


async def test_history_is_paged_newest_first_with_deletions(ask: Asker) -> None:
    for value in (b"1", b"2"):
        await ask("PUT", KEY, value)
    await ask("DELETE", KEY)
    first = document(await ask("GET", "/v1/sample/orders/history/k?limit=2"))
    assert first["items"] == [{"version": "1.2", "deleted": True}, {"version": "1.1", "value": "2"}]
    second = document(await ask("GET", f"/v1/sample/orders/history/k?cursor={first['cursor']}"))
    assert second["items"] == [{"version": "1.0", "value": "1"}]
    assert second["cursor"] is None


async def test_a_route_names_owner_token_and_partitioning(node: FakeNode, ask: Asker) -> None:
    node.add_table("wide", partitioning=RangePartitioning(("m",)))
    node.point("wide", 1, owner="sample-1", http="127.0.0.9:7070", epoch=4)
    node.replicas.pop(("wide", 1))
    body = document(await ask("GET", "/v1/route/sample/wide"))
    assert body["partitioning"] == {"strategy": "range", "splitPoints": ["m"]}
    assert body["partitions"] == [
        {"partition": "wide-0", "index": 0, "epoch": 1, "owner": "sample-0", "http": None, "token": "1.0"},
        {
            "partition": "wide-1",
            "index": 1,
            "epoch": 4,
            "owner": "sample-1",
            "http": "127.0.0.9:7070",
            "token": None,
        },
    ]
    one = document(await ask("GET", "/v1/route/sample/wide?key=zebra"))
    assert [entry["partition"] for entry in one["partitions"]] == ["wide-1"]


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (Unavailable("later"), 503, "1"),
        (Exhausted("full"), 429, "1"),
        (Unknown("who knows"), 504, None),
        (Fenced("newer", epoch=9), 423, None),
        (Lost("gone", end="1.3"), 410, None),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_an_error_of_the_partition_is_a_problem_with_what_is_known(
    ask: Asker, partition: FakePartition, error: Exception, status: int, retry: str | None
) -> None:
    partition.script = [error]
    reply = await ask("PUT", KEY, b"v")
    assert reply.status == status
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers.get("Retry-After") == retry
    assert (reply.headers["FenceKV-Partition"], reply.headers["FenceKV-Epoch"]) == ("orders-0", "1")


@pytest.mark.parametrize(("method", "title"), [("PUT", "Unknown"), ("GET", "Unavailable")])
async def test_a_bug_in_a_write_is_an_unknown_outcome_and_no_failure(
    ask: Asker, partition: FakePartition, method: str, title: str
) -> None:
    partition.script = [ZeroDivisionError("a bug")]
    reply = await ask(method, KEY, b"v" if method == "PUT" else b"")
    assert document(reply)["title"] == title
    assert b"bug" not in reply.body


async def test_a_replica_that_lost_its_ownership_a_moment_ago_is_asked_once_more(
    ask: Asker, partition: FakePartition
) -> None:
    partition.script = [not_owner(), None]
    assert (await ask("PUT", KEY, b"v")).status == 200
    partition.script = [not_owner(), not_owner(), not_owner(epoch=2)]
    reply = await ask("PUT", KEY, b"v")
    assert (reply.status, document(reply)["title"]) == (421, "NotOwner")


async def test_no_owner_is_unavailable(node: FakeNode, ask: Asker) -> None:
    node.point("orders", 0, owner="", http="")
    reply = await ask("PUT", KEY, b"v")
    assert (reply.status, document(reply)["title"]) == (503, "Unavailable")


async def test_a_small_request_with_expect_is_told_to_go_on(ask: Asker) -> None:
    assert (await ask("PUT", KEY, b"v", Expect="100-continue")).status == 200


async def test_health_readiness_metrics_and_report(node: FakeNode, ask: Asker) -> None:
    assert (await ask("GET", "/healthz")).status == (await ask("GET", "/readyz")).status == 200
    node.is_live = node.is_ready = False
    assert (await ask("GET", "/healthz")).status == (await ask("GET", "/readyz")).status == 503
    await ask("PUT", KEY, b"v")
    await ask("GET", "/v1/sample/orders/keys/absent")
    text = (await ask("GET", "/metrics")).body.decode()
    assert 'fencekv_requests_total{outcome="ok",route="put"} 1' in text
    assert 'fencekv_requests_total{outcome="NotFound",route="get"} 1' in text
    assert 'fencekv_partition_epoch{partition="orders-0",role="owner"} 1' in text
    assert "fencekv_session_renewal 7" in text
    assert document(await ask("GET", "/peer/v1/report")) == json.loads(json.dumps(node.report()))


async def test_metrics_tell_how_late_renewals_are_and_what_opening_took(node: FakeNode, ask: Asker) -> None:
    node.more = {"renewalLateness": {"buckets": [[0.005, 3], [1.0, 4]], "count": 5, "sum": 2.5}}
    node.more_of_replicas = {"openSeconds": 0.25, "replayedEntries": 17}
    text = (await ask("GET", "/metrics")).body.decode()
    assert 'fencekv_session_renewal_lateness_seconds_bucket{le="0.005"} 3' in text
    assert 'fencekv_session_renewal_lateness_seconds_bucket{le="+Inf"} 5' in text
    assert "fencekv_session_renewal_lateness_seconds_sum 2.5" in text
    count = len(node.replicas)
    assert f'fencekv_partition_open_seconds{{role="owner"}} {count * 0.25}' in text
    assert f'fencekv_partition_replayed_entries{{role="owner"}} {count * 17}' in text
    assert "fencekv_partition_overlay_bytes{" not in text


async def test_the_openapi_document_lists_the_routes_their_parameters_and_nothing_else(ask: Asker) -> None:
    described = document(await ask("GET", "/openapi.json"))
    paths = described["paths"]
    listed = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert listed == {(route.method, route.template) for route in ROUTES}
    for route in ROUTES:
        parameters = paths[route.template][route.method.lower()]["parameters"]
        assert [p["name"] for p in parameters if p["in"] == "query"] == list(route.query)
        in_path = [p["name"] for p in parameters if p["in"] == "path"]
        assert all(f"{{{name}}}" in route.template for name in in_path)
        assert len(in_path) == route.template.count("{")
    text = json.dumps(described)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in described["components"]["schemas"]


async def test_every_route_of_the_table_answers(ask: Asker) -> None:
    for route in ROUTES:
        path = route.template.replace("{namespace}", "sample").replace("{table}", "orders").replace("{key}", "k")
        path += "?uid=u&seq=0" if route.name == "chain" else ""
        bodies = {"txn": b'{"then":[{"get":{"key":"k"}}]}', "release": b'{"uid":"u","epoch":4,"target":""}'}
        headers = {"Content_Type": "application/json"} if route.name == "txn" else {}
        status = (await ask(route.method, path, bodies.get(route.name, b""), **headers)).status
        assert status in {200, 202, 404}, route


# -- listings


def fill(node: FakeNode, table: str, keys: list[str]) -> None:
    split = node.tables[table].partitioning
    for key in keys:
        partition = node.replicas[table, split.partition_of(key)]
        partition.seq += 1
        partition.state[key] = Record(b"v", Version(partition.epoch, partition.seq))


async def pages(ask: Asker, path: str) -> list[Any]:
    found = []
    cursor: str | None = ""
    while cursor is not None:
        joint = "&" if "?" in path else "?"
        reply = await ask("GET", path + (f"{joint}cursor={cursor}" if cursor else ""))
        assert reply.status == 200, reply.body
        found.append(document(reply))
        cursor = found[-1]["cursor"]
        assert len(found) < 500
    return found


async def test_a_listing_of_one_partition_has_its_token(node: FakeNode, ask: Asker) -> None:
    fill(node, "orders", ["b", "a", "é", "a/1"])
    [page] = await pages(ask, "/v1/sample/orders/keys")
    assert [item["key"] for item in page["items"]] == ["a", "a/1", "b", "é"]
    assert (page["token"], page["partition"]) == ("1.0", "orders-0")
    [page] = await pages(ask, "/v1/sample/orders/keys?prefix=a&start=a%2F&end=b")
    assert [item["key"] for item in page["items"]] == ["a/1"]


async def test_a_later_page_is_asked_at_the_first_ones_state_and_token(
    node: FakeNode, ask: Asker, partition: FakePartition
) -> None:
    fill(node, "orders", ["a", "b", "c"])
    partition.txid = 5
    await pages(ask, "/v1/sample/orders/keys?limit=2")
    second = partition.calls[1]
    assert (second[1].after, second[1].at) == ("b", 2)
    assert second[2].min_token == Token(1, 5)


SPLITS = [HashPartitioning(5), RangePartitioning(("k03", "k11", "k40"))]


@pytest.mark.parametrize("split", SPLITS, ids=["hash", "range"])
@pytest.mark.parametrize(("limit", "page_max"), [(1, 1000), (3, 1000), (100, 1000), (7, 2)])
async def test_a_listing_over_partitions_is_in_order_whole_and_without_repeats(
    node: FakeNode, ask: Asker, split: Any, limit: int, page_max: int
) -> None:
    node.add_table("wide", partitioning=split)
    keys = [f"k{n:02}" for n in range(23)]
    fill(node, "wide", keys)
    for index in range(split.count):
        # A partition may end its page early, when the values are large.
        node.replicas["wide", index].page_items_max = page_max
    found = await pages(ask, f"/v1/sample/wide/keys?limit={limit}")
    assert [item["key"] for page in found for item in page["items"]] == keys
    assert all(len(page["items"]) <= limit for page in found)
    assert set(found[0]["tokens"]) <= {f"wide-{index}" for index in range(split.count)}
    bounded = await pages(ask, f"/v1/sample/wide/keys?limit={limit}&start=k02&end=k05")
    assert [item["key"] for page in bounded for item in page["items"]] == ["k02", "k03", "k04"]


async def test_a_listing_by_range_asks_only_the_partitions_that_it_needs(node: FakeNode, ask: Asker) -> None:
    node.add_table("wide", partitioning=RangePartitioning(("h", "p")))
    fill(node, "wide", ["a", "b", "i", "j", "q"])
    await ask("GET", "/v1/sample/wide/keys?prefix=i")
    assert [len(node.replicas["wide", index].calls) for index in range(3)] == [0, 1, 0]
    await ask("GET", "/v1/sample/wide/keys?limit=2")
    assert [len(node.replicas["wide", index].calls) for index in range(3)] == [1, 1, 0]


async def test_one_partition_of_several_can_be_listed_alone(node: FakeNode, ask: Asker) -> None:
    node.add_table("wide", partitioning=RangePartitioning(("h",)))
    fill(node, "wide", ["a", "i"])
    reply = await ask("GET", "/v1/sample/wide/keys?partition=1", FenceKV_Min_Token="1.0")
    assert [item["key"] for item in document(reply)["items"]] == ["i"]
    assert (document(reply)["partition"], reply.headers["FenceKV-Seq"]) == ("wide-1", "0")


async def test_the_error_of_one_partition_is_the_error_of_the_listing(node: FakeNode, ask: Asker) -> None:
    node.add_table("wide", partitioning=HashPartitioning(3))
    node.point("wide", 1, owner="", http="")
    reply = await ask("GET", "/v1/sample/wide/keys")
    assert (reply.status, document(reply)["title"]) == (503, "Unavailable")


async def test_an_unencoded_target_is_taken_as_it_was_sent(ask: Asker, partition: FakePartition) -> None:
    url = URL(f"http://127.0.0.1:{ask.port}/v1/sample/orders/keys/a%2Fb%25", encoded=True)
    async with ask.session.put(url, data=b"v") as answer:
        assert answer.status == 200
    [write] = [part for part in partition.calls[0][1].then if isinstance(part, Put)]
    assert write.key == "a/b%"
