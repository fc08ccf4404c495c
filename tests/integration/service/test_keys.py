"""API keys: every path needs one but for the public list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.auth import PUBLIC_PATHS, scope_of
from service.keys.entry import Scope
from tests.support.service import RunningServer, run_server


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("# staff\nfirst-key\n\n  second-key  \n")
    with run_server(checkpoint, api_key_file=path) as server:
        yield server


def test_the_public_list_is_the_probes_only() -> None:
    assert frozenset({"/health/live", "/health/ready", "/health/startup"}) == PUBLIC_PATHS


def test_every_route_without_a_key_is_refused(guarded: RunningServer) -> None:
    with httpx.Client(base_url=guarded.url) as http:
        document = http.get("/openapi.json", headers={"Authorization": "Bearer first-key"}).json()
        routes = [(path, method) for path, operations in document["paths"].items() for method in operations]
        assert len(routes) >= 10
        for path, method in [*routes, ("/openapi.json", "get"), ("/nothing", "get"), ("/docs", "get")]:
            answer = http.request(method, path.replace("{model_id}", "tiny"))
            if path in PUBLIC_PATHS:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "x-request-id" in answer.headers


def paths_of(routes: Iterable[Any]) -> Iterator[str]:
    """The paths of routes and of the routers among them (newer FastAPI keeps those as they are)."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        yield from [route.path] if inner is None else paths_of(inner.routes)


def test_the_document_lists_all_routes_of_the_app(guarded: RunningServer) -> None:
    # What the test above walks through is complete: nothing is routed that the document does not show.
    routed = set(paths_of(guarded.app.routes))
    documented = {path.replace("{model_id}", "{model_id:path}") for path in guarded.document()["paths"]}
    assert routed - documented == {"/openapi.json"}


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_of_the_file_is_good(guarded: RunningServer, key: str) -> None:
    with guarded.client(key) as client:
        assert [model.id for model in client.models.list()] == ["tiny", "org/tiny"]


@pytest.mark.parametrize("key", ["third-key", "first-ke", "first-key2", "# staff", "FIRST-KEY"])
def test_other_keys_are_not(guarded: RunningServer, key: str) -> None:
    with guarded.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize("header", ["first-key", "Basic first-key", "Bearer", "Bearer \xff"])
def test_malformed_authorization(guarded: RunningServer, header: str) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


def test_no_keys_means_open(http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 200


def test_without_keys_the_administrators_paths_are_closed(http: httpx.Client) -> None:
    for method, path in (("GET", "/admin/keys"), ("POST", "/admin/keys/reload"), ("GET", "/admin/nothing")):
        answer = http.request(method, path)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "missing_scope"


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/metrics", Scope.METRICS),
        ("/metrics/", Scope.INFERENCE),
        ("/admin", Scope.ADMIN),
        ("/admin/keys", Scope.ADMIN),
        ("/administrator", Scope.INFERENCE),
        ("/v1/chat/completions", Scope.INFERENCE),
        ("/nothing", Scope.INFERENCE),
    ],
)
def test_each_path_needs_its_scope(path: str, scope: Scope) -> None:
    assert scope_of(path) is scope


def test_plain_keys_have_no_administrators_rights(guarded: RunningServer) -> None:
    answer = httpx.get(f"{guarded.url}/admin/keys", headers={"Authorization": "Bearer first-key"})
    assert answer.status_code == 403
    assert "Missing scope: admin" in answer.json()["error"]["message"]
    metrics = httpx.get(f"{guarded.url}/metrics", headers={"Authorization": "Bearer second-key"})
    assert 'nybble_key_requests_total{key="key-2"}' in metrics.text
