"""What the routes of one app share. Made by `service.app.create_app`; nothing here is global."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import HTTPConnection

from engines.base import Engine, EngineInfo
from service.admission.controller import Admission, Bounds
from service.admission.time_limits import Timeouts
from service.chat_template import ChatTemplate
from service.cutoff import Cutoff
from service.errors import ModelNotFound, NotReady
from service.generation_config import OPENAI_DEFAULTS, SamplingDefaults
from service.health import Health
from service.keys.metrics import KeyMetrics
from service.keys.ring import KeyRing
from service.keys.watch import KeyWatch
from service.lifecycle import Lifecycle
from service.loop_heartbeat import LoopHeartbeat
from service.metrics import ServiceMetrics
from service.outbox import Pace
from service.progress_watch import ProgressWatch
from service.settings import ServiceSettings
from service.startup import Startup
from service.tokenizer import Tokenizer
from service.version import package_version

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A started engine and the text side of its checkpoint. `chat_template` None: no chat with this model."""

    engine: Engine
    info: EngineInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    sampling_defaults: SamplingDefaults = OPENAI_DEFAULTS


class ServiceState:
    """Settings, counters, the model once it is there, and the threads that handle text."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.startup = Startup()
        self.cutoff = Cutoff()
        self.pace = Pace()
        self.heartbeat = LoopHeartbeat()
        self.health = Health(
            self.lifecycle,
            self.startup,
            self.heartbeat,
            liveness_seconds=settings.liveness_timeout_seconds,
        )
        self.metrics = ServiceMetrics(settings.model_names[0], vllm_names=settings.vllm_metric_names)
        self.keys = KeyRing()
        self.key_watch: KeyWatch | None = None
        self.timeouts = Timeouts(
            settings.queue_timeout_seconds,
            settings.first_token_timeout_seconds,
            settings.request_timeout_seconds,
        )
        self.admission = Admission(
            Bounds(settings.max_num_seqs, settings.max_queued_requests, settings.max_queued_tokens)
        )
        self.keys.on_change = self.admission.set_flows
        key_metrics = KeyMetrics(self.keys, self.metrics.registry)
        if settings.api_key_file is not None:
            self.key_watch = KeyWatch(settings.api_key_file, self.keys, key_metrics)
            self.key_watch.load()
        self.metrics.watch_service(
            is_ready=lambda: self.health.ready().status == 200,
            num_in_flight=lambda: self.admission.num_in_flight,
            num_queued_tokens=lambda: self.admission.num_queued_tokens,
        )
        self.created = int(time.time())
        self.system_fingerprint = _fingerprint(settings)
        self._load_began = time.monotonic()
        self._model: LoadedModel | None = None
        self._progress_watch: ProgressWatch | None = None
        self._text_threads = ThreadPoolExecutor(settings.num_text_threads, thread_name_prefix="nybble-text")
        # One thread: large bodies wait for each other, the tokenizer does not wait for them.
        self._body_thread = ThreadPoolExecutor(1, thread_name_prefix="nybble-body")

    def attach(self, model: LoadedModel) -> None:
        """Take the model into service."""
        self._model = model
        self._progress_watch = ProgressWatch(
            self.lifecycle,
            model.engine.stats,
            stall_seconds=self.settings.readiness_stall_seconds,
            give_up_seconds=self.settings.stall_timeout_seconds,
        )
        self.metrics.watch_engine(
            model.engine.stats, model.info, num_queued=lambda: self.admission.num_queued
        )
        self.metrics.model_load_seconds.set(time.monotonic() - self._load_began)
        self.startup.end()
        self.lifecycle.mark_ready()

    def look_after_engine(self) -> None:
        """Notice an engine that stands still; to be called at each beat of the event loop."""
        self.metrics.event_loop_lag_seconds.observe(self.heartbeat.lag_seconds)
        if self._progress_watch is not None:
            self._progress_watch.check()

    @property
    def loaded_model(self) -> LoadedModel | None:
        """The model, ready or draining; None while it loads."""
        return self._model

    def ready_model(self) -> LoadedModel:
        """The model, for new work. Raises NotReady while it loads, drains or has failed."""
        self.lifecycle.ensure_ready()
        if self._model is None:
            raise NotReady("The model is still loading; try again shortly.", retry_after_seconds=5.0)
        return self._model

    def check_model_name(self, name: str) -> None:
        """Raises ModelNotFound for a name that is not served."""
        if name not in self.settings.model_names:
            known = ", ".join(f"`{known}`" for known in self.settings.model_names)
            raise ModelNotFound(
                f"The model `{name[:200]}` does not exist here. Served: {known}.", param="model"
            )

    async def in_text_thread(self, work: Callable[[], T]) -> T:
        """Run template and tokenizer work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, work)

    async def in_body_thread(self, work: Callable[[], T]) -> T:
        """Parse a large request body off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._body_thread, work)

    def close(self) -> None:
        """Let the threads go."""
        for threads in (self._text_threads, self._body_thread):
            threads.shutdown(wait=False, cancel_futures=True)


def service_state(connection: HTTPConnection) -> ServiceState:
    """The state of the app that a request belongs to."""
    state: ServiceState = connection.app.state.service
    return state


def _fingerprint(settings: ServiceSettings) -> str:
    parts = (
        package_version(),
        settings.checkpoint.resolve().name,
        settings.engine,
        settings.activations,
        settings.numerics,
        settings.kv_cache_dtype,
    )
    return "nybble_" + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]
