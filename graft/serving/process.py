"""The service as a process, or several.

In: `Settings`. Out: a listening socket, answered until the process is told to stop (SIGTERM, Ctrl-C): then nothing new
is taken, and what was accepted is finished. Cost: ready about a second after the start. With several workers, each is a
process with its own copy of the models, and a further one watches them and replaces those that die. Not covered: TLS.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from graft.deploy.bundle import load
from graft.errors import GraftError, SettingsError
from graft.serving.logs import log_config
from graft.serving.settings import Settings, is_loopback
from graft.serving.wire import PatientProtocol

# How long a thread may keep the interpreter from the one that speaks HTTP; the default of 5 ms is longer than an answer.
_SWITCH_SECONDS = 0.0005
# By this exit code, uvicorn's supervisor knows that a worker would fail again, and stops.
_CANNOT_START = 3
_log = logging.getLogger("graft.serving")


class Service:
    """A service that listens already; `run` answers."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError where the address cannot be had, and BundleError where a model does not open."""
        self._settings = settings
        self._socket = _listening(settings.host, settings.port)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self.is_open_to_all = not settings.keys and not is_loopback(settings.host)
        self._app: ASGIApp | None = None
        try:
            if settings.workers == 1:
                self._app = _created(settings)
            else:
                _tried(settings)
        except GraftError:
            self._socket.close()
            raise

    def run(self) -> None:
        """Answers until a signal ends it, and then what was accepted; returns after SIGTERM and Ctrl-C alike.

        Raises SettingsError where a worker cannot start.
        """
        signal.signal(signal.SIGTERM, _leave)
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            if self._app is not None:
                _server(self._app, self._settings).run([self._socket])
            else:
                self._run_workers()
        except KeyboardInterrupt:
            return
        finally:
            self._socket.close()

    def _run_workers(self) -> None:
        # The supervisor takes every signal for itself and ends by returning.
        with tempfile.TemporaryDirectory(prefix="graft-metrics-") as folder:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            try:
                supervisor = Multiprocess(_config(Factory(self._settings), self._settings), [self._socket])
                supervisor.run()
            finally:
                del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        if any(process.exitcode == _CANNOT_START for process in supervisor.processes):
            raise SettingsError(
                "A worker could not start, so the service ended; the line of the log above says why."
            )


@dataclass(frozen=True, slots=True)
class Factory:
    """What a worker process makes its application with."""

    settings: Settings

    def __call__(self) -> ASGIApp:
        """The application; where it cannot be, the reason goes to the log and the worker ends for good."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            return _created(self.settings)
        except GraftError as error:
            _log.error(str(error))
            sys.exit(_CANNOT_START)


def _tried(settings: Settings) -> None:
    """What every worker will open is opened once, so that what is wrong is said before they start."""
    bundles = {name: load(folder, threads=1, runtime=settings.runtime) for name, folder in settings.bundles}
    if settings.index:
        from graft.serving.similar import opened

        opened(settings.index, bundles)


def _created(settings: Settings) -> ASGIApp:
    from graft.serving.app import create

    return create(settings)


def _server(app: ASGIApp, settings: Settings) -> uvicorn.Server:
    return uvicorn.Server(_config(app, settings))


def _config(app: ASGIApp | Factory, settings: Settings) -> uvicorn.Config:
    limits = settings.limits
    return uvicorn.Config(
        app,
        factory=isinstance(app, Factory),
        # h11 bounds the header's length; the other parser that uvicorn knows does not.
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=log_config(),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        workers=settings.workers,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=math.ceil(limits.body_seconds + limits.answer_seconds),
    )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only where it is: an answer took 40 ms longer.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise SettingsError(
            f"Port {port} of {host} cannot be had: {error.strerror or error}. "
            "Choose others with --host and --port."
        ) from error
    found.set_inheritable(True)
    return found


def _leave(_: int, __: FrameType | None) -> None:
    """For a SIGTERM before uvicorn listens to signals, and after it has finished."""
    sys.exit(0)
