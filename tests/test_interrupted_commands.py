"""Commands that are killed and started again end as if they had been left alone, and leave nothing else behind."""

import json
import random
import signal
import subprocess
import sys

import pytest
from support import SCRIPTS, cpu_environment, save_model

pytestmark = pytest.mark.slow

KILLS = 20  # of each command, divided among its variants; half of them between two steps on the disk
PREPARE = "prepare --dataset table --template movies --negatives 2 --candidates 5 --test_users 4"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command in a folder of its own; gives the exit code and the number of steps and events."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "interrupted_commands.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread: a process with more cannot be forked
        env=cpu_environment() | {"HF_DATASETS_CACHE": str(tmp_path_factory.mktemp("cache"))},
    )

    def start(arguments, root, kill=None, cwd=None):
        command = {"arguments": arguments, "root": str(root), "cwd": str(cwd or root), "kill": kill or {}}
        print(json.dumps(command | {"log": f"{root}.log"}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield start
    process.stdin.close()
    assert process.wait() == 0


@pytest.fixture(scope="module")
def given(tmp_path_factory, start):
    """What the commands read: a model, raw data, prepared data, and a file of users."""
    folder = tmp_path_factory.mktemp("given")
    save_model(folder / "model")
    rows = [(user, (7 * user + 3 * step) % 40, step) for user in range(30) for step in range(5)]
    lines = ["user,item,timestamp,title", *(f"{user},{item},{step},Film {item}" for user, item, step in rows)]
    (folder / "rows.csv").write_text("\n".join(lines))
    users = [{"user": user, "history": [str(user % 40), str((user * 7 + 1) % 40)]} for user in range(150)]
    (folder / "users.jsonl").write_text("\n".join(map(json.dumps, users)))
    for output, test_users in (("data", "4"), ("many", "20")):
        options = ["--path", f"{folder}/rows.csv", "--output_dir", output, "--test_users", test_users]
        code, *_ = start([*PREPARE.split(), *options], folder)
        assert code == 0, (folder.with_name(f"{folder.name}.log")).read_text()
    return folder


def earlier_data(root, given, start):
    (root / "out").mkdir()
    arguments = [*PREPARE.split(), "--path", f"{given}/rows.csv", "--output_dir", "out", "--pairs"]
    assert start(arguments, root)[0] == 0


def earlier_export(root, given, start):
    arguments = ["export", "--model", f"{given}/model", "--data", f"{given}/data", "--output_dir", "out"]
    assert start([*arguments, "--dtype", "bfloat16"], root)[0] == 0


def nothing(root, given, start):
    pass


# Options of the command, where it runs, what lies at its output before, and its share of the kills
VARIANTS = {
    "prepare": (f"{PREPARE} --path {{given}}/rows.csv --output_dir out", ".", nothing, 6),
    "prepare-overwrite": (f"{PREPARE} --path {{given}}/rows.csv --output_dir out --overwrite", ".", earlier_data, 7),
    "prepare-in-place": (f"{PREPARE} --path {{given}}/rows.csv --output_dir . --overwrite", "out", earlier_data, 7),
    "evaluate": (
        "evaluate --model {given}/model --data {given}/many --output_dir out --generate --fuse popularity",
        *(".", nothing, KILLS),
    ),
    "recommend": (
        "recommend --model {given}/model --data {given}/data --users {given}/users.jsonl --output out --k 3 "
        "--num_beams 3 --batch_size 32",
        *(".", nothing, 14),
    ),
    "recommend-candidates": (
        "recommend --model {given}/model --data {given}/data --users {given}/users.jsonl --output out --k 3 "
        "--candidates item_knn --candidates_per_user 6 --batch_size 32",
        *(".", nothing, 6),
    ),
    "export": ("export --model {given}/model --data {given}/data --output_dir out", ".", nothing, 10),
    "export-overwrite": (
        "export --model {given}/model --data {given}/data --output_dir out --overwrite",
        *(".", earlier_export, 10),
    ),
}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_command_ends_as_one_that_was_left_alone(variant, given, start, tmp_path):
    template, cwd, before, kills = VARIANTS[variant]
    arguments = template.format(given=given).split()

    def new(name):
        root = tmp_path / name
        root.mkdir()
        (root / "notes.txt").write_text("mine")
        (root / ".out").write_text("mine")
        before(root, given, start)
        return root

    whole = new("whole")
    code, steps, events = start(arguments, whole, cwd=whole / cwd)
    assert code == 0, (tmp_path / "whole.log").read_text()
    whole_run = contents(whole)
    assert {"notes.txt", ".out"} < whole_run.keys()
    generator = random.Random(variant)
    states = set()
    half = kills // 2
    drawn = [{"step": step} for step in generator.sample(range(1, steps + 1), half)]
    drawn += [{"event": generator.randint(1, int(0.9 * events))} for _ in range(kills - half)]
    for number, kill in enumerate(drawn):
        root = new(str(number))
        earlier = contents(root)
        assert start(arguments, root, kill, root / cwd)[0] == -signal.SIGKILL, (kill, steps, events)
        left = contents(root)
        states.add(
            "done" if contents(whole).items() <= left.items() else "old" if earlier.items() <= left.items() else ""
        )
        code, *_ = start(arguments, root, cwd=root / cwd)
        if code and "--overwrite" not in arguments:  # it was there when the run was killed
            assert whole_run.items() <= left.items()
            assert "already; choose another" in (tmp_path / f"{number}.log").read_text()
        else:
            assert code == 0, (tmp_path / f"{number}.log").read_text()
        assert contents(root) == whole_run, kill
        assert names(root) == names(whole), kill
    assert "old" in states
    went_on = {"evaluate": "users were done by an interrupted run", "recommend": "parts of an interrupted run in"}
    if variant in went_on:  # of a short `recommend` most kills are before the first part
        logs = [(tmp_path / f"{number}.log").read_text() for number in range(kills)]
        assert sum(went_on[variant] in log for log in logs) > (kills // 4 if variant == "evaluate" else 0)


def test_the_kills_are_twenty_of_each_command():
    for command in ("prepare", "evaluate", "recommend", "export"):
        assert sum(kills for name, (*_, kills) in VARIANTS.items() if name.startswith(command)) >= KILLS
