"""Benchmark of the service on loopback, one thread: many clients at once, against direct calls of the recommender.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --output benchmarks/results

`dmpo-trl serve` runs in a process of its own. In each round this process first calls the recommender directly, for one
user after the other, then asks the service for the same users: one client alone, and many at once, each of whom waits
for the answer before the next request. Seconds are those of the clock, as a client sees them, so that they are given
as multiples of the median direct call of the run:

    p50, p95      of all requests of a row, until the answer is there
    throughput    answers in the time of one direct call; more than 1 is what searching together gains

An answer is lost or wrong where its status is not 200 or its items or scores are not those of the direct call. The
memory that the service gained is counted from the end of the first round to that of the last.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import report
import torch
from machine import describe
from models import default_model, movielens_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dmpo_trl.data import MOVIES, leave_one_out, read_recbole
from dmpo_trl.recommend import Recommendation, Recommender

K = 10
COLUMNS = ["route", "clients", "requests", "lost or wrong", "p50", "p95", "throughput", "MB gained"]


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    users: int = field(default=8, metadata={"help": "Users; clients ask for one after the other."})
    history: int = field(default=10, metadata={"help": "Films in a prompt."})
    num_beams: int = field(default=10, metadata={"help": "Beams of /recommend."})
    candidates: int = field(default=20, metadata={"help": "Candidates of /rank."})
    clients: list[int] = field(default_factory=lambda: [1, 64])
    rounds: int = 2
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})


@dataclass
class Route:
    """A route, the requests to it, and the direct call that each stands for."""

    path: str
    bodies: list[dict[str, Any]]
    direct: Callable[[dict[str, Any]], list[Recommendation]]


def routes(settings: Settings, recommender: Recommender, histories: list[list[str]]) -> list[Route]:
    items = recommender.catalogue.items[: settings.candidates]
    return [
        Route(
            "/recommend",
            [{"history": own, "k": K} for own in histories],
            lambda body: recommender.recommend(**body, num_beams=settings.num_beams),
        ),
        Route(
            "/rank",
            [{"history": own, "candidates": items} for own in histories],
            lambda body: recommender.rank(**body),
        ),
    ]


@contextmanager
def service(folder: str, num_beams: int) -> Iterator[tuple[int, int]]:
    """Serve a folder in a process of its own; gives its port and its process id."""
    command = [sys.executable, "-m", "dmpo_trl.cli", "serve", "--model", folder, "--port", "0"]
    process = subprocess.Popen([*command, "--num_beams", str(num_beams)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+),", process.stdout.readline())
        if found is None:
            raise RuntimeError("The service did not start.")
        yield int(found[1]), process.pid
    finally:
        process.terminate()
        process.communicate()


def ask(port: int, path: str, body: dict[str, Any]) -> tuple[float, int, Any]:
    """Return how long an answer took, its status and itself."""
    connection = HTTPConnection("127.0.0.1", port)
    start = time.perf_counter()
    connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return time.perf_counter() - start, answer.status, content


def is_right(status: int, content: Any, expected: list[Recommendation]) -> bool:
    if status != 200:
        return False
    got = {one["item"]: one["score"] for one in content["recommendations"]}
    direct = {one.item: one.score for one in expected}
    return got.keys() == direct.keys() and all(abs(got[item] - direct[item]) < 1e-3 for item in got)


def measure(settings: Settings, route: Route, port: int, pid: int) -> list[dict[str, Any]]:
    direct: list[float] = []
    found: dict[int, list[tuple[float, bool]]] = {clients: [] for clients in settings.clients}
    took = dict.fromkeys(settings.clients, 0.0)
    memory: dict[int, list[int]] = {clients: [] for clients in settings.clients}
    for _ in range(settings.rounds):
        expected = []
        for body in route.bodies:
            start = time.perf_counter()
            expected.append(route.direct(body))
            direct.append(time.perf_counter() - start)
        for clients in settings.clients:
            # As many requests as users, or as clients where these are more
            numbers = [number % len(route.bodies) for number in range(max(clients, len(route.bodies)))]

            def client(which: int, expected: list[list[Recommendation]] = expected) -> tuple[float, bool]:
                seconds, status, content = ask(port, route.path, route.bodies[which])
                return seconds, is_right(status, content, expected[which])

            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                found[clients] += pool.map(client, numbers)
            took[clients] += time.perf_counter() - start
            memory[clients].append(psutil.Process(pid).memory_info().rss)
    call = float(np.median(direct))
    rows = [(route.path, "direct", len(direct), 0, 1.0, float(np.quantile(direct, 0.95)) / call, 1.0, float("nan"))]
    for clients, answers in found.items():
        seconds = [one for one, _ in answers]
        p50, p95 = (float(np.quantile(seconds, part)) / call for part in (0.5, 0.95))
        wrong = sum(not right for _, right in answers)
        gained = (memory[clients][-1] - memory[clients][0]) / 1e6
        rows.append(
            (route.path, str(clients), len(answers), wrong, p50, p95, len(answers) * call / took[clients], gained)
        )
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    model_folder = settings.model or default_model()
    data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
    length = settings.history
    examples = leave_one_out(data, min_rating=4.0, history_length=length, min_history=length).head(settings.users)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    recommender = Recommender(model, tokenizer, data.items.select("item", "title"), MOVIES)
    header = describe("fastapi", "uvicorn") | {"model": Path(model_folder).name}
    header["searched"] = f"{len(data.items)} films, {settings.num_beams} beams; {settings.candidates} candidates"
    print("\n".join([report.head(header), "", report.table_head(COLUMNS)]))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        recommender.save_pretrained(folder)
        with service(folder, settings.num_beams) as (port, pid):
            for route in routes(settings, recommender, examples["history"].to_list()):
                for body in route.bodies[:1]:  # what is built at the first request
                    route.direct(body)
                    ask(port, route.path, body)
                for row in measure(settings, route, port, pid):
                    rows.append(row)
                    print(report.table_row(row, COLUMNS), flush=True)
    if settings.output is not None:
        report.add_rows(settings.output, "serve", report.command("serve", arguments), header, rows)


if __name__ == "__main__":
    main()
