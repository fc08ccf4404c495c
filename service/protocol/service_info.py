"""Bodies of the health and version endpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Liveness(BaseModel):
    """The process listens."""

    status: Literal["live"]


class Readiness(BaseModel):
    """The engine can take requests."""

    status: Literal["ready"]


class VersionInfo(BaseModel):
    """The version of the installed package."""

    version: str
