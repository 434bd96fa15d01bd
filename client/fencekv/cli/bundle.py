"""A support bundle: what goes into it, and the archive.

Invariants:
  * No Secret and no ConfigMap is ever read. Every object and every text passes `redact` on its way in.
  * It is bounded, a file and the whole of it; what was cut or left out, and why, stands in `manifest.json`.
  * The same files give the same archive: names are sorted, times are fixed.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fencekv.cli.redact import redacted, redacted_text

FILE_BYTES_MAX: Final = 4 << 20
BUNDLE_BYTES_MAX: Final = 64 << 20
OBJECTS_MAX: Final = 5000  # of a kind
SUFFIXES: Final = (".zip", ".tar.gz", ".tgz")
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can carry

WARNING: Final = (
    "Secrets and ConfigMaps are not in here, and what looks like a credential was taken out of objects and logs. "
    "That is done by names and forms, which cannot be complete: look through it before you give it away."
)


class Bundle:
    """Files by name, as they are gathered."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.notes: list[str] = []
        self._bytes = 0

    def add_objects(self, name: str, items: list[dict[str, Any]]) -> None:
        """A kind of objects, as one YAML file."""
        import yaml  # noqa: PLC0415 (help must not wait for it)

        if len(items) > OBJECTS_MAX:
            self.notes.append(f"{name}: the first {OBJECTS_MAX} of {len(items)} objects")
        documents = [redacted(item) for item in items[:OBJECTS_MAX]]
        self._add(f"{name}.yaml", yaml.safe_dump_all(documents, sort_keys=False).encode() if documents else b"")

    def add_document(self, name: str, document: Mapping[str, Any]) -> None:
        """A JSON document."""
        self._add(f"{name}.json", json.dumps(redacted(document), indent=1).encode())

    def add_text(self, name: str, text: bytes) -> None:
        """A log or a page; the end of it, if it is too long."""
        self._add(name, redacted_text(text.decode(errors="replace")).encode(), keep_end=True)

    def missing(self, name: str, why: object) -> None:
        """Something could not be had."""
        self.notes.append(f"{name}: left out: {redacted_text(str(why))}")

    def _add(self, name: str, data: bytes, *, keep_end: bool = False) -> None:
        assert name not in self.files, name
        room = min(FILE_BYTES_MAX, BUNDLE_BYTES_MAX - self._bytes)
        if len(data) > room:
            self.notes.append(f"{name}: {room} of {len(data)} bytes")
            data = data[len(data) - room :] if keep_end else data[:room]
        self._bytes += len(data)
        self.files[name] = data

    def archive(self, kind: str, *, about: Mapping[str, Any]) -> bytes:
        """The whole, as `kind` of SUFFIXES asks; `about` goes into its manifest."""
        manifest = {
            **about,
            "warning": WARNING,
            "notes": self.notes,
            "files": {n: len(d) for n, d in sorted(self.files.items())},
        }
        files = {**self.files, "manifest.json": json.dumps(manifest, indent=1).encode()}
        return _zip(files) if kind == ".zip" else _tar(files)


def suffix_of(path: Path) -> str | None:
    """Which kind of archive a file's name asks for; None: none that we make."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def _zip(files: Mapping[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(f"fencekv-report/{name}", EPOCH), data, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    whole = io.BytesIO()
    # The time of its making stands in a gzip header as well.
    with (
        gzip.GzipFile(fileobj=whole, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"fencekv-report/{name}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return whole.getvalue()
