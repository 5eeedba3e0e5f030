"""`dmpo-trl train`: TRL's own DPO script, with our classes in the place of TRL's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

from .options import parse


@dataclass
class RankingArguments:
    """Ranking of held-out users at each evaluation, so that the best checkpoint can be chosen by NDCG."""

    ranking_data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote. Its users are ranked at each evaluation, and the metrics "
            "are logged as eval_ndcg@5 and so on, which `--metric_for_best_model eval_ndcg@5` can name."
        },
    )
    ranking_split: str = field(default="validation", metadata={"help": "Which users of the folder."})
    ranking_users: int | None = field(default=None, metadata={"help": "At most so many of them, the first ones."})
    ranking_score: Literal["sum", "mean"] = field(
        default="mean", metadata={"help": "Rank by log-prob: its sum or its mean a token."}
    )


def run(arguments: list[str]) -> None:
    """Trains as the arguments say. Under `accelerate launch`: `accelerate launch -m dmpo_trl.cli train ...`."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments
    from trl.scripts import dpo

    from ..config import DMPOConfig
    from ..trainer import DMPOTrainer  # a subclass of the original, so before that is replaced

    *trl_arguments, ranking = parse(
        "train", arguments, ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, RankingArguments
    )

    def make_trainer(model: str, **kwargs: Any) -> Any:
        return _make_trainer(DMPOTrainer, model, ranking, **kwargs)

    # The script looks the trainer's class up when it runs. All that it does around it stays TRL's.
    with patch("trl.DPOTrainer", make_trainer):
        dpo.main(*trl_arguments)


def _make_trainer(trainer_class: Any, model: str, ranking: RankingArguments, *, args: Any, **kwargs: Any) -> Any:
    """The trainer, started from a model or, as after `trl sft --use_peft`, from an adapter."""
    from ..loading import is_adapter, load_model, load_tokenizer

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
