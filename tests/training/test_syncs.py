"""How often a training step waits for the GPU: operations that would read from it are counted on a CPU."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support import RAGGED, make_model, make_rows, make_trainer, ragged_examples
from support.syncs import CountSyncs
from transformers import TrainerCallback
from trl import DPOConfig

from dmpo_trl import DataCollatorForMultiPreference, DMPOConfig
from dmpo_trl.modeling.block_attention import block_mask

# Where the device is asked for first: a GPU does not get there
ON_A_CPU_ONLY = {
    "dmpo_trl attention.py:mask_by_depth tolist": 2,  # policy and reference: sdpa goes tree by tree
    "dmpo_trl __init__.py:_refuse_unknown _local_scalar_dense": 2,  # targets that are no vocabulary index
}
OURS = {
    "dmpo_trl guards.py:_get_grad_norm _local_scalar_dense": 1,
    "dmpo_trl metrics.py:means tolist": 1,
}
# Whether the loss is NaN, whether it is infinite: of `logging_nan_inf_filter`
FILTER = {"transformers trainer.py:_run_epoch _local_scalar_dense": 2}
# Whether there is padding, twice in a forward pass: of plain sdpa, which copies of the prompt go through
PADDING = {"transformers masking_utils.py:_ignore_causal_mask_sdpa _local_scalar_dense": 4}


class CountedSteps(TrainerCallback):
    """Counts in each optimizer step, from its first forward pass to the update of the weights."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.counting = CountSyncs()
        self.counting.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.counting.__exit__(None, None, None)
        self.steps.append(dict(self.counting.places))


def counted(tmp_path, dataset, name="llama", **options):
    if "peft_config" not in options:
        options["ref_model"] = make_model(name)
    # Between two logs: a step that is logged reads the loss
    trainer = make_trainer(tmp_path, dataset, model=make_model(name), max_steps=2, logging_steps=100, **options)
    steps = CountedSteps()
    trainer.add_callback(steps)
    trainer.train()
    assert len(steps.steps) == 2
    return steps.steps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"peft_config": LoraConfig(r=4, target_modules="all-linear")},
        {"loss_type": ["softmax", "sft"], "loss_weights": [1.0, 0.5], "ld_alpha": 0.5},
        {"loss_type": ["sigmoid"], "use_weighting": True},
        {"name": "mixtral"},
    ],
    ids=str,
)
def test_a_step_waits_at_most_twice_for_what_is_ours(tmp_path, options):
    for places in counted(tmp_path, make_rows(RAGGED), **options):
        assert {place: times for place, times in places.items() if place not in ON_A_CPU_ONLY} == OURS
        assert all(times == places.get(place, times) for place, times in ON_A_CPU_ONLY.items())


def test_copies_of_the_prompt_read_whether_there_is_padding_as_in_trl(tmp_path):
    for places in counted(tmp_path, make_rows(RAGGED), prefix_sharing=False):
        assert {place: times for place, times in places.items() if place not in ON_A_CPU_ONLY} == OURS | PADDING


def test_rows_with_several_chosen_completions_do_not_add_any(tmp_path):
    examples = ragged_examples(0, (4, 2, 5, 3))
    for index, example in enumerate(examples):
        number = index % 2  # of the rejected completions, as many are chosen ones
        example["chosen_ids"] = [example["chosen_ids"], *example["rejected_ids"][:number]]
        example["rejected_ids"] = example["rejected_ids"][number:]
    for places in counted(tmp_path, Dataset.from_list(examples)):
        assert {place: times for place, times in places.items() if place not in ON_A_CPU_ONLY} == OURS


def test_an_accumulated_step_reads_the_metrics_of_each_batch(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for places in counted(tmp_path, make_rows((1, 3, 2, 1)), **options):
        assert places["dmpo_trl metrics.py:means tolist"] == 2
        assert places["dmpo_trl guards.py:_get_grad_norm _local_scalar_dense"] == 1


def test_transformers_filter_of_losses_reads_twice(tmp_path):
    """`DPOConfig`'s default; `DMPOConfig` leaves it off."""
    for places in counted(tmp_path, make_rows(RAGGED), logging_nan_inf_filter=True):
        assert {place: times for place, times in places.items() if place not in ON_A_CPU_ONLY} == OURS | FILTER


def test_metrics_are_read_when_the_backward_pass_is_launched(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, make_rows(RAGGED), model=make_model(), ref_model=make_model())
    events = []
    backward, record = trainer.accelerator.backward, trainer._record
    monkeypatch.setattr(
        trainer.accelerator, "backward", lambda *a, **k: events.append("backward") or backward(*a, **k)
    )
    monkeypatch.setattr(trainer, "_record", lambda *a: events.append("metrics") or record(*a))
    trainer.train()
    assert events == ["backward", "metrics"] * trainer.state.max_steps
    trainer.evaluate(make_rows(RAGGED))  # without a backward pass, at once
    assert events[-1] == "metrics"


def test_where_the_backward_pass_updates_metrics_are_read_before(tmp_path, monkeypatch):
    """As with DeepSpeed: log-probs that are not numbers stop the run while the weights are still good."""
    trainer = make_trainer(tmp_path, make_rows(RAGGED), model=make_model(), ref_model=make_model())
    monkeypatch.setattr(type(trainer), "_updates_in_backward", True)
    monkeypatch.setattr(trainer.accelerator, "backward", lambda *args, **kwargs: pytest.fail("a backward pass"))
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="log-probs of a batch"):
        trainer.train()


# The counter itself, and what does not get onto a CPU


def test_the_counter_sees_what_synchronises():
    values, mask = torch.arange(6.0, requires_grad=True), torch.arange(6) % 2 == 0
    counts = torch.tensor([1, 2, 3])
    reads = [
        lambda: float(values.detach().sum()),
        lambda: bool(mask.any()),
        lambda: values.tolist(),
        lambda: values.detach().cpu(),
        lambda: mask.nonzero(),
        lambda: values[mask],
        lambda: values.detach().clone().__setitem__(mask, 0.0),
        lambda: torch.arange(3).repeat_interleave(counts),
        lambda: counts.bincount(),
        lambda: torch.tensor([1.0], device="cpu"),
    ]
    for read in reads:
        with CountSyncs() as counting:
            read()
        assert sum(counting.places.values()) == 1, counting.places
    with CountSyncs() as counting:
        values[mask].sum().backward()
    assert sum(counting.places.values()) == 2  # the backward pass of an index is another
    with CountSyncs() as counting:
        values[counts].sum().backward()
        torch.arange(3).repeat_interleave(counts, output_size=6)
        torch.where(mask, values, 0.0).sum()
    assert not counting.places


@pytest.mark.parametrize("ancestors_only", [True, False])
def test_the_masks_of_blocks_are_made_without_a_read(ancestors_only):
    """Of a GPU's rows, from their tensors alone."""
    collator = DataCollatorForMultiPreference(
        0, prefix_sharing=True, attention_balance=math.inf, packed_length=2**31, pad_to_multiple_of=128
    )
    ends = collator(ragged_examples(0, (15, 3, 7, 15)))["subtree_end"]
    with CountSyncs() as counting:
        block_mask(ends, lambda batch, head, query, key: key <= query, ancestors_only=ancestors_only)
    assert not counting.places


def test_what_feeds_a_gpu_is_on_by_default(tmp_path, monkeypatch):
    def config(config_class=DMPOConfig, **options):
        return config_class(str(tmp_path), bf16=False, use_cpu=True, **options)

    assert config().dataloader_num_workers == 0
    assert config().accelerator_config.non_blocking is False
    monkeypatch.setattr("dmpo_trl.config._trains_on_cuda", lambda use_cpu: True)
    assert config().dataloader_num_workers == 2
    assert config().accelerator_config.non_blocking is True
    assert config(dataloader_num_workers=0).dataloader_num_workers == 0
    assert config(accelerator_config={"non_blocking": False}).accelerator_config.non_blocking is False
    assert config(dataloader_pin_memory=False).accelerator_config.non_blocking is False
    assert config(DPOConfig).dataloader_num_workers == 0
    monkeypatch.setattr("dmpo_trl.config._forks", lambda: False)
    assert config().dataloader_num_workers == 0


@pytest.mark.parametrize("budget", [{}, {"max_tokens_per_batch": 60}], ids=str)
def test_workers_lay_out_the_batches_of_the_main_process(tmp_path, budget):
    """Batches of a run are the same in either, whatever the sampler."""
    runs = []
    for workers in (0, 2):
        trainer = make_trainer(
            tmp_path,
            make_rows((1, 3, 2, 1, 4, 2)),
            model=make_model(),
            ref_model=make_model(),
            per_device_train_batch_size=2,
            dataloader_num_workers=workers,
            **budget,
        )
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(runs[0]) >= 3
    assert runs[0] == runs[1]
