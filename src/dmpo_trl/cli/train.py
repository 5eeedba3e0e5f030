"""`dmpo-trl train`: training with the options of `trl dpo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .launch import accelerate_options, is_launched, launch
from .options import Parser


@dataclass
class RankingArguments:
    """Ranking of held-out users at each evaluation, so that the best checkpoint can be chosen by NDCG."""

    ranking_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote. Its users are ranked at each evaluation (set "
            "--eval_strategy), and the metrics are logged as eval_ndcg@5 and so on, which "
            "`--metric_for_best_model eval_ndcg@5` can name."
        },
    )
    ranking_split: Literal["validation", "test"] = field(
        default="validation", metadata={"help": "Which users of the folder."}
    )
    ranking_users: int | None = field(
        default=None, metadata={"help": "Rank only this many of them, the first ones. Default: all."}
    )
    ranking_score: Literal["sum", "mean"] = field(
        default="mean", metadata={"help": "Rank by log-prob: its sum or its mean per token."}
    )


@dataclass
class ResumeArguments:
    """Going on after an interruption."""

    resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from the last whole checkpoint of --output_dir, or start at the beginning where there is "
            "none: the same command with --resume can be run until training is done. Half-written checkpoints are "
            "renamed to incomplete-checkpoint-N, never used and never deleted."
        },
    )


def argument_types() -> tuple[Any, ...]:
    """Return the dataclasses of the options: those of `trl dpo`, with our config, and ours."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import DMPOConfig

    return ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, RankingArguments, ResumeArguments


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        "dmpo-trl train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name data --output_dir outputs/dmpo\n"
        "dmpo-trl train --config dmpo.yaml --use_peft --lora_r 16 --load_in_4bit\n"
        "\n"
        "on two GPUs, either way; --accelerate_config takes a file or the name of one of TRL's:\n"
        "dmpo-trl train --config dmpo.yaml --num_processes 2\n"
        "dmpo-trl train --config dmpo.yaml --accelerate_config fsdp2\n"
        "accelerate launch --num_processes 2 -m dmpo_trl.cli train --config dmpo.yaml"
    )
    return Parser("train", *argument_types(), example=example)


def run(arguments: list[str]) -> None:
    """Train as the arguments say. Options of `accelerate launch` among them launch the processes, as in `trl dpo`."""
    parser = make_parser()
    parsed = parser.parse_values(arguments, accelerate_options())
    if (parsed.foreign_from_file or parsed.foreign_from_flags) and not is_launched():
        launch("train", arguments, parsed.foreign_from_file, parsed.foreign_from_flags)
        return

    from ..training.checkpoints import last_whole_checkpoint
    from ..training.distributed import end_process_group
    from ._training import train

    script, config, model, mixture, ranking, resume = parser.instances(parsed)
    if resume.resume:
        if config.resume_from_checkpoint is not None:
            raise ValueError(
                "--resume takes the last whole checkpoint of --output_dir, --resume_from_checkpoint the one that it "
                "names: pass one of the two."
            )
        config.resume_from_checkpoint = last_whole_checkpoint(config.output_dir)
    train(script, config, model, mixture, ranking)  # its trainer is gone when it returns
    end_process_group()
