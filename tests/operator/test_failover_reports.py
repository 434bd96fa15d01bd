"""Reports of shards: read strictly, and no answer is no error."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from aiohttp import web

from fencekv_operator.reports import MalformedReport, Report
from fencekv_operator.shards import HttpShardClient

REPLICA: dict[str, Any] = {
    "uid": "u",
    "partition": "orders-3",
    "replica": "a3f0",
    "promised": 4,
    "epoch": 4,
    "lastEpoch": 4,
    "lastSeq": 1201,
    "lastTxid": 800,
    "appliedSeq": 1200,
    "commitSeq": 1201,
    "setVersion": 7,
    "members": ["sample-0/a3f0"],
    "role": "owner",
    "serving": True,
    "closedEpoch": 0,
    "suspect": False,
}
REPORT: dict[str, Any] = {
    "session": "sample-0/5f/9c01",
    "pod": "sample-0",
    "ready": True,
    "renewal": 412,
    "replicas": [REPLICA],
}


def test_a_report_as_documented() -> None:
    report = Report.parse(REPORT)
    replica = report.replicas["u"]
    assert (report.pod, report.renewal, str(report.session)) == ("sample-0", 412, "sample-0/5f/9c01")
    assert (replica.last_epoch, replica.last_seq, replica.set_version) == (4, 1201, 7)
    assert replica.members == ("sample-0/a3f0",)
    assert not replica.empty


@pytest.mark.parametrize(("base", "damaged"), [("sound", False), ("differs", False), ("damaged", True)])
def test_what_a_report_says_of_a_base(base: str, damaged: bool) -> None:
    told = {**REPORT, "replicas": [{**REPLICA, "base": base}]}
    assert Report.parse(told).replicas["u"].damaged is damaged


def test_what_a_shard_of_a_later_version_says_besides_is_passed_over() -> None:
    later = {**REPORT, "zone": "a", "replicas": [{**REPLICA, "lease": {"kind": "new"}, "baseSeq": 7}]}
    assert Report.parse(later) == Report.parse(REPORT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session", "sample-0"),
        ("session", None),
        ("pod", "sample-1"),
        ("ready", 1),
        ("renewal", -1),
        ("replicas", {}),
        ("replicas", [REPLICA, REPLICA]),
        ("replicas", ["x"]),
    ],
)
def test_a_malformed_report_is_refused(field: str, value: Any) -> None:
    with pytest.raises(MalformedReport):
        Report.parse({**REPORT, field: value})


@pytest.mark.parametrize("field", sorted(REPLICA))
def test_nothing_of_a_replica_may_be_missing(field: str) -> None:
    broken = copy.deepcopy(REPORT)
    del broken["replicas"][0][field]
    with pytest.raises(MalformedReport, match=field):
        Report.parse(broken)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epoch", True), ("epoch", -1), ("epoch", "4"), ("lastSeq", -2), ("role", "king"), ("members", [1])],
)
def test_no_number_is_guessed(field: str, value: Any) -> None:
    with pytest.raises(MalformedReport, match=field):
        Report.parse({**REPORT, "replicas": [{**REPLICA, field: value}]})


class Server:
    """A shard's HTTP listener, as far as the operator uses it."""

    def __init__(self) -> None:
        self.body: bytes = json.dumps(REPORT).encode()
        self.status = 200
        self.asked: list[Any] = []
        self.address = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/peer/v1/report", self.report)
        app.router.add_post("/peer/v1/release", self.release)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        return runner

    async def report(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.body, status=self.status)

    async def release(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        return web.json_response({}, status=self.status)


async def test_over_http() -> None:
    server, client = Server(), HttpShardClient()
    runner = await server.start()
    try:
        assert await client.report(server.address) == Report.parse(REPORT)
        assert await client.release(server.address, "u", 4, "sample-1")
        assert server.asked == [{"uid": "u", "epoch": 4, "target": "sample-1"}]
        server.status = 503
        assert await client.report(server.address) is None
        assert not await client.release(server.address, "u", 4, "sample-1")
        server.status, server.body = 200, b"{not json"
        assert await client.report(server.address) is None
        server.body = b"[]"
        assert await client.report(server.address) is None
    finally:
        await runner.cleanup()
    assert await client.report(server.address) is None
    assert not await client.release(server.address, "u", 4, "sample-1")
    await client.close()
