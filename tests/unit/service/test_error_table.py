"""The table of errors: every class that can reach a client has its row, subclasses inherit it."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from engines import errors as engine_errors
from service import errors
from service.chat_template import ChatTemplateError


class LaterSubclass(engine_errors.PromptTooLong):
    """An error that somebody adds next year."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.BadRequest("m"), 400, "invalid_value"),
        (errors.UnsupportedField("m"), 400, "unsupported_parameter"),
        (errors.ContextLengthExceeded("m"), 400, "context_length_exceeded"),
        (errors.ModelNotFound("m"), 404, "model_not_found"),
        (errors.InvalidApiKey("m"), 401, "invalid_api_key"),
        (errors.BodyTooLarge("m"), 413, "request_too_large"),
        (errors.TooManyRequests("m"), 429, "slow_down"),
        (errors.NotReady("m"), 503, "server_is_overloaded"),
        (ChatTemplateError("m"), 400, "chat_template_error"),
        (engine_errors.InvalidRequest("m"), 400, "invalid_value"),
        (engine_errors.PromptTooLong("m"), 400, "context_length_exceeded"),
        (LaterSubclass("m"), 400, "context_length_exceeded"),
        (engine_errors.UnsupportedParameter("m"), 400, "unsupported_parameter"),
        (engine_errors.QueueFull("m"), 429, "slow_down"),
        (engine_errors.NoFreeBlocks("m"), 429, "slow_down"),
        (engine_errors.EngineDead("m"), 503, "engine_unavailable"),
        (engine_errors.EngineError("m"), 500, "internal_error"),
        (engine_errors.GenerationFailed("m"), 500, "generation_failed"),
        (HTTPException(404), 404, "not_found"),
        (HTTPException(418), 418, None),
        (ValueError("m"), 500, "internal_error"),
    ],
)
def test_status_and_code(error: Exception, status: int, code: str | None) -> None:
    report = errors.describe(error)
    assert (report.status, report.body["error"]["code"]) == (status, code)


def test_every_service_error_has_a_row_of_its_own() -> None:
    def subclasses(cls: type[Exception]) -> list[type[Exception]]:
        return [found for sub in cls.__subclasses__() for found in (sub, *subclasses(sub))]

    kinds = [cls for cls in subclasses(errors.ServiceError) if cls.__module__ == "service.errors"]
    assert len(kinds) >= 9
    assert all(errors.error_kind(cls("m")).status != 500 for cls in kinds)


def test_messages_reach_the_client_unless_they_are_internal() -> None:
    told = errors.describe(engine_errors.InvalidRequest("top_k is -3", param="top_k")).body["error"]
    assert (told["message"], told["param"]) == ("top_k is -3", "top_k")
    assert "secret" not in str(errors.describe(KeyError("secret")).body)


@pytest.mark.parametrize(("seconds", "header"), [(None, "1"), (0.2, "1"), (2.1, "3"), (60.0, "60")])
def test_retry_after_is_in_whole_seconds_rounded_up(seconds: float | None, header: str) -> None:
    full = engine_errors.QueueFull("m", retry_after_seconds=seconds)
    assert errors.describe(full).headers["Retry-After"] == header
    assert "Retry-After" not in errors.describe(errors.BadRequest("m")).headers
