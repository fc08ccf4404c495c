"""The envelope of every failure."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """`param` names the field at fault; `code` is for programs, `message` for people."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """What every answer with a status of 400 or more holds."""

    error: ErrorDetail
