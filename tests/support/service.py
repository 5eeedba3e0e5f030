"""A service on loopback in a thread of this process, and requests to it with what Python has."""

import json
import threading
from contextlib import contextmanager
from http.client import HTTPConnection

import uvicorn


@contextmanager
def serving(app):
    """Serve an application; gives the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the service did not start"
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def request(port, path, body=None, headers=None):
    """Return status and answer; bytes go as they are, all else as JSON."""
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (headers or {})
        connection.request("GET" if body is None else "POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
