"""Scripts of other origins: nothing by default, what was allowed otherwise, and never without a key."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.support.service import RunningServer, run_server

ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-request-timeout",
}


def test_by_default_no_origin_is_let_in(echo: RunningServer, http: httpx.Client) -> None:
    answer = http.options("/v1/chat/completions", headers=PREFLIGHT)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "access-control-allow-origin" not in http.get("/v1/models", headers={"Origin": ORIGIN}).headers


def test_an_allowed_origin_gets_through_and_needs_its_key_all_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    fields = {"cors_origins": (ORIGIN,), "api_key_file": keys}
    with run_server(checkpoint, **fields) as server, httpx.Client(base_url=server.url) as http:
        preflight = http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "x-request-timeout" in preflight.headers["access-control-allow-headers"]
        refused = http.get("/v1/models", headers={"Origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        headers = {"Origin": ORIGIN, "Authorization": "Bearer first-key"}
        answer = http.get("/v1/models", headers=headers)
        assert answer.status_code == 200
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
        other = {**headers, "Origin": "https://evil.example"}
        assert "access-control-allow-origin" not in http.get("/v1/models", headers=other).headers
        assert http.options("/v1/models", headers={**PREFLIGHT, **other}).status_code == 400
