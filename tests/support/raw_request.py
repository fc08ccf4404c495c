"""A request that stays open: closing its socket is the client's disconnect."""

from __future__ import annotations

import socket

import orjson

from tests.support.service import RunningServer


def open_request(
    server: RunningServer, path: str, body: dict[str, object], *, key: str = "", header: str = ""
) -> socket.socket:
    """Send a request and leave it open."""
    content = orjson.dumps(body)
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if header:
        lines.append(header)
    lines.append(f"Content-Length: {len(content)}")
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    return connection
