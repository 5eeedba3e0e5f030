"""Batches within a budget, formed in two processes, each of which writes what it got and how often it counted."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset

from dmpo_trl.batching import budget
from dmpo_trl.batching.collator import DataCollatorForMultiPreference
from dmpo_trl.training.distributed import end_process_group


def main(folder):
    process = PartialState(cpu=True).process_index
    form, formed = budget._formed, []

    def forming(*args):
        formed.append(process)
        return form(*args)

    budget._formed, budget._CHUNK = forming, 16
    rows = [{"prompt_ids": [1, 2, i], "chosen_ids": [3, 4], "rejected_ids": [[5, 6, 7]]} for i in range(50)]
    collator = DataCollatorForMultiPreference(0, prefix_sharing=True)
    batches, _ = budget.form_batches(Dataset.from_list(rows), list(range(50)), collator, 20, 8, num_proc=2)
    (folder / f"{process}.json").write_text(json.dumps({"batches": batches, "formed": formed}))
    end_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
