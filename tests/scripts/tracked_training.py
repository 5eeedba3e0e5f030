"""A run that trackio tracks, with users ranked on its way: what it was told and what was logged, to `found.json`."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from support import make_users, save_model
from trackio.sqlite_storage import SQLiteStorage

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.evaluation import RankingCallback


def main(folder: Path) -> None:
    users = make_users(8)
    rows = [
        {"prompt": row["prompt"], "chosen": row["candidates"][0], "rejected": row["candidates"][1:3]} for row in users
    ]
    args = DMPOConfig(
        str(folder / "out"),
        **{"bf16": False, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1},
        **{"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "per_device_train_batch_size": 2},
        **{"report_to": "trackio", "project": "ranked", "run_name": "one", "trackio_space_id": None},
    )
    data = Dataset.from_list(rows)
    trainer = DMPOTrainer(save_model(folder / "model"), args=args, train_dataset=data, eval_dataset=data)
    trainer.add_callback(RankingCallback(users, score="sum", metrics=["hr@1", "ndcg@5"], trainer=trainer))
    trainer.train()
    found = {"tracked": SQLiteStorage.get_logs("ranked", "one"), "logged": trainer.state.log_history}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
