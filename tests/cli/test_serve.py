"""`dmpo-trl serve` as a process: it answers, ends when told to with nothing lost, and refuses what cannot be."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from support import cpu_environment
from support.prepared import model_and_data
from support.service import request

from dmpo_trl.cli import main
from dmpo_trl.recommend import Recommender


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = model_and_data(tmp_path_factory.mktemp("serve"))
    main(["export", "--model", f"{folder}/model", "--data", f"{folder}/data", "--output_dir", f"{folder}/exported"])
    return folder


@pytest.fixture
def start(folder):
    """Starts the service; gives the process and its port."""
    processes = []

    def start(*options):
        command = [sys.executable, "-m", "dmpo_trl.cli", "serve", "--model", f"{folder}/exported", "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*command, *options], env=cpu_environment(), **pipes)
        processes.append(process)
        said = process.stdout.readline()
        found = re.search(r"Serving 40 titles on http://127\.0\.0\.1:(\d+),", said)
        assert found, said + process.stderr.read()
        return process, int(found[1])

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, -signal.SIGTERM), pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow)]
)
def test_a_service_that_is_told_to_stop_answers_who_waits(start, folder, how, code):
    process, port = start("--batch_size", "2")
    recommender = Recommender.from_pretrained(folder / "exported")
    histories = [[f"Film {number}", f"Film {(7 * number) % 40}"] for number in range(16)]
    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(request, port, "/recommend", {"history": own, "k": 3}) for own in histories]
        while request(port, "/health")[1]["waiting"] == 0 and not all(one.done() for one in asked):
            time.sleep(0.001)
        process.send_signal(how)
        answers = [one.result() if one.exception() is None else None for one in asked]
    assert process.wait() == code
    assert "Traceback" not in process.stderr.read()
    got = [(own, answer) for own, answer in zip(histories, answers, strict=True) if answer is not None]
    assert len(got) > 2  # who had not been accepted by then could not connect
    for history, (status, answer) in got:
        assert status == 200
        expected = recommender.recommend(history, 3)
        assert [one["item"] for one in answer["recommendations"]] == [one.item for one in expected]


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=rf"Nothing can listen at --host 127\.0\.0\.1 --port {port}: .*in use"):
            main(["serve", "--model", "no such model", "--port", port])


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"needs fastapi and uvicorn: pip install '\.\[serve\]'"):
        main(["serve", "--model", "no such model"])


@pytest.mark.slow
def test_64_clients_get_every_answer_and_memory_stays_flat(start, folder):
    """Each client asks for all routes in turn; answers are those of direct calls."""
    process, port = start()
    recommender = Recommender.from_pretrained(folder / "exported")
    histories = [[f"Film {number}", f"Film {(11 * number + 3) % 40}"] for number in range(40)]
    candidates = ["Film 1", "Film 2", "Film 3"]
    expected = {
        "/recommend": [recommender.recommend(own, 5) for own in histories],
        "/rank": [recommender.rank(own, candidates) for own in histories],
    }
    effects = [recommender.explain(own, "Film 5").effects.tolist() for own in histories]
    lock, seen = threading.Lock(), []

    def client(number):
        for turn in range(4):
            which = (5 * number + turn) % 40
            path = ("/recommend", "/rank", "/recommend", "/explain")[(number + turn) % 4]
            rest = {"/recommend": {"k": 5}, "/rank": {"candidates": candidates}, "/explain": {"item": "Film 5"}}[path]
            status, answer = request(port, path, {"history": histories[which], **rest})
            with lock:
                seen.append((path, which, status, answer))

    def load():
        with ThreadPoolExecutor(64) as clients:
            list(clients.map(client, range(64)))
        return psutil.Process(process.pid).memory_info().rss

    first = load()
    second, third = load(), load()
    assert len(seen) == 3 * 64 * 4
    for path, which, status, answer in seen:
        assert status == 200, json.dumps(answer)
        if path == "/explain":
            assert [one["effect"] for one in answer["effects"]] == pytest.approx(effects[which], abs=1e-4)
            continue
        direct = {one.item: one.score for one in expected[path][which]}
        got = {one["item"]: one["score"] for one in answer["recommendations"]}
        assert got == pytest.approx(direct, abs=1e-4)
    assert third - second < 16e6, (first, second, third)
