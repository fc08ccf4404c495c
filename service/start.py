"""From a configuration to a server that listens, and to its end."""

from __future__ import annotations

import logging

from engines.base import Engine
from engines.registry import check_start, choose_engine, create_engine, engine_names
from service.configuration import Configuration
from service.exit_guard import ExitGuard
from service.exposure import check_exposure
from service.settings import ServiceSettings

_EXIT_SECONDS = 20.0


class StartFailure(Exception):
    """The server stopped because it could not do its work."""


def run_server(configuration: Configuration) -> None:
    """Serve until a signal comes. Raises StartFailure when the engine cannot start or dies."""
    # Imported here so that the offline commands start without a web server.
    from service.app import create_app
    from service.health_server import open_health_server
    from service.logs import configure_logs, log_configuration
    from service.server import DrainingServer
    from service.sockets import bind
    from service.tls import TlsError

    settings = configuration.settings
    check_checkpoint(settings)
    check_exposure(settings)
    web_app = create_app(settings, lambda: make_engine(settings))
    # A runtime or a client that hangs must not keep a process alive that has to be restarted.
    exit_guard = ExitGuard(_EXIT_SECONDS)
    try:
        server = DrainingServer(web_app, settings, on_stop=lambda: exit_guard.arm(server.failure))
        listener = bind(settings.host, settings.port)
    except TlsError as error:
        raise StartFailure(str(error)) from error
    except OSError as error:
        raise StartFailure(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    configure_logs(settings.log_level, settings.log_format)
    port = listener.getsockname()[1]
    with open_health_server(web_app.state.service, port) as health_port:
        log_configuration(configuration, port, health_port)
        server.run(sockets=[listener])
    exit_guard.arm(server.failure)
    if server.failure is not None:
        raise StartFailure(server.failure)


def make_engine(settings: ServiceSettings) -> Engine:
    """The engine that was asked for; with "auto", the log says which one that is, and why."""
    name, options = settings.engine, settings.engine_options()
    if name == "auto":
        choice = choose_engine(options)
        logging.getLogger("nybble").info("engine %s: %s", choice.name, choice.reason)
        name = choice.name
    return create_engine(name, options)


def check_checkpoint(settings: ServiceSettings) -> None:
    """Refuse at once what cannot work. Raises StartFailure."""
    if settings.engine not in ("auto", *engine_names()):
        known = ", ".join(("auto", *engine_names()))
        raise StartFailure(f"unknown engine {settings.engine!r}; expected one of: {known}")
    check_start(settings.engine)
    if not settings.checkpoint.is_dir():
        raise StartFailure(
            f"{settings.checkpoint} is not a folder; expected that of a Hugging Face checkpoint"
        )
