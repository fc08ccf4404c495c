"""What /openapi.json says beyond what FastAPI finds by itself: errors, streams, keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.auth import PUBLIC_PATHS
from service.protocol.errors import ErrorResponse

Responses = dict[int | str, dict[str, Any]]

_DESCRIPTIONS = {
    400: "The request is malformed, or a field has a value that cannot be served; `param` names it.",
    401: "No valid API key.",
    403: "The API key lacks the scope that this path needs.",
    404: "No such model or path.",
    405: "The path does not know this method.",
    408: "The request's own time limit passed before anything was generated.",
    413: "The body is too large.",
    429: "A limit of the API key is reached; try again after `Retry-After` seconds.",
    500: "A fault of the server.",
    503: "The server is full, loading, draining or gone; see `Retry-After`.",
    504: "The server's own time limit passed before anything was generated.",
}


def error_responses(*statuses: int) -> Responses:
    """Documentation of the error envelope under the given statuses; 403 comes with 401."""
    if 401 in statuses:
        statuses = (*statuses, 403)
    return {status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]} for status in statuses}


GENERATION_ERRORS = error_responses(400, 401, 404, 408, 413, 429, 500, 503, 504)


def streamed_answer(chunk: type[BaseModel]) -> Responses:
    """Documentation of a 200 that is a stream of `chunk` events when the request says `stream: true`."""
    description = (
        f"The answer; with `stream: true` server-sent events instead, each `data:` line a {chunk.__name__}, "
        "the last one `[DONE]`. A failure after the start is an event that holds the error envelope."
    )
    # A stream's body is text; the chunk's schema is published under x-chunk-schema for those who want it.
    schema = {"type": "string", "x-chunk-schema": chunk.model_json_schema(mode="serialization")}
    return {200: {"description": description, "content": {"text/event-stream": {"schema": schema}}}}


class DocumentedApp(FastAPI):
    """A FastAPI app whose document also tells of the keys: wanted everywhere but on the public paths."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            components = schema.setdefault("components", {})
            components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
            for name in ("HTTPValidationError", "ValidationError"):
                components.get("schemas", {}).pop(name, None)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    # The empty alternative: a server without configured keys asks for none.
                    operation["security"] = [] if path in PUBLIC_PATHS else [{"apiKey": []}, {}]
            self.openapi_schema = schema
        return self.openapi_schema
