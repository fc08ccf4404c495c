"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.openapi import error_responses
from service.protocol.models import ModelCard, ModelList
from service.state import ServiceState, service_state

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=error_responses(401, 500), operation_id="listModels")
async def list_models(request: Request) -> ModelList:
    """The names this server answers to; they all mean the one model it holds."""
    state = service_state(request)
    return ModelList(object="list", data=[_card(state, name) for name in state.settings.model_names])


@router.get(
    "/v1/models/{model_id:path}", responses=error_responses(401, 404, 500), operation_id="retrieveModel"
)
async def retrieve_model(model_id: str, request: Request) -> ModelCard:
    """One of the names; it may contain slashes."""
    state = service_state(request)
    state.check_model_name(model_id)
    return _card(state, model_id)


def _card(state: ServiceState, name: str) -> ModelCard:
    model = state.loaded_model
    return ModelCard(
        id=name,
        object="model",
        created=state.created,
        owned_by="nybble",
        root=state.settings.model_names[0],
        max_model_len=None if model is None else model.info.max_model_len,
    )
