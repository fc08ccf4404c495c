"""Every failure a client can see, and the one table that says how it looks on the wire.

`describe` walks an exception's class hierarchy, so a new subclass is answered like its parent.
The envelope is OpenAI's: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from engines.errors import (
    CheckpointError,
    EngineDead,
    EngineError,
    EngineUnavailable,
    GenerationFailed,
    GrammarFailed,
    InvalidRequest,
    Overloaded,
    PromptTooLong,
    UnsupportedParameter,
)
from service.chat_template import ChatTemplateError
from service.log_context import log_fields


class ServiceError(Exception):
    """Base of the errors the service itself raises. `param` names the request's field at fault."""

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_seconds = retry_after_seconds


class BadRequest(ServiceError):
    """A field has a value that cannot be served."""


class UnsupportedField(BadRequest):
    """A documented field that this server does not honour."""


class ContextLengthExceeded(BadRequest):
    """Prompt and answer together do not fit the model's context."""


class ModelNotFound(ServiceError):
    """The request names a model that is not served here."""


class InvalidApiKey(ServiceError):
    """No API key, or one that is not known."""


class MissingScope(ServiceError):
    """The API key is good, but not for this."""


class BodyTooLarge(ServiceError):
    """The request's body exceeds the configured limit."""


class TooManyRequests(ServiceError):
    """The server is busy and this key holds more than its share of the places."""


class RequestRateLimited(ServiceError):
    """The key's limit of requests per minute, or of requests at a time, is reached."""


class TokenRateLimited(ServiceError):
    """The key's limit of tokens per minute is reached."""


class ServerOverloaded(ServiceError):
    """No place or no room for the tokens, or the wait would be longer than the client wants it."""


class QueueTimeout(ServiceError):
    """The request's turn did not come in time."""


class DeadlineExceeded(ServiceError):
    """The client's own deadline passed before anything was generated. A retry would come too late."""


class ServerTimeout(ServiceError):
    """Generation took longer than the server allows."""


class NotReady(ServiceError):
    """The model is loading, draining or gone."""


class RequestAborted(ServiceError):
    """The engine ended the request at the operator's wish."""


class ClientDisconnected(ServiceError):
    """The client hung up; nobody reads the answer."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How a class of errors looks: HTTP status, envelope `type` and `code`, label in the metrics."""

    status: int
    type: str
    code: str | None
    label: str


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One error made ready for the wire."""

    status: int
    body: dict[str, dict[str, str | None]]
    headers: dict[str, str]
    label: str


_INVALID = "invalid_request_error"
_INTERNAL = ErrorKind(500, "server_error", "internal_error", "internal")

_KINDS: dict[type[BaseException], ErrorKind] = {
    BadRequest: ErrorKind(400, _INVALID, "invalid_value", "invalid"),
    UnsupportedField: ErrorKind(400, _INVALID, "unsupported_parameter", "unsupported"),
    ContextLengthExceeded: ErrorKind(400, _INVALID, "context_length_exceeded", "context_length"),
    ModelNotFound: ErrorKind(404, _INVALID, "model_not_found", "model_not_found"),
    InvalidApiKey: ErrorKind(401, _INVALID, "invalid_api_key", "unauthorized"),
    MissingScope: ErrorKind(403, _INVALID, "missing_scope", "forbidden"),
    BodyTooLarge: ErrorKind(413, _INVALID, "request_too_large", "too_large"),
    TooManyRequests: ErrorKind(429, "rate_limit_error", "slow_down", "over_share"),
    RequestRateLimited: ErrorKind(429, "requests", "rate_limit_exceeded", "rate_limited"),
    TokenRateLimited: ErrorKind(429, "tokens", "rate_limit_exceeded", "rate_limited"),
    ServerOverloaded: ErrorKind(503, "server_error", "server_is_overloaded", "overloaded"),
    QueueTimeout: ErrorKind(503, "server_error", "server_is_overloaded", "queue_timeout"),
    DeadlineExceeded: ErrorKind(408, "timeout_error", "deadline_exceeded", "deadline"),
    ServerTimeout: ErrorKind(504, "timeout_error", "timeout", "timeout"),
    NotReady: ErrorKind(503, "server_error", "server_is_overloaded", "not_ready"),
    RequestAborted: ErrorKind(503, "server_error", "request_aborted", "aborted"),
    ClientDisconnected: ErrorKind(499, _INVALID, "client_disconnected", "disconnected"),
    RequestValidationError: ErrorKind(400, _INVALID, "invalid_value", "invalid"),
    ChatTemplateError: ErrorKind(400, _INVALID, "chat_template_error", "chat_template"),
    InvalidRequest: ErrorKind(400, _INVALID, "invalid_value", "invalid"),
    PromptTooLong: ErrorKind(400, _INVALID, "context_length_exceeded", "context_length"),
    UnsupportedParameter: ErrorKind(400, _INVALID, "unsupported_parameter", "unsupported"),
    Overloaded: ErrorKind(429, "rate_limit_error", "slow_down", "overloaded"),
    CheckpointError: ErrorKind(503, "server_error", "engine_unavailable", "engine"),
    EngineUnavailable: ErrorKind(503, "server_error", "engine_unavailable", "engine"),
    EngineDead: ErrorKind(503, "server_error", "engine_unavailable", "engine"),
    GrammarFailed: ErrorKind(400, _INVALID, "invalid_value", "invalid"),
    GenerationFailed: ErrorKind(500, "server_error", "generation_failed", "generation_failed"),
    EngineError: _INTERNAL,
    Exception: _INTERNAL,
}

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}

# Names pydantic puts into an error's location for the members of a union (others are no identifiers).
_UNION_TAGS = frozenset({"str", "int", "float", "bool", "dict"})


def rejection_labels() -> list[str]:
    """The labels of all kinds of error that are counted as rejections."""
    return sorted({kind.label for kind in _KINDS.values()} - {_KINDS[ClientDisconnected].label})


def error_kind(error: BaseException) -> ErrorKind:
    """The table's row for `error`: that of the nearest class in its hierarchy."""
    if isinstance(error, HTTPException):
        error_type = "server_error" if error.status_code >= 500 else _INVALID
        code = _HTTP_CODES.get(error.status_code)
        return ErrorKind(error.status_code, error_type, code, code or "http")
    return next((_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS), _INTERNAL)


def describe(error: BaseException) -> ErrorReport:
    """What the client is told about `error`. The message of an unexpected error stays in the log."""
    kind = error_kind(error)
    message, param = _message_and_param(error, kind)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    retry_after = getattr(error, "retry_after_seconds", None)
    if kind.status in (429, 503, 504):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after if retry_after is not None else 1.0)))
    if kind.status == 408:
        headers["x-should-retry"] = "false"  # the official clients would repeat a 408 by themselves
    if kind.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    envelope = error_envelope(message, kind, param)
    return ErrorReport(kind.status, envelope, headers, kind.label)


def error_envelope(message: str, kind: ErrorKind, param: str | None) -> dict[str, dict[str, str | None]]:
    """OpenAI's error object; text that cannot be UTF-8 (a lone surrogate in the request) is replaced.

    Within a request it also holds the request's id.
    """
    envelope = {
        "message": message.encode("utf-8", "replace").decode(),
        "type": kind.type,
        "param": None if param is None else param.encode("utf-8", "replace").decode(),
        "code": kind.code,
    }
    request_id = log_fields.get({}).get("request_id")
    return {"error": envelope if request_id is None else {**envelope, "request_id": request_id}}


def _message_and_param(error: BaseException, kind: ErrorKind) -> tuple[str, str | None]:
    if kind is _INTERNAL:
        return "The server had an error while processing the request; its log says more.", None
    if isinstance(error, RequestValidationError):
        return _first_validation_error(error)
    if isinstance(error, HTTPException):
        return str(error.detail), None
    param = "messages" if isinstance(error, ChatTemplateError) else getattr(error, "param", None)
    return str(error), param


def _first_validation_error(error: RequestValidationError) -> tuple[str, str | None]:
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "malformed")
        return f"The body is not valid JSON: {reason} at character {first['loc'][-1]}.", None
    param = _path(first["loc"][1:])
    if not param:
        return "The body has to be a JSON object, sent with `Content-Type: application/json`.", None
    if first["type"] == "missing":
        return f"Missing required parameter: '{param}'.", param
    return f"Invalid value for '{param}': {first['msg']}.", param


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _UNION_TAGS and part.isidentifier():
            path += f".{part}" if path else part
    return path
