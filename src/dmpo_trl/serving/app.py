"""The application: its routes, from a request to a model call and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from email.message import Message
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from ..modeling.verdict import NonFiniteLogitsError
from ..recommend import NonFiniteScoresError, Recommender
from .batcher import Batcher, QueueFullError
from .body_limit import BodyLimit
from .limits import ServiceLimits
from .messages import (
    ExplainAnswer,
    ExplainRequest,
    Health,
    Problem,
    RankRequest,
    RecommendAnswer,
    RecommendRequest,
)

logger = logging.getLogger(__name__)

_OF_THE_MODEL = (NonFiniteLogitsError, NonFiniteScoresError)  # errors that are not the request's fault
_LOOK_SECONDS = 0.5  # between looks at whether a client that waits is still there
_K = 10  # items, where a request does not say
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body cannot be parsed."},
    413: {"model": Problem, "description": "The request has too many bytes."},
    500: {"model": Problem, "description": "The model failed."},
    503: {"model": Problem, "description": "Too many requests wait; come again."},
}


def make_app(recommender: Recommender, limits: ServiceLimits | None = None) -> FastAPI:
    """Return a service around a recommender, an ASGI application.

    Requests wait in a queue before the model, which answers one call at a time; recommendations that wait together are
    searched for together. Requests name items and numbers only: which model runs, and how, is decided here.

    An item that is not in the catalogue, a list that is too long, a history that the model has no positions for: 422
    with a sentence that says so (and names the closest titles). What does not have the form that the OpenAPI
    describes: 422 with FastAPI's list of places. What does not come as JSON: 422 with a sentence. JSON that is not
    UTF-8, UTF-16 or UTF-32, nests too deeply or has a number of thousands of digits: 400. More bytes than allowed:
    413. Too many requests wait: 503.

    Args:
        recommender: The recommender, without a prior.
        limits: What requests may ask for.

    Raises:
        ValueError: The recommender has a prior.

    Example:
        >>> app = make_app(Recommender.from_pretrained("exported"))  # doctest: +SKIP
        >>> uvicorn.run(app, host="127.0.0.1", port=8000)  # doctest: +SKIP
    """
    if recommender.fusion is not None:
        raise ValueError(
            f"The service answers with the model's scores alone, and this recommender has the prior "
            f"{recommender.fusion.prior.name}: make one without `prior`."
        )
    limits = limits or ServiceLimits()
    queue = Batcher(limits.batch, limits.waiting)
    catalogue = recommender.catalogue

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(queue.run())
        yield
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    app = FastAPI(
        title="dmpo-trl",
        version=version("dmpo-trl"),
        summary="Recommendations by a language model.",
        description=f"Takes histories of up to {limits.history} items and up to {limits.candidates} candidates, "
        f"recommends up to {limits.k} items. Requests have up to {limits.body:,} bytes.",
        lifespan=lifespan,
        docs_url=None,  # the pages that FastAPI makes of the description load scripts from another host
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=limits.body)

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        """Say what has the wrong form and where; not the value, which JSON may not be able to hold."""
        if not _is_json(request.headers.get("content-type", "")):  # as curl's own is not: nothing was read
            return JSONResponse({"detail": "Send JSON, with the header `Content-Type: application/json`."}, 422)
        places = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]
        return JSONResponse({"detail": places}, 422)

    async def answer(
        http: Request,
        lists: Mapping[str, Sequence[str]],
        call: Callable[[Sequence[Any]], Sequence[Any]],
        argument: Any,
        kind: Hashable,
        k: int = 1,
    ) -> Any:
        """Check a request's lists of items, then ask the model."""

        def check() -> None:
            limits.check_k(k)
            for what, items in lists.items():
                limits.check(items, what)
                catalogue.rows(items, what)

        try:
            await run_in_threadpool(check)  # the closest titles of a large catalogue take a while to be found
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        try:
            return await _while_there(http, queue.ask(call, argument, kind))
        except QueueFullError:
            headers = {"Retry-After": "1"}
            raise HTTPException(503, "Too many requests wait; come again in a second.", headers) from None
        except HTTPException:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and not isinstance(error, _OF_THE_MODEL):
                raise HTTPException(422, str(error)) from error
            logger.exception("A call of the model failed.")
            raise HTTPException(500, "The model failed; the log of the service says why.") from error

    @app.post("/recommend", responses=_PROBLEMS)
    async def recommend(request: RecommendRequest, http: Request) -> RecommendAnswer:
        """Search the whole catalogue for the best items after a history."""

        k = request.k or min(_K, limits.k)

        def call(users: Sequence[RecommendRequest]) -> list[Any]:
            histories, excluded = [one.history for one in users], [one.exclude for one in users]
            return recommender.recommend_batch(histories, k, exclude=excluded, num_beams=limits.num_beams)

        lists = {"history": request.history, "exclude": request.exclude}
        found = await answer(http, lists, call, request, ("recommend", k), k)
        return RecommendAnswer.of(found, recommender.score)

    @app.post("/rank", responses=_PROBLEMS)
    async def rank(request: RankRequest, http: Request) -> RecommendAnswer:
        """Put candidates in order after a history."""

        def call(users: Sequence[RankRequest]) -> list[Any]:
            return [recommender.rank(one.history, one.candidates) for one in users]

        lists = {"history": request.history, "candidates": request.candidates}
        return RecommendAnswer.of(await answer(http, lists, call, request, object()), recommender.score)

    @app.post("/explain", responses=_PROBLEMS)
    async def explain(request: ExplainRequest, http: Request) -> ExplainAnswer:
        """Measure what each item of a history adds to the score of an item."""

        def call(users: Sequence[ExplainRequest]) -> list[Any]:
            return [recommender.explain(one.history, one.item) for one in users]

        lists = {"history": request.history, "item": [request.item]}
        return ExplainAnswer.of(await answer(http, lists, call, request, object()))

    @app.get("/health")
    async def health() -> Health:
        """Say that the service answers."""
        return Health(version=version("dmpo-trl"), titles=len(catalogue.titles), waiting=len(queue))

    return app


def _is_json(content_type: str) -> bool:
    """Return whether a header announces what FastAPI reads as JSON."""
    header = Message()
    header["content-type"] = content_type
    kind = header.get_content_type()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _while_there(http: Request, asked: Coroutine[Any, Any, Any]) -> Any:
    """Return what was asked for; when the client goes before that, take it out of the queue.

    Raises:
        HTTPException: The client has gone, and nobody will read this.
    """
    answer = asyncio.ensure_future(asked)
    while not (await asyncio.wait({answer}, timeout=_LOOK_SECONDS))[0]:
        if await http.is_disconnected():
            answer.cancel()
            raise HTTPException(499, "The client has gone.")
    return answer.result()
