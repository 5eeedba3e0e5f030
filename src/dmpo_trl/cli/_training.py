"""A training run: data, trainer, training, and what is saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset, load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    get_dataset,
    get_quantization_config,
)

from ..config import DMPOConfig
from ..data import Prepared
from ..data.preparation.folder import check_before_loading, is_prepared
from ..evaluation import RankingCallback
from ..losses import trained_score
from ..modeling.loading import is_adapter, load_model, load_tokenizer, refuse_damaged_weights
from ..preprocessing.tokenize import tokenizer_of
from ..recommend import Recommender
from ..trainer import DMPOTrainer
from ..writing import new_file
from ._curves import about_run, check_page, page
from ._reference import with_reference_without_history
from ._run_folder import begin_run, check_run_folder, end_run
from ._splits import choose_split, first_negatives
from ._train_options import TrainArguments, adapter_options

logger = logging.getLogger(__name__)


def train(
    script: ScriptArguments,
    config: DMPOConfig,
    model: ModelConfig,
    mixture: DatasetMixtureConfig,
    options: TrainArguments,
) -> None:
    """Train, save, and push to the hub where asked to.

    Args:
        script: Name and splits of the data set.
        config: Of the trainer.
        model: Model, adapter and quantisation.
        mixture: Data sets to train on instead of the one of `script`.
        options: What else is done.
    """
    check_run_folder(str(config.output_dir), resumes=_resumes_there(config))
    if options.report is not None and config.process_index == 0:
        check_page(options.report)
    trainer = trainer_of(script, config, model, mixture, options)
    with _noted(trainer):
        _save_catalogue(trainer, options.ranking_data or script.dataset_name, _score(options, config))
        _train_and_save(trainer, config, script)
    if options.report is not None and trainer.is_world_process_zero():
        about = about_run(
            model.model_name_or_path, script.dataset_name, str(config.output_dir), trainer.state.global_step
        )
        with new_file(options.report, overwrite=True) as file:
            file.write_text(page(trainer.state.log_history, about), encoding="utf-8")
        trainer.accelerator.print(f"A page to look at is in {options.report}.")


def trainer_of(
    script: ScriptArguments,
    config: DMPOConfig,
    model: ModelConfig,
    mixture: DatasetMixtureConfig,
    options: TrainArguments,
) -> DMPOTrainer:
    """Return the trainer of a run, which ranks users at each evaluation where it was asked to; see [`train`]."""
    paths: list[str | None] = [one.path for one in mixture.datasets] or [script.dataset_name]
    if config.special_tokens_in_text is None and all(map(is_prepared, paths)):
        config.special_tokens_in_text = False
    data = _load_data(script, mixture)
    train_data = choose_split(data, script.dataset_train_split, "--dataset_train_split")
    train_data = first_negatives(train_data, options.max_negatives)
    eval_data = None
    if config.eval_strategy != "no":
        eval_data = choose_split(data, _evaluation_split(data, script.dataset_test_split), "--dataset_test_split")
    if options.reference == "no_history":
        path, loading = _model_of(config, model)
        if (quantization := get_quantization_config(model)) is not None:
            loading |= {"quantization_config": quantization, "device_map": {"": PartialState().device}}
        train_data, eval_data = with_reference_without_history(
            (train_data, eval_data), script.dataset_name, config, path, loading
        )
    if script.ignore_bias_buffers:
        config.ddp_broadcast_buffers = False  # boolean masks cannot be broadcast
    trainer = _make_trainer(config, model, train_data, eval_data)
    if options.reference == "no_history":
        trainer._reference_is_given = "what the initial model says without a history"
    if options.ranking_data is not None:
        trainer.add_callback(_ranking_callback(options.ranking_data, options, _score(options, config), trainer))
    return trainer


def largest_negatives(script: ScriptArguments, mixture: DatasetMixtureConfig) -> int:
    """Return the largest number of rejected completions of a training row; 1 for streams, which are not read."""
    data = choose_split(_load_data(script, mixture), script.dataset_train_split, "--dataset_train_split")
    if not isinstance(data, Dataset) or "rejected" not in data.column_names:
        return 1
    return max((len(own) for own in data["rejected"] if isinstance(own, list)), default=1)


def _score(options: TrainArguments, config: DMPOConfig) -> Literal["sum", "mean"]:
    return options.ranking_score or trained_score(config.loss_type)


def _resumes_there(config: DMPOConfig) -> bool:
    """Return whether a run goes on with a checkpoint of its own folder."""
    checkpoint = config.resume_from_checkpoint
    return checkpoint is not None and Path(checkpoint).resolve().parent == Path(str(config.output_dir)).resolve()


@contextmanager
def _noted(trainer: DMPOTrainer) -> Iterator[None]:
    """Note what a run writes, also where it fails; only one that is killed leaves its note open."""
    if not trainer.is_world_process_zero():
        yield
        return
    begin_run(str(trainer.args.output_dir))
    try:
        yield
    finally:
        end_run(str(trainer.args.output_dir))


def _train_and_save(trainer: DMPOTrainer, config: DMPOConfig, script: ScriptArguments) -> None:
    """Train, save the model with its card, and push both to the hub where asked to."""
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    trainer.save_model(config.output_dir)
    # The main process writes the card. TRL does so at checkpoints only, of which there may be none, and with an
    # adapter peft leaves an empty template in its place
    trainer.create_model_card(Path(str(trainer.hub_model_id or config.output_dir)).name)
    trainer.accelerator.print(f"The model is in {config.output_dir}.")
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
        trainer.accelerator.print(f"It is on the hub too: https://huggingface.co/{trainer.hub_model_id}")


def _load_data(script: ScriptArguments, mixture: DatasetMixtureConfig) -> Any:
    """Load the mixture of the YAML file, or the one data set that is named, with all its splits.

    `datasets` goes by the card of a prepared folder, so that is checked like the other files.
    """
    for name in [script.dataset_name, *(one.path for one in mixture.datasets)]:
        check_before_loading(name)
        if name is not None and Path(name).is_file():
            raise ValueError(f"{name} is a file: name its folder, whose files are loaded as one data set.")
    if mixture.datasets:
        if script.dataset_name is not None:
            logger.warning("The mixture `datasets` is trained on; --dataset_name %s is ignored.", script.dataset_name)
        return get_dataset(mixture)
    if script.dataset_name is None:
        raise ValueError("Name the data to train on: --dataset_name, or a list `datasets` in the file of --config.")
    return load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)


def _evaluation_split(data: Any, name: str) -> str:
    """Return the name of the split to evaluate on: where TRL's default is not there, the one of prepared folders."""
    if name == ScriptArguments.dataset_test_split and name not in data and "validation" in data:
        logger.info("The data have no split %r: evaluating on 'validation'.", name)
        return "validation"
    return name


def _make_trainer(config: DMPOConfig, model: ModelConfig, train_data: Any, eval_data: Any) -> DMPOTrainer:
    """Make the trainer, started from a model or, as after `trl sft --use_peft`, from an adapter."""
    path, model_options = _model_of(config, model)
    quantization_config = get_quantization_config(model)
    goes_on = is_adapter(path, revision=model_options["revision"])
    peft_config = adapter_options(path, goes_on, model)
    if not goes_on:
        config.model_init_kwargs = model_options
        with refuse_damaged_weights(path):
            return DMPOTrainer(
                path,
                args=config,
                train_dataset=train_data,
                eval_dataset=eval_data,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
    config.model_init_kwargs = None  # they are for a model that the trainer loads itself
    return DMPOTrainer(
        load_model(path, is_trainable=True, quantization_config=quantization_config, **model_options),
        args=config,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=load_tokenizer(
            path, revision=model_options["revision"], trust_remote_code=model_options["trust_remote_code"]
        ),
    )


def _model_of(config: DMPOConfig, model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return folder or hub id of the model that training begins with, and options for its `from_pretrained`."""
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path names the model to train: a folder or a hub id.")
    more: Any = config.model_init_kwargs or {}
    return model.model_name_or_path, {
        "revision": model.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **more,
    }


def _ranking_callback(
    data: str, options: TrainArguments, score: Literal["sum", "mean"], trainer: DMPOTrainer
) -> RankingCallback:
    users = choose_split(Prepared.load(data).ranking, options.ranking_split, "--ranking_split")
    if options.ranking_users is not None:
        users = users.select(range(min(options.ranking_users, len(users))))
    return RankingCallback(users, score=score, trainer=trainer, special_tokens_in_text=False)


def _save_catalogue(trainer: Any, data: str | None, score: Literal["sum", "mean"]) -> None:
    """Put catalogue and template of prepared data beside the model, so that a `Recommender` needs nothing else."""
    if data is None or not is_prepared(data) or not trainer.is_world_process_zero():
        return
    prepared = Prepared.load(data)
    tokenizer = tokenizer_of(trainer.processing_class)
    recommender = Recommender(trainer.model, tokenizer, prepared.items, prepared.template, score=score)
    recommender.save_catalogue(trainer.args.output_dir)
