"""The REST interface: a FastAPI application that knows neither Ray nor torch."""

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline

from hmtl_dist import __version__
from hmtl_dist.serve.answers import (
    About,
    Backend,
    BusyError,
    Explanation,
    Prediction,
    Refusal,
    Trouble,
    UnavailableError,
    prediction,
)
from hmtl_dist.serve.gate import RETRY_SECONDS, Gate, refusal
from hmtl_dist.serve.metrics import MEDIA_TYPE, Metrics
from hmtl_dist.serve.page import page, page_policy
from hmtl_dist.serve.settings import Limits
from hmtl_dist.serve.upload import MEDIA_TYPES, read_picture

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _FORM}} | dict.fromkeys(MEDIA_TYPES, _BINARY),
    }
}
_REASONS = {
    400: "The body ended early, is empty, or is a form without a file.",
    408: "The picture did not arrive in time.",
    413: "The file has too many bytes, or the picture too many pixels.",
    415: "The body is no picture by its type.",
    422: "The file is no picture that can be decoded whole.",
    429: "Too many requests of this client; see `Retry-After`.",
    503: "The queue is full; see `Retry-After`.",
}
_TROUBLE: dict[int | str, dict[str, Any]] = {
    status: {"model": Trouble, "description": text} for status, text in _REASONS.items()
}
_NO_SUCH = {"model": Trouble, "description": "There is no such head, class or number."}
_NO_MAPS = {"model": Trouble, "description": "This model cannot be explained."}


def build_front(backend: Backend, about: About, limits: Limits) -> FastAPI:
    """Make the application.

    Args:
        backend: The model.
        about: What it is.
        limits: What is refused.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title="hmtl-dist",
        version=__version__,
        description="What a trained model sees in a picture. The picture is taken as the face: none is looked for.",
    )
    metrics = Metrics()
    app.add_middleware(Gate, limits=limits, metrics=metrics)
    _add_handlers(app)
    _add_pages(app, backend, about, metrics)

    @app.post("/predict", openapi_extra=_BODY, responses=_TROUBLE)
    async def predict(request: Request) -> Prediction:
        """Say what the model sees in a picture: probabilities of classes, and numbers in their units."""
        answer = await backend.predict(await read_picture(request, limits))
        if isinstance(answer, Refusal):
            raise HTTPException(answer.status, answer.reason)
        metrics.computed(answer)
        return prediction(about, answer.values)

    @app.post("/explain", openapi_extra=_BODY, responses=_TROUBLE | {404: _NO_SUCH, 501: _NO_MAPS})
    async def explain(
        request: Request,
        head: Annotated[str, Query(description="The first one, if empty.")] = "",
        name: Annotated[str, Query(description="A class or number; the likeliest class, if empty.")] = "",
    ) -> Explanation:
        """Say which region of a picture spoke for a class or number, by Grad-CAM."""
        if not about.explains:
            raise HTTPException(501, "This model cannot be explained: export it as safetensors.")
        head = head or next(iter(about.heads))
        if head not in about.heads:
            raise HTTPException(404, f"There is no head '{head[:60]}'; there is {', '.join(about.heads)}.")
        if name and name not in about.heads[head].names:
            names = ", ".join(about.heads[head].names)
            raise HTTPException(404, f"The head '{head}' has no '{name[:60]}'; it has {names}.")
        answer = await backend.explain(await read_picture(request, limits), head, name)
        if isinstance(answer, Refusal):
            raise HTTPException(answer.status, answer.reason)
        return answer

    _ = predict, explain
    return app


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(BusyError)
    async def busy(request: Request, error: Exception) -> JSONResponse:
        return refusal(503, "Too many pictures are waiting; come again later.", RETRY_SECONDS)

    @app.exception_handler(UnavailableError)
    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        return refusal(503, "The model is being started again; come again later.", 5 * RETRY_SECONDS)

    _ = busy, unavailable


def _add_pages(app: FastAPI, backend: Backend, about: About, metrics: Metrics) -> None:
    html = page()
    policy = page_policy(html)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/model")
    async def model() -> About:
        """Say what is served: heads with their classes and units, what part of a picture is seen, limits."""
        return about

    @app.get("/healthz", responses={503: {"model": Trouble, "description": "No process has the model."}})
    async def healthz() -> dict[str, str]:
        """Say whether pictures can be answered; a full queue is healthy."""
        if not await backend.alive():
            raise HTTPException(503, "No process has the model.")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {MEDIA_TYPE: {}}}})
    async def prometheus() -> Response:
        """Count requests, their time and batches, for Prometheus."""
        return Response(metrics.text(), media_type=MEDIA_TYPE)

    _ = index, model, healthz, prometheus
