"""Ranking in each of two processes, which write what they found to a JSON file; test_processes.py compares."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from support import make_model, make_tokenizer
from support.users import TITLES, make_users
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.evaluation.callback import RankingCallback
from dmpo_trl.evaluation.generation import generate_items
from dmpo_trl.evaluation.ranking import rank_by_log_prob, score_candidates
from dmpo_trl.modeling.loading import base_model_of
from dmpo_trl.modeling.probe import prepare_for_scoring
from dmpo_trl.training.distributed import end_process_group
from dmpo_trl.work import ResultParts


def rank(model, users, parts=None):
    prepare_for_scoring(model, base_model_of(model), "auto")  # the probe's forwards are not to be counted
    forwards = []
    base_model_of(model).register_forward_hook(lambda *_: forwards.append(1))
    scored = score_candidates(model, make_tokenizer(), users, tokens_per_batch=24, parts=parts)
    result = rank_by_log_prob(users, scored, score="sum", name="two")
    return {"users": result.users, "scores": [own.tolist() for own in result.scores], "forwards": len(forwards)}


def train(folder):
    rows = [{"prompt": f"Watched: {i}. Next:", "chosen": " Alien", "rejected": [" Babe", " Heidi"]} for i in range(4)]
    dataset = Dataset.from_list(rows)
    args = DMPOConfig(
        f"{folder}/out", bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, gradient_checkpointing=False
    )
    trainer = DMPOTrainer(
        make_model(),
        make_model(),
        args=args,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=make_tokenizer(),
        callbacks=[RankingCallback(make_users(7), score="sum", metrics=["ndcg@5", "auc"])],
    )
    before = trainer.evaluate()
    trainer.train()
    return {"before": before, "after": trainer.evaluate()}


def rank_in_parts(folder, users):
    """As `rank`, with parts on the disk of the main process only."""
    if PartialState().is_main_process:
        folder.mkdir(exist_ok=True)
    return rank(make_model(), users, ResultParts(folder if PartialState().is_main_process else None))


def find(folder):
    """What this process finds. No model outlives the call: `end_process_group` says why."""
    mesh = init_device_mesh("cpu", (PartialState().num_processes,))
    sharded = fully_shard(make_model(), mesh=mesh)
    return {
        "plain": rank(make_model(), make_users(7)),
        "fewer users than processes": rank(make_model(), make_users(1)),
        "in parts": rank_in_parts(Path(folder, "parts"), make_users(7)),
        "from parts": rank_in_parts(Path(folder, "parts"), make_users(7)),
        "ddp": rank(DistributedDataParallel(make_model()), make_users(7)),
        "fsdp": rank(sharded, make_users(7)),
        "generated": generate_items(
            DistributedDataParallel(make_model()), make_tokenizer(), make_users(7), TITLES, name="two", batch_size=2
        ).outputs,
        "trained": train(folder),
    }


def main(folder):
    state = PartialState(cpu=True)
    found = find(folder)
    Path(folder, f"{state.process_index}.json").write_text(json.dumps(found))
    end_process_group()
    # A thread of gloo that still holds a tensor of the sharded model aborts the interpreter's own end now and then:
    # what is tested here is done. How a script ends well is tested by process_group_end.py
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
