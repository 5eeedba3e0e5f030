import asyncio
import threading

from dmpo_trl.serving.batcher import Batcher, QueueFullError


class Model:
    """Doubles numbers, one call at a time, from when it is let go."""

    def __init__(self):
        self.calls, self.go, self.busy = [], threading.Event(), False

    def __call__(self, numbers):
        assert not self.busy, "two calls at a time"
        self.busy = True
        self.calls.append(list(numbers))
        assert self.go.wait(60)
        self.busy = False
        if -1 in numbers:
            raise ValueError("-1 is wrong")
        if -2 in numbers:
            raise RuntimeError("the model failed")
        return [2 * number for number in numbers]


def ask_all(questions, *, cancel=(), **options):
    """Ask `(number, kind)` in order, the first call held up until all wait; give the outcomes and the calls."""
    model = Model()

    async def whole():
        batcher = Batcher(**{"batch": 3, "waiting": 10, **options})
        work = asyncio.create_task(batcher.run())
        asked = []
        for number, kind in questions:
            asked.append(asyncio.create_task(batcher.ask(model, number, kind)))
            while not model.calls:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for index in cancel:
            asked[index].cancel()
        model.go.set()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        work.cancel()
        return outcomes

    return asyncio.run(whole()), model.calls


def test_what_waits_is_answered_together_by_kind_and_up_to_the_limit():
    questions = [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "a"), (6, "a"), (7, "b")]
    outcomes, calls = ask_all(questions)
    assert outcomes == [2, 4, 6, 8, 10, 12, 14]
    assert calls == [[1], [2, 4, 5], [3, 7], [6]]


def test_a_mistake_is_nobody_elses():
    outcomes, calls = ask_all([(0, "a"), (1, "a"), (-1, "a"), (2, "a")])
    assert [str(one) for one in outcomes] == ["0", "2", "-1 is wrong", "4"]
    assert calls == [[0], [1, -1, 2], [1], [-1], [2]]


def test_a_failure_of_the_model_is_told_to_all_and_the_next_are_answered():
    outcomes, _ = ask_all([(0, "a"), (1, "a"), (-2, "a"), (3, "b")])
    assert [str(one) for one in outcomes] == ["0", "the model failed", "the model failed", "6"]


def test_who_has_gone_is_not_computed():
    outcomes, calls = ask_all([(0, "a"), (1, "a"), (2, "a"), (3, "b")], cancel=[1, 3])
    assert [outcomes[0], outcomes[2]] == [0, 4]
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert calls == [[0], [2]]


def test_no_more_than_allowed_may_wait():
    outcomes, calls = ask_all([(0, "a"), (1, "a"), (2, "a"), (3, "a"), (4, "a")], waiting=2)
    assert outcomes[:3] == [0, 2, 4]
    assert [type(one) for one in outcomes[3:]] == [QueueFullError, QueueFullError]
    assert calls == [[0], [1, 2]]
