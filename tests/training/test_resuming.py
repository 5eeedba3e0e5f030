"""A resumed run sees the rows that an uninterrupted one does, and ends where it ends."""

import pytest
from datasets import Dataset
from support import make_model, make_tokenizer

from dmpo_trl import DMPOConfig, DMPOTrainer

# Known by their number of rejected completions
ROWS = Dataset.from_list(
    [
        {"prompt": f"Watched: {i}. Next:", "chosen": " Alien", "rejected": [f" Babe {j}" for j in range(i)]}
        for i in range(1, 6)
    ]
)
DATASETS = {
    "rows": lambda: ROWS,
    "stream": lambda: ROWS.to_iterable_dataset(),
    "shards": lambda: ROWS.to_iterable_dataset(num_shards=2),
    "shuffled": lambda: ROWS.to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=2),
}


class WatchedTrainer(DMPOTrainer):
    """Notes the rows of its batches."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append(inputs["num_rejected"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def train(out, dataset, checkpoint=None, **options):
    defaults = {
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 1,
        "max_steps": 12,
        "save_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    trainer = WatchedTrainer(
        make_model(),
        make_model(seed=1),
        args=DMPOConfig(str(out), **defaults | options),
        train_dataset=DATASETS[dataset](),
        processing_class=make_tokenizer(),
    )
    trainer.seen = []
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return trainer


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("dataset", "options"),
    [*((name, {}) for name in DATASETS), ("shards", {"gradient_accumulation_steps": 2, "max_steps": 8})],
)
def test_rows_go_on_where_they_stopped_in_whichever_pass(tmp_path, dataset, options):
    whole = train(tmp_path / "whole", dataset, **options)
    last = whole.args.max_steps
    expected = weights(tmp_path / "whole" / f"checkpoint-{last}")
    for step in (3, 5, 7, last - 1):
        resumed = train(tmp_path / "resumed", dataset, tmp_path / "whole" / f"checkpoint-{step}", **options)
        assert resumed.seen == whole.seen[-len(resumed.seen) :]
        assert len(resumed.seen) >= last - step
        assert weights(tmp_path / "resumed" / f"checkpoint-{last}") == expected


@pytest.mark.parametrize("dataset", ["rows", "shuffled"])
@pytest.mark.parametrize("first_end", [3, 5, 7])  # within the first pass, at its end, and within the second
def test_a_run_that_is_made_longer_goes_on_where_it_ended(tmp_path, dataset, first_end):
    whole = train(tmp_path / "whole", dataset, save_strategy="no")
    short = train(tmp_path / "short", dataset, max_steps=first_end)
    resumed = train(tmp_path / "short", dataset, tmp_path / "short" / f"checkpoint-{first_end}")
    assert short.seen + resumed.seen == whole.seen
    whole.save_model()
    resumed.save_model()
    assert weights(tmp_path / "short") == weights(tmp_path / "whole")


@pytest.mark.parametrize("dataset", ["rows", "stream"])
def test_a_run_that_is_done_makes_no_more_steps(tmp_path, dataset):
    train(tmp_path, dataset, max_steps=7)
    again = train(tmp_path, dataset, tmp_path / "checkpoint-7", max_steps=7)
    assert again.seen == []
    assert again.state.global_step == 7


@pytest.mark.parametrize("options", [{"max_steps": 2}, {"max_steps": -1, "num_train_epochs": 0.4}])
def test_an_end_before_the_checkpoint_is_named(tmp_path, options):
    train(tmp_path, "rows", max_steps=3)
    with pytest.raises(ValueError, match=r"checkpoint-3 has made 3 steps, and this run ends after 2: raise `m"):
        train(tmp_path, "rows", tmp_path / "checkpoint-3", **options)


def test_rows_are_not_skipped_where_the_user_says_so(tmp_path):
    train(tmp_path, "stream", max_steps=7)
    resumed = train(tmp_path, "stream", tmp_path / "checkpoint-7", ignore_data_skip=True)
    assert resumed.seen[0] == [1]
