"""Requests that are too large are refused before they are read into memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class BodyLimit:
    """ASGI middleware that answers 413 where a body has more bytes than it may, whether its header says so or not.

    Args:
        app: The application.
        most: Bytes of a body, at most.
    """

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]], most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Read the body, and hand it on if it is small enough."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", True
        too_large = not declared.isdigit() or int(declared) > self._most
        while more and not too_large:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            too_large = len(body) > self._most
        if too_large:
            problem = {"detail": f"The request has more than the {self._most:,} bytes that this service takes."}
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(problem).encode()})
            return
        handed = False

        async def again() -> _Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)
