"""The envelope of every failure."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """`param` names the field at fault; `code` is for programs, `message` for people.

    `request_id` is also in the header X-Request-Id, which a client may set.
    """

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str | None = None


class ErrorResponse(BaseModel):
    """What every answer with a status of 400 or more holds."""

    error: ErrorDetail
