"""`DMPOTrainer`: TRL's `DPOTrainer` for any number of rejected completions."""

import contextlib
import warnings
from functools import cached_property, partial
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import DPOConfig
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id, global_then_local_main_first, use_adapter

from .batching.completions import Completions, from_pairs, model_inputs
from .batching.sampler import check_sampling, make_batches, make_train_sampler
from .batching.vision import vision_collator
from .config import DMPOConfig, option
from .losses import SELECTIONS, ScoredBatch, check_columns, weighted_loss, wpo_weights
from .modeling.aux_loss import num_copies
from .preprocessing.dataset import tokenize_dataset
from .preprocessing.format import CHOSEN_COLUMNS, PAIR_COLUMNS, REFERENCE_COLUMNS, VALUE_COLUMNS
from .preprocessing.truncate import max_num_chosen, max_num_rejected
from .preprocessing.validate import check_rows, named_datasets, shown_name, warn_of_uneven_columns
from .training.checkpoints import set_damaged_cache_aside
from .training.checks import check_limits, check_options, check_step
from .training.distributed import check_compute_metrics, num_own_rows, readable_by_all, rows_of_table
from .training.guards import GuardedTrainer
from .training.layout import choose_layout
from .training.metrics import Totals, example_metrics, token_metrics, totals_over_processes
from .training.model_card import PAPER, TrainingSummary, complete_card, hub_dataset, may_write_card
from .training.reference import cache_key, initial_policy, needs_reference, options_of_parent, reference_is_given
from .training.resuming import ResumableTrainer
from .training.run_record import describe_models


class DMPOTrainer(GuardedTrainer, ResumableTrainer):
    """Direct Multi-Preference Optimization (arXiv 2405.16127): DPO with any number of rejected completions per prompt.

    Takes the place of [`~trl.DPOTrainer`]: constructor and datasets are the parent's, except that `rejected`
    holds a list of completions, and `chosen` may hold one too. A prompt is computed once for all of its completions
    where the model allows it (`DMPOConfig.prefix_sharing`), and only the positions that score completions meet the
    vocabulary.

    Example:
        >>> from datasets import Dataset
        >>> from dmpo_trl import DMPOConfig, DMPOTrainer
        >>> dataset = Dataset.from_list(
        ...     [{"prompt": "Watched: Alien. Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi"]}]
        ... )
        >>> trainer = DMPOTrainer(  # doctest: +SKIP
        ...     "Qwen/Qwen3-0.6B", args=DMPOConfig("out"), train_dataset=dataset
        ... )
        >>> trainer.train()  # doctest: +SKIP

    A dataset with images is trained without prefix sharing. A data collator that lays batches out as TRL does (chosen
    in the first half, rejected in the second) is trained as in `DPOTrainer`, with one rejected completion.

    Args:
        model: As in [`~trl.DPOTrainer`].
        ref_model: The reference policy. By default the initial `model`.
        args: A `DMPOConfig` (or a `DPOConfig`, whose `loss_type` then is TRL's default).
        data_collator: By default a `DataCollatorForMultiPreference`.
        train_dataset: Rows of `prompt`, `chosen` (or a list of them) and a list of `rejected`, or of their token ids.
        eval_dataset: Likewise, or a dictionary of such datasets.
        *args_and_kwargs: The parent's further parameters.

    Raises:
        ValueError: A row breaks the data contract (named by row and column), or `prefix_sharing=True` and the model
            cannot.
    """

    _tag_names = ["trl", "dpo", "dmpo", "recommendation"]  # noqa: RUF012 (the parent's type)
    _name = "DMPO"
    _paper = PAPER

    args: DPOConfig
    model: Any
    ref_model: Any
    data_collator: Any
    _signature_columns: Any

    def __init__(
        self,
        model: Any,
        ref_model: PreTrainedModel | None = None,
        args: DPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *args_and_kwargs: Any,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = DMPOConfig(f"{name.split('/')[-1]}-DMPO")
        check_options(args, data_collator, model, kwargs.get("peft_config"))
        for name, dataset in named_datasets(train_dataset, eval_dataset).items():
            check_rows(dataset, name)
            check_columns(args.loss_type, dataset.column_names or ())
        warn_of_uneven_columns(named_datasets(train_dataset, eval_dataset))
        check_sampling(args, train_dataset)
        self._has_reference = needs_reference(args, ref_model)
        given_columns = getattr(train_dataset, "column_names", None) or ()
        self._reference_is_given = self._has_reference and reference_is_given(args, ref_model, given_columns)
        if not self._has_reference:
            ref_model = None
        elif ref_model is None:
            ref_model = initial_policy(model, args, kwargs.get("peft_config"))
        self._given_collator = data_collator
        # While reference log-probs are precomputed, the largest numbers of chosen and of rejected completions of a row
        self._ref_table_widths: tuple[int | None, int | None] = (None, None)
        with options_of_parent(args, self._has_reference):
            super().__init__(
                model, ref_model, args, data_collator, train_dataset, eval_dataset, *args_and_kwargs, **kwargs
            )
        self.loss_types = args.loss_type
        self.precompute_ref_logps = args.precompute_ref_log_probs and self._has_reference
        if not self._has_reference:
            self.ref_model = None
        self.data_collator = self._collator
        if not self._is_vision_dataset and not self.precompute_ref_logps:
            self.train_dataset = self._within_limits(self.train_dataset, "train")
            self.eval_dataset = self._within_limits(self.eval_dataset, "eval")
        check_compute_metrics(self.compute_metrics, data_collator, self.accelerator)

    @cached_property
    def _collator(self) -> Any:
        """The collator of all batches; with it, before the first forward, the layout of the models is chosen."""
        collator, mode = self._given_collator, option(self.args, "prefix_sharing")
        if collator is None and self._is_vision_dataset:
            datasets = named_datasets(self.train_dataset, self.eval_dataset)
            collator = vision_collator(self.data_collator, datasets, self.args)
        if collator is not None:
            mode = getattr(collator, "prefix_sharing", False)
        layout = choose_layout(
            self.model,
            self.ref_model,
            mode,
            self.accelerator,
            compiles=self.args.torch_compile,
            in_blocks=option(self.args, "block_attention"),
        )
        return layout.collator(self.data_collator) if collator is None else collator

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: DPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        with global_then_local_main_first():
            dataset = tokenize_dataset(
                dataset,
                shown_name(dataset_name),
                processing_class,
                max_length=args.max_length,
                truncation_mode=args.truncation_mode,
                special_tokens_in_text=option(args, "special_tokens_in_text"),
                num_proc=args.dataset_num_proc,
            )
        # The parent's constructor prepares its datasets before there is a model to check them against, and the
        # precomputation of reference log-probs checks its own
        if not hasattr(self, "model") or self.precompute_ref_logps:
            return dataset
        return self._within_limits(dataset, shown_name(dataset_name))

    def _within_limits(self, dataset: Any, name: str) -> Any:
        """Check token ids and lengths of a dataset, or of a dictionary of them, against the limits of the models."""
        if isinstance(dataset, dict):
            return {key: self._within_limits(own, f"{name}_{key}") for key, own in dataset.items()}
        return dataset and check_limits(dataset, f"tokenised {name}", self.model, self.ref_model, self.args.max_length)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in VALUE_COLUMNS if name not in self._signature_columns]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        # `set_epoch` would not do: it does not reach the sampler of a run resumed in the middle of an epoch under DDP
        sampler = make_train_sampler(self.args, dataset, self._train_batch_size, lambda: int(self.state.epoch or 0))
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("is_training"):
            batches = make_batches(self.args, dataset, kwargs["batch_size"], self.data_collator)
            if batches is not None:
                dataset, kwargs["batch_size"] = batches, 1
        elif isinstance(dataset, IterableDataset) and self.accelerator.num_processes > 1:
            # Of a stream accelerate does not know the length, and so not which rows it repeats to fill the last batch
            dataset = list(dataset)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as [`~trl.DPOTrainer`] does, with any number of rejected completions per example."""
        if not isinstance(eval_dataset, str):  # the name of a dataset that the constructor has checked
            for name, dataset in named_datasets(None, eval_dataset).items():
                check_rows(dataset, name)
                check_columns(self.loss_types, dataset.column_names or ())
        return super().evaluate(eval_dataset, *args, **kwargs)

    # Reference

    @property
    def _precompute_model_hash(self) -> str:
        """The parent's key to its cache of reference log-probs, with the options that change the numbers as well."""
        reference = self.ref_model or self.model
        return cache_key(self._reference_hash, reference, self.args, self.accelerator, self._collator)

    @_precompute_model_hash.setter
    def _precompute_model_hash(self, reference_hash: str | None) -> None:
        self._reference_hash = reference_hash
        if self.args.should_save:  # the models are complete, and not yet sharded
            self._models = describe_models(self.model, self.ref_model, self.optimizer)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if not self._has_reference or set(REFERENCE_COLUMNS) <= set(dataset.column_names or ()):
            return self._within_limits(dataset, shown_name(name))  # nothing to compute, or it stands in the dataset
        if isinstance(dataset, IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # refuses it
        self.data_collator = self._collator
        self._within_limits(dataset, shown_name(name))
        dataset = readable_by_all(dataset, name, self.accelerator)
        if self.accelerator.is_main_process:
            cache_key = Hasher.hash((dataset._fingerprint, self._precompute_model_hash))  # as in the parent
            set_damaged_cache_aside(dataset._get_cache_file_path(cache_key), len(dataset))
        self._ref_table_widths = (max_num_chosen(dataset), max_num_rejected(dataset))
        try:
            dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._ref_table_widths = (None, None)
        with global_then_local_main_first():  # one process writes the cache file that all read
            return rows_of_table(dataset)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute reference log-probs of a batch: of all chosen and of all rejected completions, example by example.

        While they are precomputed, the latter are (B, largest number of a row of the dataset), filled up with NaN:
        processes gather equal shapes. So are the former where rows have several chosen completions.
        """
        inputs = from_pairs(inputs) if "completion_mask" in inputs else inputs
        completions = Completions.of(inputs)
        chosen, rejected = completions.split(self._reference_logps(model, inputs, completions))
        return completions.tables(chosen, rejected, self._ref_table_widths)

    def _reference_logps(self, model: Any, inputs: dict[str, torch.Tensor], completions: Completions) -> torch.Tensor:
        """Return log-probs of all completions under the reference policy, (C,), without gradient."""
        adapter: Any = contextlib.nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            # A new adapter: the base model is the reference. A trained one: TRL made a copy of it, named "ref"
            policy = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),  # type: ignore[arg-type]
            adapter,
            self.accelerator.autocast(),
        ):
            outputs = model(**model_inputs(inputs))
        return completions.logps(outputs.log_probs, self.ld_alpha)

    # Loss

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        inputs = from_pairs(inputs) if "completion_mask" in inputs else inputs
        own_rows = len(inputs["num_rejected"])
        if not self.model.training:  # rows that fill up the last batch are evaluated in one process only
            own_rows = num_own_rows(own_rows, self.accelerator)
        completions = Completions.of(inputs).first(max(own_rows, 1))  # without any, one is scored that does not count
        forward_inputs = model_inputs(inputs)
        if self.aux_loss_enabled:
            forward_inputs["output_router_logits"] = True
            if "subtree_end" in inputs:
                forward_inputs["num_copies"] = num_copies(inputs | vars(completions))
        scored_outputs: tuple[str, ...] = ("log_probs", "entropy", "mean_logits", "is_top1")
        if self.use_weighting:
            scored_outputs += ("log_sum_sq_probs",)
        outputs = model(**forward_inputs, scored_outputs=scored_outputs)
        if not self._has_reference:
            ref_logps = None
        elif REFERENCE_COLUMNS[0] in inputs:
            ref_logps = completions.join(*(inputs[name] for name in REFERENCE_COLUMNS))
        else:
            ref_model = self.model if self.ref_model is None else self.ref_model
            ref_logps = self._reference_logps(ref_model, inputs, completions)
        batch = ScoredBatch.of(
            completions,
            outputs.log_probs,
            ref_logps,
            ld_alpha=self.ld_alpha,
            beta=self.beta,
            f_divergence_type=self.f_divergence_type,
            f_alpha_divergence_coef=self.f_alpha_divergence_coef,
            pair_weights=wpo_weights(outputs, completions) if self.use_weighting else None,
            **{name: inputs[name] for name in (*CHOSEN_COLUMNS, *PAIR_COLUMNS) if name in inputs},
        )
        selected = SELECTIONS[option(self.args, "negative_selection")](batch)
        loss: Any = weighted_loss(self.loss_types, self.loss_weights, selected, self.args)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        with torch.no_grad():
            metrics = example_metrics(batch) | token_metrics(outputs, completions)
        num_tokens = inputs["attention_mask"].sum()
        totals = totals_over_processes(metrics, num_tokens, self.accelerator, counted=own_rows > 0)
        self.after_backward(partial(self._record, totals, "train" if self.model.training else "eval"))
        if not return_outputs:
            return loss
        warnings.warn(
            "The logits for `compute_metrics` are recomputed with an extra forward pass; TRL deprecates them.",
            FutureWarning,
            stacklevel=2,
        )
        with torch.no_grad():
            return loss, model(**{k: v for k, v in forward_inputs.items() if not k.startswith("scored_")})

    def _record(self, totals: Totals, mode: str) -> None:
        """Log means over the examples, and over the tokens, of all processes, and check that they are numbers."""
        means, examples, tokens = totals.means()
        # `log` averages what is recorded. An evaluation's batches weigh as in `eval_loss`: by their rows
        for name, mean in means.items():
            self._metrics[mode][name] += [mean] * (1 if mode == "train" else examples)
        if mode == "train":
            self._total_train_tokens += tokens // self._tp_size
            check_step(means["rewards/margins"], self.state.global_step, self.is_fp16)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    # Model card

    def create_model_card(  # type: ignore[override]  # as in `DPOTrainer`
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write TRL's card to `output_dir`, with a recommender's quick start, N, and what callbacks have to say."""
        if may_write_card(self):
            super().create_model_card(model_name, dataset_name or hub_dataset(self.train_dataset), tags)
            complete_card(TrainingSummary.of(self))
