"""Bytes of a connection, read into HTTP requests: httptools splits them, this module bounds them. No sockets.

Invariants:
  * Requests come out in the order in which they were sent, each with its body whole or with what is wrong with it.
  * Behind a request whose end is not known for certain nothing more is read: what follows could be another request
    to one reader and a part of its body to the next.
  * What a request may hold is bounded while it arrives: target, each field, all fields, body.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import httptools

from fencekv.errors import FenceKVError, Invalid
from fencekv_shard.http_requests import Matched, check_body_size, match

TARGET_BYTES_MAX: Final = 64 * 1024  # cursors over many partitions travel in the query
FIELD_BYTES_MAX: Final = 16 * 1024  # name and value of one header
FIELDS_BYTES_MAX: Final = 64 * 1024  # of all headers of a request
FIELDS_MAX: Final = 128
_UNREAD_BYTES_MAX: Final = (
    FIELD_BYTES_MAX + 256
)  # that the parser holds back: a field not whole, and its line's ends

_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


class Request:
    """A request as it came. A plain class, because one is made for each."""

    __slots__ = (
        "body",
        "continues",
        "headers",
        "keep_alive",
        "matched",
        "method",
        "refusal",
        "target",
        "version",
    )

    def __init__(self) -> None:
        self.method = self.target = ""
        self.version = "1.1"
        self.headers: list[tuple[str, str]] = []
        self.matched: Matched | None = None  # None: it is refused
        self.refusal: FenceKVError | None = None  # None: nothing is wrong with it so far
        self.body = b""
        self.continues = False  # its client waits to be told to send the body
        self.keep_alive = False

    @property
    def name(self) -> str:
        """Of its route."""
        return self.matched.route.name if self.matched is not None else "none"


class Reader:
    """The requests of a connection; `ended`: there will be no more, whatever comes."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()  # whole, or refused; the caller takes them out
        self.ended = False
        self.body_bytes = 0  # of the request that is not whole yet
        self._parser: Any = httptools.HttpRequestParser(self)
        self._partial: Request | None = None  # None: between two requests
        self._target: list[bytes] = []
        self._parts: list[bytes] = []
        self._framing: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._in_body = False
        self._discards = False  # nobody looks at its body
        self._unread_bytes = 0

    @property
    def partial(self) -> bool:
        """Whether a request has come in part."""
        return self._partial is not None

    @property
    def in_body(self) -> bool:
        """Whether it is its body that has come in part."""
        return self._partial is not None and self._in_body

    def feed(self, data: bytes) -> None:
        """Reads on."""
        if self.ended:
            return
        self._unread_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a bug of ours
        except httptools.HttpParserUpgrade:
            assert self.ended  # by `_head`: nothing else is spoken here
        except httptools.HttpParserError as error:
            self.refuse(_wrong(str(error)))
        partial = self._partial
        if partial is None:
            return
        if partial.refusal is not None:
            self.refuse(partial.refusal)  # its answer does not wait for the rest of its body
        elif self._unread_bytes > _UNREAD_BYTES_MAX:
            self.refuse(_too_long("a header or a line", FIELD_BYTES_MAX))

    def refuse(self, error: FenceKVError) -> None:
        """Ends the connection's requests with one that is answered by this error."""
        if self.ended:
            return
        request = self._partial or Request()
        request.refusal = request.refusal or error
        request.keep_alive = False
        self._complete(request)

    def go_on(self) -> bool:
        """Whether the client is to be told to send the body that it holds back; true once."""
        due = self._partial is not None and self._partial.continues
        if self._partial is not None:
            self._partial.continues = False
        return due

    def close(self) -> None:
        """Reads no more, and forgets what is left. Parser and reader know each other: this parts them."""
        self.ended = True
        self._partial = None
        self.requests.clear()
        self._parts.clear()
        self.body_bytes = 0
        self._parser = None

    # -- what the parser says

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self.ended:
            return
        self._partial = Request()
        self._head_bytes = self._unread_bytes = 0
        self._in_body = self._discards = False

    def on_url(self, part: bytes) -> None:
        """A part of the target."""
        if self._partial is None:
            return
        self._unread_bytes = 0
        self._target.append(part)
        self._head_bytes += len(part)
        if self._head_bytes > TARGET_BYTES_MAX:
            self.refuse(_too_long("its target", TARGET_BYTES_MAX))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind a body."""
        partial = self._partial
        if partial is None:
            return
        if self._in_body:
            self.refuse(_wrong("no fields are taken behind a body"))  # a condition could be among them
            return
        if self._target:
            self._end_target(partial)
        self._unread_bytes = 0
        size = len(name) + len(value)
        self._head_bytes += size
        if size > FIELD_BYTES_MAX:
            self.refuse(_too_long("a header", FIELD_BYTES_MAX))
        elif self._head_bytes > FIELDS_BYTES_MAX:
            self.refuse(_too_long("all its headers", FIELDS_BYTES_MAX))
        elif len(partial.headers) >= FIELDS_MAX:
            self.refuse(Invalid(f"request: more than {FIELDS_MAX} headers", field="request", limit=FIELDS_MAX))
        value = value.rstrip(b" \t")
        lower = name.lower()
        if lower in _FRAMING:
            if lower in self._framing:
                self.refuse(_wrong(f"{lower.decode().title()} is given twice"))
            self._framing[lower] = value
        partial.headers.append((name.decode("ascii"), value.decode("utf-8", "surrogateescape")))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        partial = self._partial
        if partial is None:
            return
        if self._target:
            self._end_target(partial)
        self._in_body = True
        framing = self._framing
        parser = self._parser
        partial.method = parser.get_method().decode("ascii")
        partial.version = parser.get_http_version()
        partial.keep_alive = parser.should_keep_alive() and not parser.should_upgrade()
        if partial.version not in {"1.0", "1.1"}:
            partial.version = "1.1"
            self.refuse(_wrong("its version is neither HTTP/1.1 nor HTTP/1.0"))
            return
        if b"host" not in framing and partial.version == "1.1":
            self.refuse(_wrong("Host is missing"))
            return
        coding = framing.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or partial.version == "1.0"):
            self.refuse(_wrong("Transfer-Encoding: want chunked, and HTTP/1.1"))
            return
        try:
            matched = partial.matched = match(partial.method, partial.target)
            # Pages of the shard itself take no body.
            self._discards = "table" not in matched.names and not matched.route.body_bytes_max
            announced = framing.get(b"content-length")
            if announced is not None and not self._discards:
                check_body_size(matched.route, int(announced))
        except FenceKVError as error:
            partial.refusal, self._discards = error, True
        else:
            expect = framing.get(b"expect", b"").lower()
            partial.continues = expect == b"100-continue" and partial.version == "1.1"
        framing.clear()

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        partial = self._partial
        if partial is None:
            return
        self._unread_bytes = 0
        if self._discards:
            return
        assert partial.matched is not None, partial.target
        self._parts.append(part)
        self.body_bytes += len(part)
        try:
            check_body_size(partial.matched.route, self.body_bytes)
        except FenceKVError as error:
            partial.refusal, self._discards = error, True

    def on_message_complete(self) -> None:
        """The request is whole."""
        partial = self._partial
        if partial is not None:
            self._complete(partial)

    def _complete(self, request: Request) -> None:
        parts = self._parts
        if parts and request.refusal is None:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._target.clear()
        self._framing.clear()
        self.body_bytes = 0
        self._partial = None
        self.ended = not request.keep_alive
        self.requests.append(request)

    def _end_target(self, request: Request) -> None:
        request.target = b"".join(self._target).decode("utf-8", "surrogateescape")
        self._target.clear()
        self._head_bytes = 0


def _wrong(text: str) -> Invalid:
    return Invalid(f"request: {text}", field="request")


def _too_long(what: str, limit: int) -> Invalid:
    return Invalid(f"request: {what} is longer than {limit} bytes", field="request", limit=limit)
