"""`dmpo-trl serve`: recommendations over HTTP."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field

from .options import ModelArguments, Parser, check_at_least, check_port


@dataclass
class ServeArguments:
    """Where the service listens, and what it takes."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`dmpo-trl export`, `Recommender.save_pretrained` or `dmpo-trl train` left beside the model."
        },
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen at. Another than this machine's own has no password before it."},
    )
    port: int = field(default=8000, metadata={"help": "Port to listen at; 0 takes a free one."})
    num_beams: int = field(default=100, metadata={"help": "Number of title prefixes that a search follows at a time."})
    batch_size: int = field(default=16, metadata={"help": "Users searched together, at most."})
    max_waiting: int = field(
        default=256, metadata={"help": "Requests that may wait for the model; the next is told to come again."}
    )
    max_history: int = field(default=200, metadata={"help": "Items of a history, at most."})
    max_candidates: int = field(default=1000, metadata={"help": "Candidates of a request, at most."})
    max_k: int = field(default=100, metadata={"help": "Items that a request may ask for, at most."})
    max_bytes: int = field(default=1_000_000, metadata={"help": "Bytes of a request, at most."})
    stop_seconds: int = field(
        default=30, metadata={"help": "Seconds that requests have to be answered in when the service is stopped."}
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        counts = {name: 1 for name in vars(self) if name.startswith("max_")}
        check_at_least(self, port=0, num_beams=1, batch_size=1, stop_seconds=0, **counts)
        check_port(self.port)


def make_parser() -> Parser:
    """Return the command's parser."""
    return Parser("serve", ModelArguments, ServeArguments, example="dmpo-trl serve --model exported --port 8000")


def run(arguments: list[str]) -> None:
    """Serve as the arguments say, until the process is told to stop; who waits by then is still answered."""
    try:
        import uvicorn

        from ..serving import ServiceLimits, make_app
    except ImportError as error:
        raise ImportError(
            "The service needs fastapi and uvicorn: pip install '.[serve]' in a clone of dmpo-trl."
        ) from error
    from ._loading import load_recommender

    model, options = make_parser().parse(arguments)
    with listen(options.host, options.port) as listening:  # before the model is loaded
        recommender = load_recommender(model.model, model.from_pretrained(), data=options.data)
        limits = ServiceLimits(
            history=options.max_history,
            candidates=options.max_candidates,
            k=options.max_k,
            body=options.max_bytes,
            waiting=options.max_waiting,
            batch=options.batch_size,
            num_beams=options.num_beams,
        )
        config = uvicorn.Config(
            make_app(recommender, limits),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=options.stop_seconds,
        )
        address = url(options.host, listening.getsockname()[1])
        titles = len(recommender.catalogue.titles)
        print(
            f"Serving {titles:,} titles on {address}, described at {address}/openapi.json. Ctrl-C ends it.", flush=True
        )
        with suppress(KeyboardInterrupt):  # which uvicorn hands on when it has ended
            uvicorn.Server(config).run(sockets=[listening])


def url(host: str, port: int) -> str:
    """Return the address of a page on a host, which may be an IPv6 address.

    Example:
        >>> url("::1", 8000)
        'http://[::1]:8000'
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Args:
        host: The address.
        port: The port; 0 for a free one.

    Raises:
        OSError: Nothing can listen there.

    Example:
        >>> with listen("127.0.0.1", 0) as listening:
        ...     listening.getsockname()[0]
        '127.0.0.1'
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"Nothing can listen at --host {host} --port {port}: {error}. Choose another.") from error
