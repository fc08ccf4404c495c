"""POST /tokenize and /detokenize."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.errors import BadRequest
from service.large_bodies import PatientRoute
from service.openapi import error_responses
from service.prompts import check_unicode
from service.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from service.state import service_state

router = APIRouter(tags=["tokenization"], route_class=PatientRoute)

_ERRORS = error_responses(400, 401, 404, 413, 500, 503)


@router.post("/tokenize", responses=_ERRORS, operation_id="tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> TokenizeResponse:
    """Cut a text into tokens, as /v1/completions does."""
    state = service_state(request)
    if body.model is not None:
        state.check_model_name(body.model)
    model = state.ready_model()
    check_unicode(body.prompt, "prompt")
    special = body.add_special_tokens is not False
    ids = await state.in_text_thread(lambda: model.tokenizer.encode(body.prompt, add_special_tokens=special))
    return TokenizeResponse(tokens=ids, count=len(ids), max_model_len=model.info.max_model_len)


@router.post("/detokenize", responses=_ERRORS, operation_id="detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> DetokenizeResponse:
    """Turn token ids into text; special tokens are spelled out."""
    state = service_state(request)
    if body.model is not None:
        state.check_model_name(body.model)
    model = state.ready_model()
    if any(token_id >= model.info.vocab_size for token_id in body.tokens):
        raise BadRequest(
            f"A token id is outside the vocabulary, which has ids 0 to {model.info.vocab_size - 1}.",
            param="tokens",
        )
    text = await state.in_text_thread(lambda: model.tokenizer.decode(body.tokens, skip_special_tokens=False))
    return DetokenizeResponse(prompt=text)
