"""Bodies of the health and version endpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Liveness(BaseModel):
    """The process listens."""

    status: Literal["live"]


class Unhealthy(BaseModel):
    """The process is beyond help."""

    status: Literal["blocked"]
    reason: str


class Started(BaseModel):
    """The model has been loaded, in `elapsed_seconds`."""

    status: Literal["started"]
    elapsed_seconds: float


class Loading(BaseModel):
    """How far loading has come, or why it has failed.

    `fraction`, 0 to 1, and `eta_seconds` are those of the phase; null when they are not known.
    """

    status: Literal["loading", "failed"]
    elapsed_seconds: float
    phase: str | None = None
    fraction: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    eta_seconds: float | None = None
    reason: str | None = None


class Readiness(BaseModel):
    """The engine can take requests."""

    status: Literal["ready"]


class VersionInfo(BaseModel):
    """The version of the installed package."""

    version: str
