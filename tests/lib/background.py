"""Servers for tests of programs that run an event loop of their own: they run on a loop in another thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from aiohttp import web

T = TypeVar("T")


@contextlib.contextmanager
def in_background(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enters an asynchronous context on a loop in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        value = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(10)
        try:
            yield value
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.asynccontextmanager
async def kubernetes_lists(objects: Mapping[str, list[dict[str, Any]]]) -> Any:
    """An API server that knows lists alone: `objects` by plural. Labels select as they should; yields its URL."""

    async def handle(request: web.BaseRequest) -> web.Response:
        items = objects.get(request.path.rsplit("/", 1)[1])
        if items is None:
            return web.json_response({"kind": "Status", "reason": "NotFound", "message": "no"}, status=404)
        wanted = [term.split("=") for term in request.query.get("labelSelector", "").split(",") if term]
        for term in wanted:
            items = [item for item in items if _labelled(item, *term)]
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _labelled(item: Mapping[str, Any], name: str, value: str | None = None) -> bool:
    labels = item["metadata"].get("labels") or {}
    return name in labels and (value is None or labels[name] == value)
