"""Which rows count: in the last batch of several processes, and in an evaluation whatever its batch size."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from support import make_tokenizer, ragged_examples, save_model
from torch.utils.data import BatchSampler, SequentialSampler

from dmpo_trl import DataCollatorForMultiPreference, DMPOConfig, DMPOTrainer
from dmpo_trl.training.distributed import first_rows, own_rows


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", range(1, 14))
def test_every_row_counts_in_one_process(rows, processes):
    """Against accelerate's own sharding."""
    batch_size, counted = 2, []
    for process in range(processes):
        sampler = BatchSampler(SequentialSampler(range(rows)), batch_size, drop_last=False)
        batches = list(BatchSamplerShard(sampler, processes, process, even_batches=True))
        for index, batch in enumerate(batches):
            state = SimpleNamespace(
                end_of_dataloader=index == len(batches) - 1, remainder=rows % (batch_size * processes)
            )
            accelerator = SimpleNamespace(gradient_state=state, process_index=process)
            counted += batch[: own_rows({"num_rejected": torch.tensor(batch)}, accelerator)]
    assert sorted(counted) == list(range(rows))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_first_rows_are_a_batch_of_these_rows(rows):
    examples = ragged_examples(0, (3, 1, 4))
    for example in examples:
        example |= {"ref_chosen_logps": 1.0 + len(example["rejected_ids"])}
        example |= {"ref_rejected_logps": [float(len(ids)) for ids in example["rejected_ids"]]}
    collator = DataCollatorForMultiPreference(pad_token_id=0)
    cut, expected = first_rows(collator(examples), rows), collator(examples[:rows])
    for name in ("num_rejected", "is_chosen", "token_completions", "ref_chosen_logps", "ref_rejected_logps"):
        assert torch.equal(cut[name], expected[name])

    def targets(batch):
        return batch["scored_targets"][batch["token_pairs"]]

    assert torch.equal(targets(cut), targets(expected))


def test_an_evaluation_is_the_mean_over_rows_whatever_the_batch_size(tmp_path):
    save_model(tmp_path / "model")
    examples = ragged_examples(1, (2, 1, 30, 4, 1))
    found = {}
    for batch_size in (1, 4):
        args = DMPOConfig(
            str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none", per_device_eval_batch_size=batch_size
        )
        trainer = DMPOTrainer(
            str(tmp_path / "model"),
            args=args,
            train_dataset=Dataset.from_list(examples),
            eval_dataset=Dataset.from_list(examples),
            processing_class=make_tokenizer(),
        )
        with torch.no_grad():
            trainer.model.lm_head.weight.mul_(1.1)  # away from the reference
        found[batch_size] = trainer.evaluate()
    for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert found[4][f"eval_{name}"] == pytest.approx(found[1][f"eval_{name}"], abs=1e-4), name
    assert found[1]["eval_loss"] != pytest.approx(math.log(2), abs=1e-3)
