"""/openapi.json is true: requests made from it are answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.service import RunningServer, run_server

OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model_id}", "GET"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
    ("/health/startup", "GET"),
    ("/version", "GET"),
    ("/metrics", "GET"),
    ("/admin/keys", "GET"),
    ("/admin/keys/reload", "POST"),
]


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[RunningServer]:
    with run_server(checkpoint, max_model_len=64) as server:
        yield server


def test_all_operations_are_listed(server: RunningServer) -> None:
    document = server.document()
    found = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert found == set(OPERATIONS)


def test_errors_keys_and_models_are_described(server: RunningServer) -> None:
    document = server.document()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation["responses"]["500"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/ErrorResponse"
            }
            public = path.startswith("/health/")
            assert operation["security"] == ([] if public else [{"apiKey": []}, {}])
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]) == {
        *("200", "400", "401", "403", "404", "408", "413", "429", "500", "503", "504")
    }
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_generated_requests_are_answered_as_described(server: RunningServer, path: str, method: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operation = schema[path][method]

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), model=st.sampled_from(["tiny", None]))
    def run(case: schemathesis.Case, model: str | None) -> None:
        # A generated name is never ours; without ours only 404 would be tested.
        if model is not None and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = model
        case.call_and_validate(
            checks=[
                checks.not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ]
        )

    run()
    assert server.num_in_engine() == 0
