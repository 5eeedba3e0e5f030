"""Interruptions: runs that are killed and started again end as one that was left alone."""

import json
import random
import shutil
import signal
import subprocess
import sys

import pytest
from datasets import Dataset
from support import SCRIPTS, cpu_environment, save_model

pytestmark = pytest.mark.slow

SAVE_STEPS, MAX_STEPS = 2, 10
TITLES = ["Alien", "Babe", "Heidi", "Toy Story", "The Matrix", "The Mask", "The Rock", "Star Wars"]
VARIANTS = {
    "full": {},
    "lora": {"lora": True, "gradient_accumulation_steps": 2},  # dropout: the random numbers must go on as well
    "precomputed": {"precompute_ref_log_probs": True, "save_total_limit": 1},
}
RUNS = 3  # of each variant, killed three times each, in the precomputation as well


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run: the folder's name and the options go in, the exit code comes out."""
    root = tmp_path_factory.mktemp("runs")
    save_model(root / "model")
    script = SCRIPTS / "interrupted_training.py"
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=cpu_environment(),  # a process with threads cannot be forked
    )

    def start(name, **run):
        folder = root / name
        if not folder.exists():
            rows = [
                {
                    "prompt": f"Watched: {', '.join(TITLES[: 1 + i % 4])}. Next:",
                    "chosen": f" {TITLES[i % 8]}",
                    "rejected": [f" {TITLES[(i + k) % 8]} II" for k in range(1, 2 + i % 3)],
                }
                for i in range(12)  # six steps an epoch
            ]
            Dataset.from_list(rows).save_to_disk(folder / "rows")
        run |= {"folder": str(folder), "log": str(folder / "log"), "save_steps": SAVE_STEPS, "max_steps": MAX_STEPS}
        print(json.dumps(run), file=process.stdin, flush=True)
        return folder, json.loads(process.stdout.readline())[0]

    yield start
    process.stdin.close()
    assert process.wait() == 0


@pytest.fixture(scope="module", params=VARIANTS)
def uninterrupted(request, start):
    """A variant and its run without a kill, all of whose checkpoints are kept."""
    folder, code = start(f"{request.param}-whole", kill={}, **VARIANTS[request.param] | {"save_total_limit": None})
    assert code == 0, (folder / "log").read_text()
    return request.param, folder


def draw_kills(seed, variant, whole):
    """Kills in the order of their steps, so that each is reached whatever the earlier ones destroyed."""
    generator = random.Random(f"{variant} {seed}")
    events = json.loads((whole / "found.json").read_text())["events"]

    def event(phase, step):  # a few events more or less are there with warm and cold caches
        return {"phase": phase, "step": step, "event": 1 + generator.randrange(int(0.95 * events[f"{phase} {step}"]))}

    saves = generator.sample(range(SAVE_STEPS, MAX_STEPS + 1, SAVE_STEPS), 2)
    step_only = generator.choice([step for step in range(1, MAX_STEPS + 1) if step % SAVE_STEPS])
    in_a_write = saves[0] if seed else None
    kills = [event("precompute", 0)] if "precompute 0" in events else []
    for step in sorted([*saves, step_only]):
        if step == step_only:
            kills.append(event("step", step))
        elif step != in_a_write:
            kills.append(event("save", step))
        else:
            sizes = [path.stat().st_size for path in (whole / "out" / f"checkpoint-{step}").iterdir()]
            largest = generator.choice(sorted(sizes)[-3:])
            kills.append({"phase": "save", "step": step, "bytes": generator.randrange(4096, largest)})
    return kills


def is_whole(checkpoint, whole):
    """The oracle: every file is there with the uninterrupted run's size, the weights with its bytes."""
    for expected in (whole / "out" / checkpoint.name).iterdir():
        own = checkpoint / expected.name
        if not own.exists():
            return False
        if own.suffix == ".safetensors" and own.read_bytes() != expected.read_bytes():
            return False
        if own.name == "trainer_state.json":  # times are in it
            if not own.read_text().endswith("}\n"):
                return False
        elif own.name != "training_args.bin" and own.stat().st_size != expected.stat().st_size:  # paths are in it
            return False
    return True


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def losses(run):
    log = json.loads((run / "out" / f"checkpoint-{MAX_STEPS}" / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"], entry["rewards/margins"]) for entry in log]


@pytest.mark.parametrize("seed", range(RUNS))
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_run(uninterrupted, start, seed):
    variant, whole = uninterrupted
    kills = draw_kills(seed, variant, whole)
    name = f"{variant}-{seed}"
    for number, kill in enumerate([*kills, {}]):
        out = whole.with_name(name) / "out"
        before = list(out.glob("checkpoint-*")) if number else []
        whole_ones = [folder for folder in before if is_whole(folder, whole)]
        half_ones = {folder.name: listing(folder) for folder in before if folder not in whole_ones}
        set_aside_before = {folder: listing(folder) for folder in out.glob("incomplete-*")}
        rows_before = listing(out.parent / "rows") if number else {}
        folder, code = start(name, kill=kill, **VARIANTS[variant])
        log = (folder / "log").read_text()
        if not kill:
            assert code == 0, log
        else:
            assert code == -(signal.SIGXFSZ if "bytes" in kill else signal.SIGKILL), (kill, log)
        if kill.get("phase") != "precompute":
            # What was half-written lies beside the run as it was, and the log names it
            for checkpoint, files in half_ones.items():
                asides = out.glob(f"incomplete-{checkpoint}*")
                assert files in [listing(aside) for aside in asides if aside not in set_aside_before]
                assert f"{out / checkpoint} is not whole" in log
        for aside, files in set_aside_before.items():
            assert listing(aside) == files
        # datasets' half-written files too; nothing reads them, as the same losses show
        assert rows_before.items() <= listing(folder / "rows").items()
    last_whole = max((int(folder.name.split("-")[1]) for folder in whole_ones), default=None)
    loaded_from = json.loads((folder / "found.json").read_text())["loaded_from"]
    assert loaded_from == (None if last_whole is None else str(out / f"checkpoint-{last_whole}"))
    # The checkpoints that were kept, and the model of `save_model`
    kept = [path for path in out.rglob("*.safetensors") if "incomplete" not in str(path)]
    assert {out / f"checkpoint-{MAX_STEPS}", out} <= {path.parent for path in kept}
    for path in kept:
        assert path.read_bytes() == (whole / "out" / path.relative_to(out)).read_bytes(), path
    assert losses(folder) == losses(whole)
    shutil.rmtree(folder)


def test_the_kills_are_enough_and_of_every_kind(uninterrupted):
    variant, whole = uninterrupted
    kills = [kill for seed in range(RUNS) for kill in draw_kills(seed, variant, whole)]
    assert sum("event" in kill for kill in kills) * len(VARIANTS) >= 20  # by SIGKILL
    assert sum("bytes" in kill for kill in kills) == 2  # in the middle of a write, by SIGXFSZ
    phases = {kill["phase"] for kill in kills}
    assert phases == {"step", "save"} | ({"precompute"} if variant == "precomputed" else set())
