"""The service as an ASGI application.

In: `Settings`. Out: an application for uvicorn, or for a test. Cost: opening the bundles. Every route is a few lines:
take the images, ask the model, say the answer. What must hold for all of them stands in `intake`, the limits in
`settings`, the sentences in `refusals`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float32
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from graft.deploy.bundle import Prediction
from graft.errors import GraftError
from graft.images.headers import UnreadableImage
from graft.serving import protocol, refusals
from graft.serving.decoding import Upload
from graft.serving.hosting import Hosted, Models
from graft.serving.intake import Door
from graft.serving.meters import Meters
from graft.serving.refusals import Json, Refusal
from graft.serving.settings import Settings
from graft.serving.similar import MOST, Neighbours
from graft.serving.uploads import json_of, uploads_of
from graft.version import VERSION

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def create(settings: Settings) -> ASGIApp:
    """The service of `settings`, ready to answer.

    Raises BundleError for a bundle that does not open, and what the index says of itself.
    """
    meters = Meters()
    routes = _Routes(settings, meters)
    app = Starlette(
        routes=routes.table(),
        lifespan=routes.lifespan,
        exception_handlers={
            GraftError: refusals.of_graft_error,
            HTTPException: refusals.of_http_error,
            ClientDisconnect: refusals.of_disconnect,
            Exception: refusals.of_fault,
        },
    )
    app.router.redirect_slashes = False
    return Door(app, keys=settings.keys, limits=settings.limits, meters=meters, full=routes.full)


class _Routes:
    """The endpoints, over the same models."""

    def __init__(self, settings: Settings, meters: Meters) -> None:
        self._limits, self._meters = settings.limits, meters
        self._models = Models(settings, meters)
        self._neighbours = Neighbours(settings.index, self._models)
        self._page, self._docs = _page(_try_page()), _page(_text("docs.html"))
        self._openapi = json.loads(_text("openapi.json"))
        self._openapi["info"]["version"] = VERSION

    def table(self) -> list[Route]:
        """All addresses."""
        return [
            Route("/", self._page, methods=["GET"]),
            Route("/docs", self._docs, methods=["GET"]),
            Route("/openapi.json", self.openapi),
            Route("/healthz", self.alive),
            Route("/readyz", self.ready),
            Route("/metrics", self.metrics),
            Route("/bundle", self.bundle),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/similar", self.similar, methods=["POST"]),
            Route("/similar/thumbnail/{place}", self.thumbnail),
            Route("/samples/{number}", self.sample),
            Route("/v2", self.v2_server),
            Route("/v2/health/live", self.alive),
            Route("/v2/health/ready", self.ready),
            *(
                route
                for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
                for route in (
                    Route(model, self.v2_model),
                    Route(f"{model}/ready", self.v2_model_ready),
                    Route(f"{model}/infer", self.v2_infer, methods=["POST"]),
                )
            ),
        ]

    def full(self) -> int | None:
        """The seconds until one of the models may have room, or None while one has."""
        return self._models.full()

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ends the threads when the last request has its answer."""
        yield
        self._models.close()

    async def openapi(self, _: Request) -> Response:
        """The interface, described for programs."""
        return Json(self._openapi)

    async def alive(self, _: Request) -> Response:
        """The process answers."""
        return Json({"live": True})

    async def ready(self, _: Request) -> Response:
        """The models are open; before that, nothing listens."""
        return Json({"ready": True, "models": self._models.names})

    async def metrics(self, _: Request) -> Response:
        """The counters, for Prometheus."""
        text, kind = self._meters.exposition()
        return Response(text, headers={"content-type": kind})

    async def bundle(self, request: Request) -> Response:
        """What a model says of itself, and which models there are."""
        hosted = self._hosted(request)
        return Json(
            {
                "model": hosted.name,
                "models": self._models.names,
                "similar": self._neighbours.model == hosted.name,
                "samples": self._neighbours.samples if self._neighbours.model == hosted.name else 0,
                "explains": hosted.explains,
                "limits": {
                    "files": self._limits.files,
                    "file_bytes": self._limits.file_bytes,
                    "request_bytes": self._limits.request_bytes,
                },
                "bundle": hosted.bundle.facts,
            }
        )

    async def predict(self, request: Request) -> Response:
        """Probabilities of one or many images."""
        hosted, topk = self._hosted(request), _topk(request)
        uploads = await self._uploads(request, hosted)
        answers = await hosted.predict(uploads)
        said = [_said(upload, answer, topk) for upload, answer in zip(uploads, answers, strict=True)]
        if _flag(request, "explain"):
            for one, grid in zip(said, await hosted.explain(uploads), strict=True):
                if not isinstance(grid, UnreadableImage):
                    one["activation"] = {"label": one["label"], "map": _rounded(grid)}
        return Json({"model": hosted.name, "predictions": said})

    async def similar(self, request: Request) -> Response:
        """The most similar images of the index, for one or many images."""
        name = self._neighbours.model_for(request.query_params.get("model"))
        hosted, topk = self._models.find(name), _topk(request) or 10
        uploads = await self._uploads(request, hosted)
        embeddings = await hosted.embed(uploads)
        rows = [row for row in embeddings if not isinstance(row, UnreadableImage)]
        found = (
            await asyncio.to_thread(self._neighbours.search, np.concatenate(rows), topk=topk) if rows else []
        )
        matches = iter(found)
        said = [
            _unread(upload, row)
            if isinstance(row, UnreadableImage)
            else {"file": upload.file, "matches": next(matches)}
            for upload, row in zip(uploads, embeddings, strict=True)
        ]
        return Json({"model": hosted.name, "results": said})

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of an image of the index, by its place there."""
        data = await asyncio.to_thread(self._neighbours.thumbnail, _place(request, "place"))
        return Response(data, media_type="image/jpeg")

    async def sample(self, request: Request) -> Response:
        """One of a few images of the index to try the model with."""
        data = await asyncio.to_thread(self._neighbours.sample, _place(request, "number"))
        return Response(data, media_type="image/jpeg")

    async def v2_server(self, _: Request) -> Response:
        """Open Inference Protocol: the server."""
        return Json(protocol.server_facts())

    async def v2_model(self, request: Request) -> Response:
        """Open Inference Protocol: a model's inputs and outputs."""
        return Json(protocol.model_facts(self._v2_hosted(request)))

    async def v2_model_ready(self, request: Request) -> Response:
        """Open Inference Protocol: whether a model answers."""
        return Json({"name": self._v2_hosted(request).name, "ready": True})

    async def v2_infer(self, request: Request) -> Response:
        """Open Inference Protocol: an answer."""
        hosted = self._v2_hosted(request)
        if "inference-header-content-length" in request.headers:
            raise Refusal(400, "Binary tensors are not taken; send the data as JSON.")
        hosted.queue.check()
        asked = await json_of(request, self._limits, most=protocol.most_values(hosted, self._limits))
        images = await asyncio.to_thread(protocol.images_in, asked, hosted, self._limits)
        outputs = protocol.outputs_wanted(asked)
        if isinstance(images, list):
            images = await hosted.decoded(images)
        rows = await hosted.probabilities(images)
        return Json(protocol.answer(asked, hosted, rows, outputs=outputs))

    def _hosted(self, request: Request) -> Hosted:
        return self._models.find(request.query_params.get("model"))

    def _v2_hosted(self, request: Request) -> Hosted:
        hosted = self._models.find(request.path_params["name"])
        version = request.path_params.get("version", protocol.MODEL_VERSION)
        if version != protocol.MODEL_VERSION:
            raise Refusal(
                404, f"There is no version {version[:100]!r} of {hosted.name}, only {protocol.MODEL_VERSION}."
            )
        return hosted

    async def _uploads(self, request: Request, hosted: Hosted) -> list[Upload]:
        """Looks at the queue before the body is read: under overload, a refusal must cost little."""
        hosted.queue.check()
        return await uploads_of(request, self._limits)


def _topk(request: Request) -> int | None:
    given = request.query_params.get("topk")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and 1 <= len(given) <= 4 and int(given) >= 1):
        raise Refusal(400, f"topk={given[:20]}: choose a whole number from 1 to 9999.")
    return min(int(given), MOST) if request.url.path == "/similar" else int(given)


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "0")
    if given not in ("0", "1"):
        raise Refusal(400, f"{name}={given[:20]}: choose 0 or 1.")
    return given == "1"


def _place(request: Request, name: str) -> int:
    given = request.path_params[name]
    if not (given.isascii() and given.isdigit() and len(given) <= 9):
        raise Refusal(404, "Images of the index are named by numbers from 0 up.")
    return int(given)


def _rounded(grid: Float32[np.ndarray, "y x"]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in grid.tolist()]


def _unread(upload: Upload, error: UnreadableImage) -> dict[str, Any]:
    return {"file": upload.file, "error": str(error)}


def _said(upload: Upload, answer: Prediction | UnreadableImage, topk: int | None) -> dict[str, Any]:
    if isinstance(answer, UnreadableImage):
        return _unread(upload, answer)
    shares = answer.top(topk) if topk else answer.probabilities
    said: dict[str, Any] = {
        "file": upload.file,
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": shares,
    }
    if answer.unknown is not None:
        said |= {"unknown": answer.unknown, "score": answer.score}
    if answer.labels_90 is not None:
        said["labels_90"] = list(answer.labels_90)
    return said


def _text(name: str) -> str:
    return (files("graft.serving") / name).read_text(encoding="utf-8")


def _try_page() -> str:
    """The page to try a model, in one file: the browser folder's page with the service as its engine."""
    web = files("graft.deploy") / "web"
    html, style, script = (
        (web / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    scripts = f"<script>\n{script}</script>\n<script>\n{_text('service.js')}</script>"
    return html.replace("<!--style-->", f"<style>\n{style}</style>").replace("<!--scripts-->", scripts)


def _page(html: str) -> ASGIApp:
    """A page that may load nothing, talk to nobody but this service, and run no script but its own."""
    scripts = [hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(html)]
    allowed = " ".join(f"'sha256-{base64.b64encode(script).decode()}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(html, headers={"content-security-policy": policy, "cache-control": "no-cache"})
