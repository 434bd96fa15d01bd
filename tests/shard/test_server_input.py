"""Every wrong request is refused with the error, the status, the field and the limit, and reaches no partition."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from fake_node import FakeNode
from yarl import URL

from fencekv.codec import encode
from fencekv.partitioning import HashPartitioning
from fencekv.wire import ListCursor, encode_list_cursor, listing_id
from fencekv_shard.server import Running

KEY = "/v1/sample/orders/keys/k"
TXN = "/v1/sample/orders/txn"
LIST = "/v1/sample/orders/keys"
HISTORY = "/v1/sample/orders/history/k"
JSON = {"Content-Type": "application/json"}
CBOR = {"Content-Type": "application/cbor"}
OTHER_CURSOR = encode_list_cursor(ListCursor("a", ()), listing_id("customers", "", "", None))


@dataclass(frozen=True)
class Row:
    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 400
    title: str = "Invalid"
    at: str | None = None  # the problem's `field`
    limit: Any = None


def txn(name: str, document: object, at: str, **more: Any) -> Row:
    return Row(f"txn: {name}", "POST", TXN, json.dumps(document).encode(), JSON, at=at, **more)


def put(key: str, **more: Any) -> dict[str, Any]:
    return {"put": {"key": key, "value": "v", **more}}


def compare(**members: Any) -> dict[str, Any]:
    return {
        "compare": [{"key": "k", "target": "exists", "op": "==", "exists": True} | members],
        "then": [put("k")],
    }


DEEP = b"[" * 40 + b"]" * 40

ROWS = [
    # paths and methods
    Row("unknown path", "GET", "/v2/sample", status=404, at="path"),
    Row("unknown part", "GET", "/v1/sample/orders/values/k", status=404, at="path"),
    Row("root", "GET", "/", status=404, at="path"),
    Row("wrong method on a key", "POST", KEY, b"v", status=405, at="method"),
    Row("wrong method on txn", "GET", TXN, status=405, at="method"),
    Row("wrong method on health", "PUT", "/healthz", status=405, at="method"),
    Row("unknown namespace", "GET", "/v1/other/orders/keys/k", status=404, at="namespace"),
    Row("unknown table", "GET", "/v1/sample/nothing/keys/k", status=404, at="table"),
    Row(
        "unknown table in txn",
        "POST",
        "/v1/sample/nothing/txn",
        b'{"then":[{"get":{"key":"k"}}]}',
        JSON,
        404,
        at="table",
    ),
    Row("empty table", "GET", "/v1/sample//keys/k", status=404, at="table", limit=253),
    Row("table too long", "GET", f"/v1/sample/{'t' * 254}/keys/k", status=404, at="table", limit=253),
    Row("target too long", "GET", f"{LIST}?prefix={'x' * 70_000}", at="request", limit=64 * 1024),
    # keys
    Row("empty key", "GET", "/v1/sample/orders/keys/", at="key"),
    Row("empty key in history", "GET", "/v1/sample/orders/history/", at="key"),
    Row("key with NUL", "PUT", "/v1/sample/orders/keys/a%00b", b"v", at="key"),
    Row("reserved key", "PUT", "/v1/sample/orders/keys/%01a", b"v", at="key"),
    Row("key too long", "PUT", f"/v1/sample/orders/keys/{'k' * 1025}", b"v", {}, 413, "TooLarge", "key", 1024),
    Row(
        "key too long in bytes",
        "GET",
        f"/v1/sample/orders/keys/{'%C3%A9' * 513}",
        b"",
        {},
        413,
        "TooLarge",
        "key",
        1024,
    ),
    Row("key not UTF-8", "GET", "/v1/sample/orders/keys/%FF", at="key"),
    Row("key with half an escape", "GET", "/v1/sample/orders/keys/a%2", at="key"),
    Row("key with a wrong escape", "GET", "/v1/sample/orders/keys/a%zz", at="key"),
    Row("key with a bare slash", "GET", "/v1/sample/orders/keys/a/b", at="key"),
    # bodies
    Row("body of a GET", "GET", KEY, b"x", at="body", limit=0),
    Row("body of a DELETE", "DELETE", KEY, b"x", at="body", limit=0),
    Row("value too large", "PUT", KEY, b"x" * ((1 << 20) + 1), {}, 413, "TooLarge", "value", 1 << 20),
    Row("compressed body", "PUT", KEY, b"x", {"Content-Encoding": "gzip"}, at="Content-Encoding"),
    Row("value over the table's limit", "PUT", "/v1/sample/small/keys/k1", b"12345", {}, 422, at="value", limit=4),
    Row(
        "key against the table's pattern",
        "PUT",
        "/v1/sample/small/keys/x",
        b"1",
        {},
        422,
        at="key",
        limit="k[0-9]",
    ),
    Row(
        "value over the table's limit in txn",
        "POST",
        "/v1/sample/small/txn",
        json.dumps({"then": [put("k1", value="12345")]}).encode(),
        JSON,
        422,
        at="value",
        limit=4,
    ),
    # headers
    Row("unknown header of ours", "GET", KEY, headers={"FenceKV-Consistancy": "cached"}, at="FenceKV-Consistancy"),
    Row("unknown consistency", "GET", KEY, headers={"FenceKV-Consistency": "confirmed"}, at="FenceKV-Consistency"),
    Row("unknown durability", "PUT", KEY, b"v", {"FenceKV-Durability": "durable"}, at="FenceKV-Durability"),
    Row("durability in capitals", "PUT", KEY, b"v", {"FenceKV-Durability": "Standard"}, at="FenceKV-Durability"),
    Row("token without epoch", "GET", KEY, headers={"FenceKV-Min-Token": "12"}, at="FenceKV-Min-Token"),
    Row("token with sign", "GET", KEY, headers={"FenceKV-Min-Token": "1.-2"}, at="FenceKV-Min-Token"),
    Row("token with zeros before", "GET", KEY, headers={"FenceKV-Min-Token": "01.2"}, at="FenceKV-Min-Token"),
    Row("token too large", "GET", KEY, headers={"FenceKV-Min-Token": "1." + "9" * 19}, at="FenceKV-Min-Token"),
    Row("epoch no number", "GET", KEY, headers={"FenceKV-Epoch": "x"}, at="FenceKV-Epoch", limit=2**31 - 1),
    Row("epoch too large", "GET", KEY, headers={"FenceKV-Epoch": str(2**31)}, at="FenceKV-Epoch", limit=2**31 - 1),
    Row("empty forwarder", "GET", KEY, headers={"FenceKV-Forwarded": ""}, at="FenceKV-Forwarded", limit=253),
    Row("empty idempotency key", "PUT", KEY, b"v", {"Idempotency-Key": ""}, at="Idempotency-Key"),
    Row(
        "idempotency key too long",
        "PUT",
        KEY,
        b"v",
        {"Idempotency-Key": "i" * 257},
        at="Idempotency-Key",
        limit=256,
    ),
    Row("idempotency key of a read", "GET", KEY, headers={"Idempotency-Key": "i"}, at="Idempotency-Key"),
    Row("If-Match without quotes", "PUT", KEY, b"v", {"If-Match": "1.2"}, at="If-Match"),
    Row("If-Match of no version", "PUT", KEY, b"v", {"If-Match": '"abc"'}, at="If-Match"),
    Row("If-Match of half a version", "PUT", KEY, b"v", {"If-Match": '"1."'}, at="If-Match"),
    Row("If-None-Match of a version", "PUT", KEY, b"v", {"If-None-Match": '"1.2"'}, at="If-None-Match"),
    Row("both conditions", "PUT", KEY, b"v", {"If-Match": "*", "If-None-Match": "*"}, at="If-None-Match"),
    Row("If-Match of a read", "GET", KEY, headers={"If-Match": "*"}, at="If-Match"),
    Row("If-Match of a txn", "POST", TXN, b"{}", JSON | {"If-Match": "*"}, at="If-Match"),
    # queries
    Row("unknown parameter", "GET", f"{LIST}?prefixes=a", at="prefixes"),
    Row("parameter of a get", "GET", f"{KEY}?limit=1", at="limit"),
    Row("parameter twice", "GET", f"{LIST}?limit=1&limit=2", at="limit"),
    Row("limit 0", "GET", f"{LIST}?limit=0", at="limit", limit=1000),
    Row("limit too large", "GET", f"{LIST}?limit=1001", at="limit", limit=1000),
    Row("limit no number", "GET", f"{LIST}?limit=ten", at="limit", limit=1000),
    Row("limit negative", "GET", f"{HISTORY}?limit=-1", at="limit", limit=1000),
    Row("prefix with NUL", "GET", f"{LIST}?prefix=%00", at="prefix"),
    Row("prefix too long", "GET", f"{LIST}?prefix={'p' * 1025}", b"", {}, 413, "TooLarge", "prefix", 1024),
    Row("prefix not UTF-8", "GET", f"{LIST}?prefix=%C3", at="prefix"),
    Row("cursor no cursor", "GET", f"{LIST}?cursor=abc", at="cursor"),
    Row("cursor not base64", "GET", f"{LIST}?cursor=%25%25", at="cursor"),
    Row("cursor of another request", "GET", f"{LIST}?cursor={OTHER_CURSOR}", at="cursor"),
    Row("cursor too long", "GET", f"{LIST}?cursor={'A' * 33_000}", at="cursor", limit=32 * 1024),
    Row("cursor of history malformed", "GET", f"{HISTORY}?cursor=gA", at="cursor"),
    Row("partition no number", "GET", f"{LIST}?partition=x", at="partition", limit=1023),
    Row("partition beyond the table", "GET", f"{LIST}?partition=4", at="partition", limit=3),
    Row("token for several partitions", "GET", LIST, headers={"FenceKV-Min-Token": "1.1"}, at="FenceKV-Min-Token"),
    Row("route of an empty key", "GET", "/v1/route/sample/orders?key=", at="key"),
    Row("route of an unknown table", "GET", "/v1/route/sample/nothing", status=404, at="table"),
    # transactions
    Row("txn without type", "POST", TXN, b"{}", {"Content-Type": "text/plain"}, at="Content-Type"),
    Row("txn: malformed JSON", "POST", TXN, b'{"then": [', JSON, at="body"),
    Row("txn: empty body", "POST", TXN, b"", JSON, at="body"),
    Row("txn: JSON not UTF-8", "POST", TXN, b'{"\xff": 1}', JSON, at="body"),
    Row("txn: JSON key twice", "POST", TXN, b'{"then": [], "then": []}', JSON, at="body"),
    Row("txn: NaN", "POST", TXN, b'{"then": NaN}', JSON, at="body"),
    Row("txn: JSON too deep", "POST", TXN, DEEP, JSON, at="body", limit=16),
    Row("txn: malformed CBOR", "POST", TXN, b"\xff\x00", CBOR, at="body"),
    Row("txn: CBOR with bytes behind", "POST", TXN, encode({"then": []}) + b"\x00", CBOR, at="body"),
    Row("txn: CBOR not canonical", "POST", TXN, b"\xbf\x64then\x80\xff", CBOR, at="body"),
    Row("txn: CBOR with a tag", "POST", TXN, b"\xc1\x1a\x51\x4b\x67\xb0", CBOR, at="body"),
    Row("txn: body too large", "POST", TXN, b" " * 16_000_001, JSON, 413, "TooLarge", "body", 16_000_000),
    txn("an array", [], "body"),
    txn("nothing in it", {}, "then"),
    txn("unknown member", {"then": [], "otherwise": []}, "otherwise"),
    txn("then no array", {"then": {}}, "then"),
    txn("operation no object", {"then": ["put"]}, "then[0]"),
    txn("operation unknown", {"then": [{"add": {"key": "k"}}]}, "then[0].add"),
    txn("operation of two", {"then": [{"get": {"key": "k"}, "delete": {"key": "k"}}]}, "then[0]"),
    txn("put without value", {"then": [{"put": {"key": "k"}}]}, "then[0].put.value"),
    txn("put with two values", {"then": [put("k", base64="dg==")]}, "then[0].put.value"),
    txn("put of a number", {"then": [put("k", value=1)]}, "then[0].put.value"),
    txn("put of bad base64", {"then": [{"put": {"key": "k", "base64": "%"}}]}, "then[0].put.base64"),
    txn("put of a lone surrogate", {"then": [put("k", value="\ud800")]}, "then[0].put.value"),
    txn("put with unknown member", {"then": [put("k", ttl=1)]}, "then[0].put.ttl"),
    txn("key missing", {"else": [{"get": {}}]}, "else[0].get.key"),
    txn("key a number", {"then": [{"delete": {"key": 7}}]}, "then[0].delete.key"),
    txn("key empty", {"then": [{"get": {"key": ""}}]}, "key"),
    txn("key with NUL", {"then": [{"get": {"key": "\x00"}}]}, "key"),
    txn("key a lone surrogate", {"then": [{"get": {"key": "\ud800"}}]}, "key"),
    txn("key too long", {"then": [put("k" * 1025)]}, "key", status=413, title="TooLarge", limit=1024),
    txn(
        "value too large",
        {"then": [put("k", value="x" * 1048577)]},
        "value",
        status=413,
        title="TooLarge",
        limit=1 << 20,
    ),
    txn(
        "too many operations",
        {"then": [{"get": {"key": "k"}}] * 1001},
        "txn",
        status=413,
        title="TooLarge",
        limit=1000,
    ),
    txn(
        "too many bytes",
        {"then": [put("k", value="x" * 1_000_000)] * 11},
        "txn",
        status=413,
        title="TooLarge",
        limit=10_000_000,
    ),
    txn("keys of several partitions", {"then": [put(f"k{n}") for n in range(20)]}, "txn"),
    txn("compare unknown target", compare(target="age"), "compare[0].target"),
    txn("compare unknown op", compare(op=">="), "compare[0].op"),
    txn("compare without op", {"compare": [{"key": "k", "target": "exists"}], "then": []}, "compare[0].op"),
    txn("compare exists by order", compare(op="<"), "compare[0].op"),
    txn("compare exists of a text", compare(exists="yes"), "compare[0].exists"),
    txn("compare operand of another target", compare(version="1.1"), "compare[0].version"),
    txn(
        "compare version of no shape",
        {"compare": [{"key": "k", "target": "version", "op": "==", "version": "1"}]},
        "compare[0].version",
    ),
    txn(
        "compare value of nothing", {"compare": [{"key": "k", "target": "value", "op": "=="}]}, "compare[0].value"
    ),
    txn("compare unknown member", compare(extra=1), "compare[0].extra"),
]


@pytest.fixture(scope="module", name="node")
def make_node() -> FakeNode:
    node = FakeNode()
    node.add_table("orders", partitioning=HashPartitioning(4))
    node.add_table("small", value_bytes_max=4, key_pattern="k[0-9]")
    return node


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_a_wrong_request_is_refused_and_changes_nothing(row: Row, node: FakeNode, shard: Running) -> None:
    url = URL(f"http://127.0.0.1:{shard.port}{row.path}", encoded=True)
    headers = {"Content-Type": "application/octet-stream"} | row.headers
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            row.method, url, data=io.BytesIO(row.body) if row.body else None, headers=headers
        ) as answer,
    ):
        problem = json.loads(await answer.read())
        assert (answer.status, problem["status"]) == (row.status, row.status), problem
        assert answer.content_type == "application/problem+json"
        assert (problem["title"], problem.get("field")) == (row.title, row.at), problem
        assert problem.get("limit") == row.limit, problem
        assert problem["type"] == f"https://fencekv.io/errors/{row.title.lower()}"
        assert problem["detail"]
    assert node.calls == []


def test_there_are_many_rows_and_each_has_its_own_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 50


async def _raw(shard: Running, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", shard.port)
    writer.write(data)
    await writer.drain()
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    body = await asyncio.wait_for(reader.read(4096), 5)
    writer.close()
    return head + body


async def test_a_header_of_ours_given_twice_is_refused(node: FakeNode, shard: Running) -> None:
    twice = b"FenceKV-Min-Token: 1.1\r\nfencekv-min-token: 1.2\r\n"
    answer = await _raw(shard, b"GET /v1/sample/orders/keys/k HTTP/1.1\r\nHost: x\r\n" + twice + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"field":"FenceKV-Min-Token"' in answer
    assert node.calls == []


async def test_what_is_no_http_is_refused_like_the_rest(shard: Running) -> None:
    answer = await _raw(shard, b"\x16\x03\x01 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.")
    assert b" 400 " in answer
    assert b"application/problem+json" in answer
    assert b'"field":"request"' in answer


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(node: FakeNode, shard: Running) -> None:
    head = b"PUT /v1/sample/orders/keys/k HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    answer = await _raw(shard, head)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"limit":1048576' in answer
    assert node.calls == []


async def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(node: FakeNode, shard: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    url = f"http://127.0.0.1:{shard.port}{KEY}"
    async with aiohttp.ClientSession() as session, session.put(url, data=endless()) as answer:
        assert answer.status == 413
        assert (await answer.json(content_type=None))["limit"] == 1 << 20
    assert node.calls == []


async def test_a_body_that_breaks_off_reaches_no_partition(node: FakeNode, shard: Running) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", shard.port)
    writer.write(b"PUT /v1/sample/orders/keys/k HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # A later request on another connection is answered after the broken one was given up.
    answer = await _raw(shard, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert node.calls == []
