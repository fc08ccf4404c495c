"""What an operator can see and do with a key of scope admin."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.errors import BadRequest
from service.keys.file import KeyFileError
from service.keys.ring import Caller
from service.openapi import error_responses
from service.state import ServiceState, service_state

router = APIRouter(prefix="/admin", tags=["administration"])

_ERRORS = error_responses(400, 401, 500)


class KeyInfo(BaseModel):
    """An API key in force, without the key. Limits are null where there are none."""

    name: str
    scopes: list[str]
    expires: datetime | None
    priority: int
    weight: float
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent_requests: int | None
    num_requests_in_flight: int
    num_requests_total: int
    num_rejected_requests_total: int
    num_prompt_tokens_total: int
    num_generated_tokens_total: int


class KeyList(BaseModel):
    """All keys in force, by name."""

    keys: list[KeyInfo]


@router.get("/keys", responses=_ERRORS, operation_id="listKeys")
async def list_keys(request: Request) -> KeyList:
    """Names, limits, expiry and use since the start; never a key or its hash."""
    return _key_list(service_state(request))


@router.post("/keys/reload", responses=_ERRORS, operation_id="reloadKeys")
async def reload_keys(request: Request) -> KeyList:
    """Read the key file now. 400 if it cannot be used; the keys are then kept as they were."""
    state = service_state(request)
    if state.key_watch is None:
        raise BadRequest("No key file is configured (--api-key-file).")
    try:
        state.key_watch.reload()
    except KeyFileError as error:
        raise BadRequest(f"The keys are kept as they were: {error}") from None
    return _key_list(state)


def _key_list(state: ServiceState) -> KeyList:
    return KeyList(keys=[_info(caller) for _, caller in sorted(state.keys.callers.items())])


def _info(caller: Caller) -> KeyInfo:
    key, usage = caller.key, caller.usage
    return KeyInfo(
        name=key.name,
        scopes=sorted(scope.value for scope in key.scopes),
        expires=key.expires,
        priority=key.priority,
        weight=key.weight,
        requests_per_minute=key.limits.requests_per_minute,
        tokens_per_minute=key.limits.tokens_per_minute,
        max_concurrent_requests=key.limits.max_concurrent_requests,
        num_requests_in_flight=usage.num_running,
        num_requests_total=usage.num_requests_total,
        num_rejected_requests_total=usage.num_rejected_total,
        num_prompt_tokens_total=usage.num_prompt_tokens_total,
        num_generated_tokens_total=usage.num_generated_tokens_total,
    )
