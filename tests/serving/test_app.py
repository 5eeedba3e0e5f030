"""The service over real HTTP on loopback: answers are those of direct calls, and what is wrong is said."""

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from support import make_model, make_tokenizer
from support.service import request, serving

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Prior, Recommender
from dmpo_trl.serving import ServiceLimits, make_app

TITLES = [
    "Alien",
    "Aliens",
    "Alien 3",
    "The Mask",
    "The Matrix",
    "Star Wars",
    "Toy Story",
    "Heidi",
    "Babe",
    "The Rock",
]
LIMITS = ServiceLimits(history=5, candidates=8, k=6, body=2_000, waiting=100, batch=4)


@pytest.fixture(scope="module")
def recommender():
    items = pl.DataFrame({"item": [str(100 + row) for row in range(len(TITLES))], "title": TITLES})
    return Recommender(make_model(), make_tokenizer(), items, MOVIES)


@pytest.fixture(scope="module")
def port(recommender):
    with serving(make_app(recommender, LIMITS)) as port:
        yield port


def assert_answer(answer, expected):
    assert [(one["rank"], one["item"], one["title"]) for one in answer["recommendations"]] == [
        (rank, one.item, one.title) for rank, one in enumerate(expected, start=1)
    ]
    scores = [one["score"] for one in answer["recommendations"]]
    assert scores == pytest.approx([one.score for one in expected], abs=5e-5)
    assert answer["score"] == "sum"


def test_recommend(port, recommender):
    status, answer = request(port, "/recommend", {"history": ["Alien", "107"], "k": 3, "exclude": ["Babe"]})
    assert status == 200
    assert_answer(answer, recommender.recommend(["Alien", "Heidi"], 3, exclude=["Babe"]))
    status, answer = request(port, "/recommend", {"history": []})
    assert status == 200
    assert_answer(answer, recommender.recommend([], 6))


def test_rank(port, recommender):
    status, answer = request(port, "/rank", {"history": ["Alien"], "candidates": ["Babe", "101", "The Rock"]})
    assert status == 200
    assert_answer(answer, recommender.rank(["Alien"], ["Babe", "Aliens", "The Rock"]))


def test_explain(port, recommender):
    status, answer = request(port, "/explain", {"history": ["Alien", "Heidi"], "item": "Babe"})
    expected = recommender.explain(["Alien", "Heidi"], "Babe")
    assert status == 200
    effects = answer.pop("effects")
    assert answer == {"item": "108", "title": "Babe", "score": pytest.approx(expected.score), "kind": "sum"}
    assert [(one["item"], one["title"]) for one in effects] == [("100", "Alien"), ("107", "Heidi")]
    assert np.allclose([one["effect"] for one in effects], expected.effects, atol=1e-4)


def test_health_and_description(port):
    status, answer = request(port, "/health")
    assert (status, answer["status"], answer["titles"], answer["waiting"]) == (200, "ok", 10, 0)
    status, answer = request(port, "/openapi.json")
    assert status == 200
    assert set(answer["paths"]) == {"/recommend", "/rank", "/explain", "/health"}
    assert set(answer["paths"]["/rank"]["post"]["responses"]) >= {"200", "413", "422", "500", "503"}
    assert "histories of up to 5 items" in answer["info"]["description"]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_there_is_no_page_that_loads_scripts_from_another_host(port, page):
    assert request(port, page) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/recommend", {"history": ["Alein"]}, "history: 'Alein' is neither an item id nor a title of the catalogue. "
         "Did you mean 'Alien'"),
        ("/recommend", {"history": ["Alien"], "exclude": ["Heidy"]}, "exclude: 'Heidy' .* Did you mean 'Heidi'"),
        ("/recommend", {"history": ["Alien"], "k": 7}, "k: 7 items, and this service recommends 6 at most"),
        ("/recommend", {"history": ["Alien"] * 6}, "history: 6 items, and this service takes 5 at most"),
        ("/rank", {"history": [], "candidates": ["Babe"] * 9}, "candidates: 9 items, .* takes 8 at most"),
        ("/rank", {"history": ["Alien"], "candidates": ["Matrix, The"]}, "candidates: 'Matrix, The'"),
        ("/explain", {"history": ["Alien"], "item": "\N{BUG}"}, "item: '\N{BUG}'"),
    ],
)  # fmt: skip
def test_what_the_catalogue_or_the_limits_refuse_is_said_in_a_sentence(port, path, body, said):
    status, answer = request(port, path, body)
    assert status == 422
    assert re.search(said, answer["detail"])


@pytest.mark.parametrize(
    "kind",
    ["application/x-www-form-urlencoded", "text/plain", "text/json", "application/json-seq"],  # the first is curl's
)
def test_what_does_not_come_as_json_is_told_the_header(port, kind):
    status, answer = request(port, "/recommend", {"history": ["Alien"]}, {"Content-Type": kind})
    assert (status, answer["detail"]) == (422, "Send JSON, with the header `Content-Type: application/json`.")


def test_json_comes_by_any_of_its_names_and_in_any_unicode(port):
    history = {"history": ["Alein"]}
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        status, answer = request(port, "/recommend", history, {"Content-Type": kind})
        assert (status, "Did you mean 'Alien'" in answer["detail"]) == (422, True)
        status, answer = request(port, "/recommend", {}, {"Content-Type": kind})
        assert (status, answer["detail"][0]["loc"]) == (422, ["body", "history"])
    for encoding, expected in (("utf-8", 200), ("utf-16", 200), ("utf-32", 200), ("latin-1", 400)):
        body = json.dumps({"history": [], "exclude": ["\xe9"] * (expected == 400)}, ensure_ascii=False)
        assert request(port, "/recommend", body.encode(encoding))[0] == expected


def test_a_long_title_is_not_sent_back_whole(recommender):
    with serving(make_app(recommender)) as port:
        status, answer = request(port, "/recommend", {"history": ["x" * 400_000]})
    assert (status, len(answer["detail"]) < 500) == (422, True)
    assert "xxx... (400,002 characters) is neither an item id nor a title" in answer["detail"]


def test_a_recommender_with_a_prior_is_not_served(recommender):
    parts = recommender.model, recommender.tokenizer, recommender.catalogue.frame, MOVIES
    with pytest.raises(ValueError, match="this recommender has the prior popularity: make one without `prior`"):
        make_app(Recommender(*parts, prior=Prior.popularity({}), prior_weight=1.0))


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/recommend", {}, ["body", "history"]),
        ("/recommend", {"history": "Alien"}, ["body", "history"]),
        ("/recommend", {"history": [7]}, ["body", "history", 0]),
        ("/recommend", {"history": [None]}, ["body", "history", 0]),
        ("/recommend", {"history": [], "k": 0}, ["body", "k"]),
        ("/recommend", {"history": [], "k": "3"}, ["body", "k"]),
        ("/recommend", {"history": [], "k": 1e400}, ["body"]),
        ("/recommend", {"history": [], "model": "/etc/passwd"}, ["body", "model"]),
        ("/recommend", {"history": [], "trust_remote_code": True}, ["body", "trust_remote_code"]),
        ("/rank", {"history": [], "candidates": []}, ["body", "candidates"]),
        ("/explain", {"history": [], "item": "Babe"}, ["body", "history"]),
        ("/recommend", [], ["body"]),
        ("/recommend", b'{"history": [', ["body"]),
        ("/recommend", b"\xff\xfe", None),
        ("/recommend", b'{"history": ["\\ud800"]}', None),
        ("/recommend", b"[" * 1900, None),
        ("/recommend", b"", ["body"]),
    ],
)
def test_what_has_another_form_is_refused_with_its_place(port, path, body, place):
    status, answer = request(port, path, body)
    assert status in (400, 422)
    if place is not None:
        assert answer["detail"][0]["loc"][: len(place)] == place


def test_a_large_body_is_refused_whatever_its_header_says(port):
    body = json.dumps({"history": ["x" * 3_000]}).encode()
    status, answer = request(port, "/recommend", body)
    assert (status, answer["detail"]) == (413, "The request has more than the 2,000 bytes that this service takes.")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:1500], body[1500:])) + b"0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /recommend HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    assert request(port, "/health")[0] == 200


def test_a_client_that_goes_away_harms_nobody(port, recommender):
    for sent in (b"POST /recommend HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", b"nonsense\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    status, answer = request(port, "/recommend", {"history": ["Alien"], "k": 2})
    assert status == 200
    assert_answer(answer, recommender.recommend(["Alien"], 2))


def test_requests_that_come_together_are_searched_together_and_each_gets_its_own_answer(recommender, monkeypatch):
    batches, search = [], recommender.recommend_batch
    monkeypatch.setattr(
        recommender,
        "recommend_batch",
        lambda users, *rest, **options: batches.append(len(users)) or search(users, *rest, **options),
    )
    histories = [[TITLES[number % 10], TITLES[(3 * number + 1) % 10]] for number in range(24)]
    with serving(make_app(recommender, LIMITS)) as port, ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda own: request(port, "/recommend", {"history": own, "k": 4}), histories))
    monkeypatch.undo()
    for history, (status, answer) in zip(histories, answers, strict=True):
        assert status == 200
        assert_answer(answer, recommender.recommend(history, 4))
    assert sum(batches) == 24
    assert 1 < max(batches) <= 4


def test_too_many_at_once_are_told_to_come_again(recommender):
    histories = [[title] for title in TITLES] * 3
    with serving(make_app(recommender, ServiceLimits(waiting=1, batch=1))) as port, ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(lambda own: request(port, "/recommend", {"history": own}), histories))
        assert request(port, "/health")[1]["waiting"] == 0
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert all("come again" in answer["detail"] for status, answer in answers if status == 503)


def test_a_model_that_fails_is_an_error_of_the_service_and_it_goes_on(recommender, monkeypatch, caplog):
    def fails(*_, **__):
        raise RuntimeError("CUDA out of memory: a secret path")

    with serving(make_app(recommender, LIMITS)) as port:
        with monkeypatch.context() as patch:
            patch.setattr(recommender, "rank", fails)
            status, answer = request(port, "/rank", {"history": [], "candidates": ["Babe"]})
        assert status == 500
        assert "secret" not in json.dumps(answer)
        assert "CUDA out of memory" in caplog.text
        assert request(port, "/rank", {"history": [], "candidates": ["Babe"]})[0] == 200


def test_a_model_whose_scores_are_nan_is_an_error_of_the_service(caplog):
    model = make_model()
    model.get_output_embeddings().weight.data.fill_(np.nan)
    items = pl.DataFrame({"item": ["1", "2"], "title": ["Alien", "Heidi"]})
    with serving(make_app(Recommender(model, make_tokenizer(), items, MOVIES))) as port:
        for path, body in (("/recommend", {}), ("/rank", {"candidates": ["Heidi"]}), ("/explain", {"item": "Heidi"})):
            status, answer = request(port, path, {"history": ["Alien"], **body})
            assert (status, answer["detail"]) == (500, "The model failed; the log of the service says why.")
    assert caplog.text.count("not finite") >= 3


def test_who_has_gone_is_not_computed_for(recommender, monkeypatch):
    """While one call runs, clients ask and go: their requests leave the queue."""
    asked, begun, goes_on = [], threading.Event(), threading.Event()
    rank = recommender.rank

    def slowly(history, candidates):
        asked.append(history)
        begun.set()
        goes_on.wait(60)
        return rank(history, candidates)

    monkeypatch.setattr(recommender, "rank", slowly)
    body = json.dumps({"history": ["Babe"], "candidates": ["Alien"]}).encode()
    head = f"POST /rank HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(make_app(recommender, LIMITS)) as port, ThreadPoolExecutor(1) as client:
        first = client.submit(request, port, "/rank", {"history": ["Heidi"], "candidates": ["Alien"]})
        assert begun.wait(60)
        impatient = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for connection in impatient:
            connection.sendall(head.encode() + body)
        wait_until(lambda: request(port, "/health")[1]["waiting"] == 3)
        for connection in impatient:
            connection.close()
        wait_until(lambda: request(port, "/health")[1]["waiting"] == 0)
        goes_on.set()
        assert first.result()[0] == 200
        assert request(port, "/rank", {"history": ["Aliens"], "candidates": ["Alien"]})[0] == 200
    assert asked == [["Heidi"], ["Aliens"]]


def wait_until(there):
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)
