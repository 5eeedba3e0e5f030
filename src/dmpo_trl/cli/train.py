"""`dmpo-trl train`: TRL's own DPO script, with our classes in the place of TRL's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

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
        default=None, metadata={"help": "Rank only so many of them, the first ones. Default: all."}
    )
    ranking_score: Literal["sum", "mean"] = field(
        default="mean", metadata={"help": "Rank by log-prob: its sum or its mean a token."}
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
    """Dataclasses of the options: those of `trl dpo`, with our config, and ours."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from ..config import DMPOConfig

    return ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, RankingArguments, ResumeArguments


def make_parser() -> Parser:
    """The command's parser."""
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
    """Trains as the arguments say. Options of `accelerate launch` among them launch the processes, as in `trl dpo`."""
    from .launch import accelerate_options, is_launched, launch

    parser, others = make_parser(), accelerate_options()
    for_accelerate = parser.foreign(arguments, others)
    if any(for_accelerate) and not is_launched():
        launch("train", arguments, *for_accelerate)
        return

    from trl.scripts import dpo

    from ..trainer import DMPOTrainer  # a subclass of the original, so before that is replaced
    from ..training.checkpoints import last_whole_checkpoint
    from ..training.distributed import process_group_outlives

    script, config, *more, ranking, resume = parser.parse(arguments, others)
    if resume.resume:
        if config.resume_from_checkpoint is not None:
            raise ValueError(
                "--resume takes the last whole checkpoint of --output_dir, --resume_from_checkpoint the one that it "
                "names: pass one of the two."
            )
        config.resume_from_checkpoint = last_whole_checkpoint(config.output_dir)

    def make_trainer(model: str, **kwargs: Any) -> Any:
        trainer = _make_trainer(DMPOTrainer, model, ranking, **kwargs)
        _save_catalogue(trainer, ranking.ranking_data or script.dataset_name, ranking.ranking_score)
        return trainer

    # The script looks the trainer's class up when it runs. All that it does around it stays TRL's. It destroys the
    # process group while it has the trainer.
    with patch("trl.DPOTrainer", make_trainer), process_group_outlives():
        dpo.main(script, config, *more)


def _make_trainer(trainer_class: Any, model: str, ranking: RankingArguments, *, args: Any, **kwargs: Any) -> Any:
    """The trainer, started from a model or, as after `trl sft --use_peft`, from an adapter."""
    from ..modeling.loading import is_adapter, load_model, load_tokenizer

    if is_adapter(model):
        if kwargs.get("peft_config") is not None:
            raise ValueError(
                f"--model_name_or_path {model} is an adapter, which goes on training: leave --use_peft out. To train "
                "a new adapter instead, merge this one into its base model first."
            )
        kwargs["processing_class"] = load_tokenizer(model)
        options = {**(args.model_init_kwargs or {}), "quantization_config": kwargs.pop("quantization_config", None)}
        args.model_init_kwargs = None  # they are for a model that the trainer loads itself
        trainer = trainer_class(load_model(model, is_trainable=True, **options), args=args, **kwargs)
    else:
        trainer = trainer_class(model, args=args, **kwargs)
    if ranking.ranking_data is not None:
        from ..data import Prepared
        from ..evaluation import RankingCallback

        users = Prepared.load(ranking.ranking_data).ranking[ranking.ranking_split]
        if ranking.ranking_users is not None:
            users = users.select(range(min(ranking.ranking_users, len(users))))
        trainer.add_callback(RankingCallback(users, score=ranking.ranking_score, trainer=trainer))
    return trainer


def _save_catalogue(trainer: Any, data: str | None, score: Literal["sum", "mean"]) -> None:
    """Puts catalogue and template of prepared data beside the model, so that a `Recommender` needs nothing else."""
    from ..data import Prepared
    from ..data.preparation.folder import read_manifest
    from ..recommend import Recommender

    if data is None or read_manifest(Path(data)) is None or not trainer.is_world_process_zero():
        return
    prepared = Prepared.load(data)
    recommender = Recommender(trainer.model, trainer.processing_class, prepared.items, prepared.template, score=score)
    recommender.save_catalogue(trainer.args.output_dir)
