"""Requests over HTTP, for where frames do not get through.

Invariants:
  * An answer says the same as over frames would; what cannot be said in HTTP is not needed by the SDK.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from fencekv import http_form
from fencekv import messages as m
from fencekv.errors import FenceKVError
from fencekv.sending import Attempt, Broken, Build, Refused
from fencekv.transport import make_session, send

ANSWER_SECONDS_MAX: Final = 3600.0  # the caller gives up by itself, and earlier


class Sending(Attempt):
    """A request on a connection of its own."""

    __slots__ = ("task",)

    task: asyncio.Task[None]

    def give_up(self, error: Exception) -> None:
        """Closes the connection."""
        if not self.future.done():
            self.future.set_exception(error)
        self.task.cancel()


class HttpTransport:
    """Sends over one pool of connections. Made within a running loop."""

    def __init__(self, *, namespace: str) -> None:
        self._namespace = namespace
        self._session = make_session()
        self._under_way: set[Sending] = set()

    def send(self, address: str, operation: int, build: Build, options: m.Options | None) -> Sending | None:
        """Sends a request.

        Raises:
            Invalid: it cannot be sent at all.
        """
        request = build(0, options)
        form = http_form.request_form(self._namespace, request)
        sending = Sending(asyncio.get_running_loop().create_future(), address)
        sending.task = asyncio.ensure_future(self._send(sending, request, form))
        self._under_way.add(sending)
        sending.task.add_done_callback(lambda _: self._under_way.discard(sending))
        return sending

    async def ready(self, address: str, *, seconds: float) -> None:
        """Every request makes the connection that it needs."""

    def under_way(self) -> Iterable[Attempt]:
        """The attempts that have not ended."""
        return list(self._under_way)

    async def close(self) -> None:
        """Closes all connections; what is under way breaks."""
        for sending in list(self._under_way):
            sending.give_up(Broken("closed by this client"))
        await asyncio.gather(*(sending.task for sending in self._under_way), return_exceptions=True)
        await self._session.close()

    async def _send(self, sending: Sending, request: m.Request, form: http_form.Form) -> None:
        try:
            reply = await send(
                self._session,
                method=form.method,
                url=f"http://{sending.address}{form.target}",
                headers=form.headers,
                body=form.body,
                timeout=ANSWER_SECONDS_MAX,
            )
            answer = http_form.read_answer(request, reply)
        except (Refused, Broken, FenceKVError) as error:
            if not sending.future.done():
                sending.future.set_exception(error)
        else:
            if not sending.future.done():
                sending.future.set_result(answer)
