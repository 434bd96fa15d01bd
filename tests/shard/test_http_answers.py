"""Answers as they go over an HTTP connection: what is put together by hand says the same as an encoder would."""

from __future__ import annotations

import json

import pytest

from fencekv_shard.http_answers import HttpAnswer, content, encode


@pytest.mark.parametrize(
    "text",
    ["", "plain", '"quoted" \\ back', "line\nbreak\ttab\x00\x1f\x7f", "käse 鍵 🔑", "a lone \udcff of a header"],
)
def test_a_document_of_texts_is_the_json_that_an_encoder_makes(text: str) -> None:
    document = {"title": "Invalid", "detail": text, text: "as a name"}
    want = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    body, _ = content(HttpAnswer(status=400, body=document), cbor=False)
    assert body == want


@pytest.mark.parametrize("other", [None, True, 7, ["a"], {"nested": "text"}])
def test_a_document_that_holds_more_than_texts_is_encoded_whole(other: object) -> None:
    body, _ = content(HttpAnswer(status=200, body={"first": "text", "other": other}), cbor=False)
    assert json.loads(body) == {"first": "text", "other": other}


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 1 << 20])
@pytest.mark.parametrize("headless", [False, True])
def test_head_and_body_in_one_piece_or_two_are_the_same_bytes(size: int, headless: bool) -> None:
    answer = HttpAnswer(status=200, body=bytes(size), content_type="application/octet-stream")
    pieces = encode(answer, cbor=False, version="1.1", keep_alive=True, headless=headless, date="now")
    head, end, body = b"".join(pieces).partition(b"\r\n\r\n")
    assert end
    assert f"Content-Length: {size}\r\n".encode() in head + b"\r\n"
    assert body == (b"" if headless else bytes(size))
