"""One watch: turns the store's changes into the events of a stream.

Driven from outside: `poll()` takes what is there, `wake` is called when something comes, and the front
(or a simulation) decides about time.

Invariants:
  * Events come in commit order, each at most once, none left out while the watch is open.
  * An object that ceases to match the selector is shown as DELETED, one that begins to as ADDED.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .errors import ApiError
from .store import Change, Object, Stored, encode

EVENTS_WAITING_MAX: Final = 20_000

Render = Callable[[Stored], bytes]


class Watcher:
    """An open watch. `closed` is true once nothing more will come."""

    def __init__(
        self,
        *,
        matches: Callable[[Stored], bool],
        render: Render,
        bookmark: Callable[[int, bool], Object],
        bookmarks: bool,
        version: int,
        timeout_seconds: float | None,
    ) -> None:
        self._matches = matches
        self._render = render
        self._bookmark = bookmark
        self._queue: deque[bytes] = deque()
        self._end: Callable[[], None] = lambda: None
        self.bookmarks = bookmarks
        self.version = version
        self.timeout_seconds = timeout_seconds  # None: the front's default.
        self.closed = False
        self.wake: Callable[[], None] = lambda: None

    def attach(self, end: Callable[[], None]) -> None:
        """What to call when the watch is closed."""
        self._end = end

    def poll(self) -> list[bytes]:
        """All events that wait, as JSON documents; an empty list if there are none."""
        events = list(self._queue)
        self._queue.clear()
        return events

    def close(self) -> None:
        """End the watch; what waits can still be polled."""
        if not self.closed:
            self.closed = True
            self._end()
            self.wake()

    def fail(self, error: ApiError) -> None:
        """End the watch with an ERROR event."""
        if not self.closed:
            self._push(encode({"type": "ERROR", "object": error.document()}))
            self.close()

    def add_initial(self, stored: Stored) -> None:
        """Show an object that was there when the watch began."""
        if self._matches(stored):
            self._event(b"ADDED", stored)

    def add_bookmark(self, *, initial_end: bool = False) -> None:
        """Tell the version that the watch has reached."""
        if not self.closed and (self.bookmarks or initial_end):
            document = self._bookmark(self.version, initial_end)
            self._push(encode({"type": "BOOKMARK", "object": document}))

    def changed(self, change: Change) -> None:
        """Take one commit of the watched resource."""
        if self.closed:
            return
        self.version = change.version
        before = change.old is not None and self._matches(change.old)
        after = change.new is not None and self._matches(change.new)
        if after:
            self._event(b"MODIFIED" if before else b"ADDED", change.last)
        elif before:
            self._event(b"DELETED", _as_seen(change))
        if len(self._queue) > EVENTS_WAITING_MAX:  # A reader that has stopped reading.
            self._queue.clear()
            self.close()

    def _event(self, kind: bytes, stored: Stored) -> None:
        self._push(b'{"type":"' + kind + b'","object":' + self._render(stored) + b"}")

    def _push(self, event: bytes) -> None:
        self._queue.append(event)
        self.wake()


def _as_seen(change: Change) -> Stored:
    """The object that leaves the watch: as it was when it still matched, at the version of its leaving."""
    if change.new is None:
        return change.last
    assert change.old is not None, change.key
    obj: dict[str, Any] = dict(change.old.object)
    obj["metadata"] = {**obj["metadata"], "resourceVersion": str(change.version)}
    return Stored(change.key, obj, change.version)
