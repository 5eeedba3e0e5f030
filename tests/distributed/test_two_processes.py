"""Two processes with a batch of B rows each do what one does with 2B; CPUs, gloo, `accelerate launch`."""

import importlib.util
import json

import pytest
from support import save_model
from support.launch import launch
from support.training import saved_weights, train
from transformers import AutoModelForCausalLM

from dmpo_trl.training.run_record import RECORD

B = 2
# In float32. A sum in another order differs by rounding, which AdamW makes larger where a gradient is nearly zero;
# a step moves a weight by 1e-3.
WEIGHT_TOLERANCE = 5e-5
METRIC_TOLERANCE = 1e-4
# Times, and the tokens computed: what two processes share has to be computed in both
NOT_COMPARED = ("runtime", "per_second", "num_tokens", "preparation_time")
# Shares of rewards that are greater than others: rounding at the first step, where policy and reference are the same
COMPARISONS = ("accuracies", "top1")
# Means over the tokens of a batch, which `log` averages over the accumulated batches
PER_TOKEN = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")

CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2}
# Run alike by one process and by two; the name of each is the claim
RUNS = {
    "all weights": {},
    "adapter": {"lora": True},
    "precomputed reference, dataset in memory": {"precompute_ref_log_probs": True},
    "precomputed reference, adapter": {"precompute_ref_log_probs": True, "lora": True},
    "several chosen, precomputed reference": {
        "several_chosen": True,
        "loss_type": ["mult_dpo"],
        "precompute_ref_log_probs": True,
    },
    "evaluation of one row": {"eval_rows": 1},
}
# Two processes in another way, and which of RUNS they have to end like
VARIANTS = {
    "an evaluation before": ("adapter", {"lora": True, "evaluate_first": True}),
    "evaluation of a stream": ("all weights", {"stream_eval": True}),
    "two batches accumulated": ("all weights", {"batch_size": B // 2, "gradient_accumulation_steps": 2}),
    "logits recomputed in the backward pass": ("all weights", {"recompute_logits": True}),
}
# accelerate prepares a sharded model only together with its optimizer, which there is not before the training
SHARDED = tuple(name for name in (*RUNS, *VARIANTS) if name != "an evaluation before")
QUICK = (
    "all weights",
    "adapter",
    "precomputed reference, dataset in memory",
    "several chosen, precomputed reference",
    "evaluation of one row",
    "an evaluation before",
)
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DeepSpeedEngine",
    "deepspeed_zero3": "DeepSpeedEngine",
}
_needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


def assert_same_metrics(found, expected, left_out=()):
    """`left_out`: ends of the names that are not compared."""

    def compared(metrics):
        return {name: value for name, value in metrics.items() if not name.endswith((*NOT_COMPARED, *left_out))}

    assert compared(found) == pytest.approx(compared(expected), rel=METRIC_TOLERANCE, abs=METRIC_TOLERANCE)


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    worst = max(expected, key=lambda name: (found[name] - expected[name]).abs().max())
    assert (found[worst] - expected[worst]).abs().max() <= WEIGHT_TOLERANCE, worst


@pytest.mark.parametrize(
    ("config", "names"),
    [
        pytest.param("ddp", QUICK, id="ddp quick"),
        pytest.param("ddp", (*RUNS, *VARIANTS), marks=pytest.mark.slow, id="ddp"),
        pytest.param("fsdp2", SHARDED, marks=pytest.mark.slow, id="fsdp2"),
        pytest.param("deepspeed_zero2", SHARDED, marks=[pytest.mark.slow, _needs_deepspeed], id="zero2"),
        pytest.param("deepspeed_zero3", SHARDED, marks=[pytest.mark.slow, _needs_deepspeed], id="zero3"),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(tmp_path, subtests, config, names):
    """One launch a configuration: starting the processes takes longer than all that they do."""
    save_model(tmp_path / "model")
    alone = {
        name: train(tmp_path, f"one {name}", 2 * B, use_cpu=True, **options)
        for name, options in RUNS.items()
        if name in names
    }
    together = {name: (name, options) for name, options in RUNS.items()} | VARIANTS
    runs = {name: {"batch_size": B} | together[name][1] for name in names}
    processes = launch(tmp_path, config, runs)

    for name in names:
        with subtests.test(name):
            run, expected = processes[0][name] | runs[name], alone[together[name][0]]
            assert run["wrapper"].startswith(WRAPPERS[config])
            assert run["prefix_sharing"]
            per_token = PER_TOKEN if run["batch_size"] != B else ()
            assert len(run["steps"]) == len(expected["steps"])
            for step, (found_step, expected_step) in enumerate(zip(run["steps"], expected["steps"], strict=True)):
                assert_same_metrics(found_step, expected_step, per_token + (COMPARISONS if step == 0 else ()))
            for process in processes:
                assert_same_metrics(process[name]["eval"], expected["eval"], per_token)
            assert_same_weights(saved_weights(tmp_path / name), saved_weights(tmp_path / f"one {together[name][0]}"))


def resumed(name):
    return {"resume_from": f"{name}/checkpoint-2"}


@pytest.mark.slow
def test_checkpoints_of_two_processes_load_in_one_and_the_other_way_round(tmp_path):
    save_model(tmp_path / "model")
    train(tmp_path, "one", 2 * B, use_cpu=True, **CHECKPOINTS)
    launch(tmp_path, "ddp", {"two": {"batch_size": B, **CHECKPOINTS}, "to two": {"batch_size": B, **resumed("one")}})
    train(tmp_path, "to one", 2 * B, use_cpu=True, **resumed("two"))
    for name in ("two", "to two", "to one"):
        assert_same_weights(saved_weights(tmp_path / name), saved_weights(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_processes_agree_on_what_makes_a_run(tmp_path, config):
    save_model(tmp_path / "model")
    train(tmp_path, "one", 2 * B, use_cpu=True, **CHECKPOINTS)
    launch(tmp_path, config, {"two": {"batch_size": B, **CHECKPOINTS}})
    records = [json.loads((tmp_path / name / "checkpoint-2" / RECORD).read_text()) for name in ("one", "two")]
    assert records[0] == records[1]
    with pytest.raises(AssertionError, match=r"belongs to another run: beta: 0\.5 then, 0\.2 now"):
        launch(tmp_path, config, {"other": {"batch_size": B, "beta": 0.2, **resumed("two")}})


@pytest.mark.slow
def test_checkpoints_of_two_fsdp_processes_load_in_one_and_the_other_way_round(tmp_path):
    save_model(tmp_path / "model")
    launch(tmp_path, "fsdp2", {"two": {"batch_size": B, **CHECKPOINTS}})
    in_one = {"one": {"batch_size": 2 * B, **CHECKPOINTS}, "to one": {"batch_size": 2 * B, **resumed("two")}}
    launch(tmp_path, "fsdp2", in_one, processes=1)
    launch(tmp_path, "fsdp2", {"to two": {"batch_size": B, **resumed("one")}})
    for name in ("two", "to two", "to one"):
        assert_same_weights(saved_weights(tmp_path / name), saved_weights(tmp_path / "one"))
    # Its weights are those of a plain model. Its optimizer is not, which transformers and accelerate fail on
    AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "checkpoint-2")
    with pytest.raises(ValueError, match="with FSDP, and this run is without it"):
        train(tmp_path, "plain", 2 * B, use_cpu=True, **resumed("two"))


@pytest.mark.slow
@_needs_deepspeed
@pytest.mark.parametrize("config", ["deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_resumes_its_own_checkpoints(tmp_path, config):
    save_model(tmp_path / "model")
    launch(
        tmp_path,
        config,
        {"two": {"batch_size": B, **CHECKPOINTS}, "resumed": {"batch_size": B, **resumed("two")}},
    )
    assert_same_weights(saved_weights(tmp_path / "resumed"), saved_weights(tmp_path / "two"))


@pytest.mark.slow
def test_a_killed_process_costs_what_follows_the_last_checkpoint(tmp_path):
    save_model(tmp_path / "model")
    run = {"batch_size": B, "save_strategy": "steps", "save_steps": 1}
    launch(tmp_path, "ddp", {"whole": run})
    resume = None
    for kill in ((0, "save", 2), (1, "save", 3), (1, "step", 4)):
        launch(tmp_path, "ddp", {"killed": run | {"kill": kill, "resume_from": resume}}, killed=True)
        resume = True
    (found, _) = launch(tmp_path, "ddp", {"killed": run | {"resume_from": True}})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [step["step"] for step in found["killed"]["steps"]] == [1, 2, 3, 4]
    assert sorted(path.name for path in killed.glob("incomplete-*")) == [f"incomplete-checkpoint-{i}" for i in (2, 3)]
    for name in (*(f"checkpoint-{step}" for step in (1, 2, 3, 4)), ""):
        weights = "model.safetensors"
        assert (killed / name / weights).read_bytes() == (whole / name / weights).read_bytes()
