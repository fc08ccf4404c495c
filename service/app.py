"""The web application: everything is made here and handed on; nothing is global."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from engines.base import Engine
from engines.errors import EngineError
from service.auth import RequireApiKey
from service.body_limit import BodyLimit
from service.chat_template import ChatTemplate
from service.disconnect import stop_tasks
from service.error_responses import install_error_handlers
from service.generation_config import (
    OPENAI_DEFAULTS,
    GenerationConfigError,
    SamplingDefaults,
    read_sampling_defaults,
)
from service.openapi import DocumentedApp
from service.request_context import RequestContext
from service.routes import admin, chat, completions, health, models, tokenization
from service.settings import ServiceSettings
from service.state import LoadedModel, ServiceState
from service.tokenizer import Tokenizer, TokenizerError
from service.tracing import open_tracing
from service.version import package_version

log = logging.getLogger("nybble")

# What a script in a browser may read of an answer, beyond the plain headers.
_EXPOSED_HEADERS = (
    "Retry-After",
    "Server-Timing",
    "X-Nybble-Ignored-Fields",
    "X-Request-Id",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)

EngineFactory = Callable[[], Engine]


def create_app(settings: ServiceSettings, engine_factory: EngineFactory) -> FastAPI:
    """The ASGI application. It answers at once; the model loads in the background after start-up.

    `app.state.service` is its ServiceState. When loading fails, the reason is in `lifecycle.failure`
    and the process that runs the app is expected to exit. Raises KeyFileError, TracingUnavailable.
    """
    state = ServiceState(settings)
    tracing = open_tracing(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as opened:
            opened.callback(state.close)
            if tracing is not None:
                opened.push_async_callback(asyncio.to_thread, tracing.close)
            if state.key_watch is not None:
                await opened.enter_async_context(state.key_watch.running())
            beating = asyncio.create_task(state.heartbeat.run(state.look_after_engine))
            loading = asyncio.create_task(_load(state, engine_factory, opened))
            try:
                yield
            finally:
                state.lifecycle.begin_drain()
                await stop_tasks(loading, beating)

    app = DocumentedApp(
        title="Nybble",
        description="OpenAI-compatible inference for language models in 4-bit floating point.",
        version=package_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = state
    for family in (chat, completions, models, tokenization, health, admin):
        app.include_router(family.router)
    install_error_handlers(app, state.metrics)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=int(settings.max_body_bytes), metrics=state.metrics)
    app.add_middleware(RequireApiKey, keys=state.keys, metrics=state.metrics)
    app.add_middleware(
        RequestContext, metrics=state.metrics, tracing=tracing, log_prompts=settings.log_prompts
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
        )
    return app


async def _load(
    state: ServiceState, engine_factory: EngineFactory, opened: contextlib.AsyncExitStack
) -> None:
    """Load the tokenizer, start the engine, take both into service; a failure is noted, not raised."""
    directory = state.settings.checkpoint
    try:
        state.startup.begin("loading the tokenizer")
        tokenizer = await state.in_text_thread(lambda: Tokenizer.load(directory))
        template = ChatTemplate.load(tokenizer)
        defaults = _sampling_defaults(state.settings)
        state.startup.begin("choosing the engine")
        engine = engine_factory()
        opened.push_async_callback(engine.close)
        state.startup.begin("starting the engine", engine)
        await engine.start()
    except (EngineError, TokenizerError, GenerationConfigError) as error:
        state.lifecycle.mark_failed(str(error))
    except Exception as error:
        log.error("the model could not be loaded", exc_info=error)
        state.lifecycle.mark_failed(f"the model could not be loaded: {type(error).__name__}: {error}")
    else:
        chat_template = template if template.available else None
        state.attach(LoadedModel(engine, engine.info, tokenizer, chat_template, defaults))
        log.info("ready: %s on engine %s", ", ".join(state.settings.model_names), engine.info.engine)
        # An engine may die while nobody asks it anything; readiness must not outlive it.
        state.lifecycle.mark_failed(await engine.died())


def _sampling_defaults(settings: ServiceSettings) -> SamplingDefaults:
    if settings.generation_config == "none":
        return OPENAI_DEFAULTS
    defaults = read_sampling_defaults(settings.checkpoint)
    if differing := defaults.differing:
        told = " ".join(f"{name}={value}" for name, value in differing.items())
        log.info("sampling defaults of the checkpoint: %s", told)
    return defaults
