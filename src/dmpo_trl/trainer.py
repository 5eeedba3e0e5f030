"""`DMPOTrainer`: TRL's `DPOTrainer` for any number of rejected completions. The only file that touches TRL's seams."""

import contextlib
import logging
import textwrap
import warnings
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import DPOConfig, DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import get_config_model_id, global_then_local_main_first, use_adapter

from .batching.collator import DataCollatorForMultiPreference
from .batching.sampler import check_sampling, make_train_sampler
from .batching.vision import vision_collator
from .config import DMPOConfig
from .losses import ScoredBatch, preference_loss
from .modeling.attention import attention_balance, packed_length, use_trie_attention
from .modeling.load_balancing import num_copies
from .modeling.probe import prepare_for_scoring, require_finite_logits
from .modeling.quantization import keep_trainable
from .modeling.scoring_head import add_scoring_head
from .preprocessing.format import TOKEN_COLUMNS, numbered_columns
from .preprocessing.tokenize import tokenize_row
from .preprocessing.truncate import drop_and_report, most_rejected
from .preprocessing.validate import check_rows, named_datasets
from .training.checkpoints import (
    checkpoint_to_resume,
    list_files,
    set_damaged_cache_aside,
    set_incomplete_aside,
    withdraw,
)
from .training.checks import check_limits, check_step
from .training.distributed import check_checkpoint_kind, first_rows, own_rows, readable_by_all, whole_layers
from .training.metrics import example_metrics, token_metrics
from .training.model_card import complete_card, hub_dataset

logger = logging.getLogger(__name__)

# How the outcome of the forward is read; the rest of a batch is what the forward takes
_NOT_MODEL_INPUTS = {
    "num_rejected",
    "is_chosen",
    "token_pairs",
    "token_completions",
    "ref_chosen_logps",
    "ref_rejected_logps",
}


class DMPOTrainer(DPOTrainer):
    """Direct Multi-Preference Optimization (arXiv 2405.16127): DPO with any number of rejected completions a prompt.

    Takes the place of [`~trl.DPOTrainer`]: the constructor is the parent's, and a dataset is as there, except that
    `rejected` holds a list of completions. Every distinct prefix of a batch is computed once where the model allows
    it (`DMPOConfig.prefix_sharing`), and only the positions that score a completion meet the vocabulary.

    Example:
        >>> from datasets import Dataset
        >>> from dmpo_trl import DMPOConfig, DMPOTrainer
        >>> dataset = Dataset.from_list(
        ...     [{"prompt": "Watched: Alien. Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi"]}]
        ... )
        >>> trainer = DMPOTrainer("Qwen/Qwen3-0.6B", args=DMPOConfig("out"), train_dataset=dataset)
        >>> trainer.train()

    A dataset with images is trained without prefix sharing. A data collator that lays batches out as TRL does (chosen
    in the first half, rejected in the second) is trained as in `DPOTrainer`, with one rejected completion.

    Args:
        model: See [`~trl.DPOTrainer`], as for every other parameter.
        ref_model: The reference policy. By default the initial `model`.
        args: A `DMPOConfig` (or a `DPOConfig`, whose `loss_type` then is TRL's default).
        data_collator: By default a `DataCollatorForMultiPreference`.
        *args_and_kwargs: The parent's further parameters.

    Raises:
        ValueError: A row breaks the data contract (named by row and column), or `prefix_sharing=True` and the model
            cannot.
    """

    _tag_names = ["trl", "dpo", "dmpo", "recommendation"]  # noqa: RUF012 (the parent's type)
    _name = "DMPO"
    _paper = {  # noqa: RUF012
        "title": "Finetuning Large Language Model for Personalized Ranking",
        "id": "2405.16127",
        "citation": textwrap.dedent("""\
            @article{bai2024dmpo,
                title   = {{Finetuning Large Language Model for Personalized Ranking}},
                author  = {Zhuoxi Bai and Ning Wu and Fengyu Cai and Xinyi Zhu and Yun Xiong},
                year    = 2024,
                journal = {arXiv preprint arXiv:2405.16127},
            }"""),
    }

    args: DPOConfig
    model: Any
    ref_model: Any
    data_collator: Any

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
        if isinstance(data_collator, DataCollatorForPreference):
            raise TypeError(
                "TRL's `DataCollatorForPreference` takes one rejected completion an example, and examples here have a "
                "list of them: leave `data_collator` out, or pass a `dmpo_trl.DataCollatorForMultiPreference`."
            )
        if args.activation_offloading and (args.use_cpu or not torch.accelerator.is_available()):
            raise ValueError(
                "`activation_offloading=True` moves activations from an accelerator to the CPU, and training runs on "
                "the CPU already: leave it out."
            )
        accelerator_config: Any = args.accelerator_config
        if accelerator_config.dispatch_batches:
            logger.warning(
                "`dispatch_batches=True` cuts batches by their first dimension, which ragged batches do not have in "
                "common: it is set to False."
            )
        accelerator_config.dispatch_batches = False
        self._layout_is_chosen = False
        self._precompute_width: int | None = None
        self._default_collator = data_collator is None
        for name, dataset in named_datasets(train_dataset, eval_dataset).items():
            check_rows(dataset, name)
        # The parent checks options against the loss types that it knows, where ours stand for "sigmoid"
        loss_types = args.loss_type
        args.loss_type = _as_trl_knows(loss_types)
        try:
            super().__init__(
                model, ref_model, args, data_collator, train_dataset, eval_dataset, *args_and_kwargs, **kwargs
            )
        finally:
            args.loss_type = loss_types
        self.loss_types = loss_types
        self._choose_layout()
        if self.compute_metrics is not None and self._default_collator and self.accelerator.num_processes > 1:
            raise ValueError(
                "`compute_metrics` with several processes: they would have to gather logits of shapes that differ, as "
                "ragged batches do. Leave it out (what `DPOTrainer` logs is logged), or evaluate in one process."
            )

    def _choose_layout(self) -> None:
        """Install the scoring heads, run the probe, and put the collator in place: before the first forward."""
        if self._layout_is_chosen:
            return
        self._layout_is_chosen = True
        check_sampling(self.args, self.train_dataset)
        if self._default_collator and self._is_vision_dataset:
            evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
            datasets = {"train": self.train_dataset, **evaluation}
            self.data_collator = vision_collator(self.data_collator, datasets, self.args)
        if not self._default_collator or self._is_vision_dataset:
            mode: str | bool = getattr(self.data_collator, "prefix_sharing", False)
        else:
            mode = getattr(self.args, "prefix_sharing", "auto")
        base_model = self._base_model(self.model)
        if not self._is_vision_dataset:
            for name, dataset in named_datasets(self.train_dataset, self.eval_dataset).items():
                self._check_limits(dataset, name)
        for model in (self.model, self.ref_model):
            if model is not None:
                keep_trainable(model)  # the reference too: it must round as the policy does
        with whole_layers(self.model):
            require_finite_logits(self.model, base_model)
            share = prepare_for_scoring(self.model, base_model, mode)
        if self.ref_model is not None:
            ref_model = self._base_model(self.ref_model)
            add_scoring_head(ref_model)  # the class is then the policy's, if it was before
            if type(ref_model) is type(base_model):  # computes as the policy does: no second probe of the trie
                with whole_layers(ref_model):
                    require_finite_logits(ref_model, ref_model)
                    prepare_for_scoring(ref_model, ref_model, False)
                if share:
                    use_trie_attention(ref_model)
            else:
                share = prepare_for_scoring(ref_model, ref_model, share) and share
        # One decision for policy and reference, and for all processes: in half precision each layout rounds its way
        decision = [share]
        broadcast_object_list(decision, from_process=0)
        if decision[0] and not share:  # this process's own probe found otherwise
            use_trie_attention(base_model)
            if self.ref_model is not None:
                use_trie_attention(self._base_model(self.ref_model))
        if self._default_collator and not self._is_vision_dataset:
            # The parent made its own from the arguments and the tokenizer; ours takes the same parameters
            collator = self.data_collator
            models = [base_model] if self.ref_model is None else [base_model, self._base_model(self.ref_model)]
            self.data_collator = DataCollatorForMultiPreference(
                pad_token_id=collator.pad_token_id,
                max_length=collator.max_length,
                truncation_mode=collator.truncation_mode,
                pad_to_multiple_of=collator.pad_to_multiple_of,
                prefix_sharing=decision[0],
                attention_balance=attention_balance(base_model.config),
                # `torch.compile` would compile anew for each batch's trees
                packed_length=None if self.args.torch_compile else packed_length(self.accelerator.device, *models),
            )

    def _base_model(self, model: Any) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        return model.get_base_model() if is_peft_model(model) else model

    # Data

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        args: DPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        dataset = dataset.with_format(None)  # rows are read as Python objects
        columns = set(next(iter(dataset), {}))
        if columns.issuperset((*TOKEN_COLUMNS, "prompt_tokens_cut")):
            self._check_limits(dataset, dataset_name)  # prepared before, perhaps by another trainer
            return dataset
        if dataset_name not in ("train", "eval"):  # a key of the parent's `eval_dataset`
            dataset_name = f"eval_{dataset_name}"
        check_rows(dataset, dataset_name)
        if folded := numbered_columns(columns):
            logger.info("The columns %s of the %s dataset are folded into `rejected`", folded, dataset_name)
        map_kwargs: dict[str, Any] = {}
        if isinstance(dataset, Dataset):  # `IterableDataset.map` knows neither
            map_kwargs = {"num_proc": args.dataset_num_proc, "desc": f"Tokenizing {dataset_name} dataset"}
        with global_then_local_main_first():
            dataset = dataset.map(
                tokenize_row,
                with_indices=True,
                fn_kwargs={
                    "dataset_name": dataset_name,
                    "processing_class": processing_class,
                    "eos_token": self._tokenizer.eos_token,
                    "max_length": args.max_length,
                    "truncation_mode": args.truncation_mode,
                },
                **map_kwargs,
            )
            dataset = drop_and_report(dataset, dataset_name, args.max_length, args.truncation_mode)
        self._check_limits(dataset, dataset_name)
        return dataset

    def _check_limits(self, dataset: Dataset | IterableDataset, name: str) -> None:
        if not self._layout_is_chosen:  # the constructor's datasets, which are checked when there is a model to ask
            return
        model = self._base_model(self.model)
        check_limits(dataset, f"tokenised {name}", model, self._tokenizer, self.args.max_length)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        # `set_epoch` would not do: it does not reach the sampler of a run resumed in the middle of an epoch under DDP
        sampler = make_train_sampler(
            self.args, dataset, self._train_batch_size, self.data_collator, lambda: int(self.state.epoch or 0)
        )
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            isinstance(dataset, IterableDataset)
            and not kwargs.get("is_training")
            and self.accelerator.num_processes > 1
        ):
            # Of a stream accelerate does not know the length, and so not which rows it repeats to fill the last batch
            dataset = list(dataset)
        return super()._get_dataloader(dataset, *args, **kwargs)

    # Reference

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Reference log-probs of a batch: chosen (B,) and rejected (sum of N,), example by example.

        While they are precomputed the latter are (B, largest N of the dataset), filled up with NaN, so that processes
        gather equal shapes.
        """
        if not _is_multi_preference(inputs):
            return super().compute_ref_log_probs(model, inputs)
        chosen, rejected = _split(self._reference_logps(model, inputs), inputs)
        if self._precompute_width is None:
            return chosen, rejected
        table = rejected.new_full((len(chosen), self._precompute_width), float("nan"))
        slots = torch.arange(self._precompute_width, device=table.device)
        return chosen, table.masked_scatter(slots < inputs["num_rejected"][:, None], rejected)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._choose_layout()
        if isinstance(dataset, IterableDataset):
            return super()._precompute_ref_logps(dataset, name, batch_size)  # refuses it
        dataset = readable_by_all(dataset, name, self.accelerator)
        model_hash = self._precompute_model_hash
        # The parent's cache key is the dataset and the model; these options change the numbers as well
        self._precompute_model_hash = Hasher.hash(
            (
                model_hash,
                self.ld_alpha,
                self.args.max_length,
                self.args.truncation_mode,
                self.accelerator.mixed_precision,
                getattr(self.data_collator, "prefix_sharing", None),
            )
        )
        if self.accelerator.is_main_process:
            cache_key = Hasher.hash((dataset._fingerprint, self._precompute_model_hash))  # as in the parent
            set_damaged_cache_aside(dataset._get_cache_file_path(cache_key), len(dataset))
        self._precompute_width = most_rejected(dataset)
        try:
            dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self._precompute_model_hash = model_hash
            self._precompute_width = None
        with global_then_local_main_first():  # one process writes the cache file that all read
            rejected = dataset.select_columns(["ref_rejected_logps", "rejected_ids"]).map(
                lambda row: {"ref_rejected_logps": row["ref_rejected_logps"][: len(row["rejected_ids"])]},
                remove_columns=["rejected_ids"],
            )
        return concatenate_datasets([dataset.remove_columns("ref_rejected_logps"), rejected], axis=1)

    def _reference_logps(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probs of all completions under the reference policy, (C,), without gradient."""
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
            outputs = model(**_model_inputs(inputs))
        return self._completion_logps(outputs.log_probs, inputs)

    # Loss

    def _completion_logps(self, pair_logps: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Add up the log-probs of each completion's tokens: (S,) to (C,)."""
        token_logps, owners = pair_logps[inputs["token_pairs"]], inputs["token_completions"]
        if self.ld_alpha is not None:
            # LD-DPO (arXiv 2409.06411, Eq. 10): tokens past the length that an example's completions share weigh less
            lengths = _completion_lengths(inputs)
            examples = inputs["is_chosen"].cumsum(0) - 1  # an example begins with its chosen completion
            shared = lengths.new_full((len(inputs["num_rejected"]),), int(lengths.max())).scatter_reduce(
                0, examples, lengths, "amin"
            )
            tokens = torch.arange(len(owners), device=owners.device)
            starts = tokens.new_full((len(lengths),), len(tokens)).scatter_reduce(0, owners, tokens, "amin")
            verbose = tokens - starts[owners] >= shared[examples[owners]]
            token_logps = torch.where(verbose, self.ld_alpha * token_logps, token_logps)
        return _sum_by_completion(token_logps, inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if not _is_multi_preference(inputs):
            return self._compute_trl_loss(model, inputs, return_outputs)
        # Rows that fill up the last batch are trained on, as in every trainer, but evaluated in one process only
        rows = len(inputs["num_rejected"]) if self.model.training else own_rows(inputs, self.accelerator)
        inputs = first_rows(inputs, max(rows, 1))  # a process without any scores one that counts nowhere
        model_inputs = _model_inputs(inputs)
        scored_outputs: tuple[str, ...] = ("log_probs", "entropy", "mean_logits", "is_top1")
        if self.use_weighting:
            scored_outputs += ("log_sum_sq_probs",)
        if self.aux_loss_enabled:
            model_inputs["output_router_logits"] = True
            if "subtree_end" in inputs:
                model_inputs["num_copies"] = num_copies(inputs)
        outputs = model(**model_inputs, scored_outputs=scored_outputs)
        logps = self._completion_logps(outputs.log_probs, inputs)
        chosen_logps, rejected_logps = _split(logps, inputs)
        if self.precompute_ref_logps:
            ref_chosen_logps, ref_rejected_logps = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            ref_model = self.model if self.ref_model is None else self.ref_model
            ref_chosen_logps, ref_rejected_logps = _split(self._reference_logps(ref_model, inputs), inputs)
        chosen_lengths, rejected_lengths = _split(_completion_lengths(inputs), inputs)
        batch = ScoredBatch(
            chosen_logps=chosen_logps,
            rejected_logps=rejected_logps,
            ref_chosen_logps=ref_chosen_logps,
            ref_rejected_logps=ref_rejected_logps,
            num_rejected=inputs["num_rejected"],
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            chosen_nll=-outputs.log_probs[inputs["token_pairs"]][_is_chosen_token(inputs)].mean(),
            f_divergence_type=self.f_divergence_type,
            f_alpha_divergence_coef=self.f_alpha_divergence_coef,
        )
        pair_weights = self._wpo_weights(outputs, inputs, batch) if self.use_weighting else None
        loss: Any = sum(
            weight * preference_loss(loss_type, batch, self.args, pair_weights).mean()
            for loss_type, weight in zip(self.loss_types, self.loss_weights, strict=True)
        )
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._record_metrics(batch, outputs, inputs, counts=rows > 0)
        if self.model.training:
            margin = self._metrics["train"]["rewards/margins"][-1]
            fp16 = self.accelerator.mixed_precision == "fp16" or self._base_model(self.model).dtype == torch.float16
            check_step(margin, self.state.global_step, fp16)
        if not return_outputs:
            return loss
        warnings.warn(
            "The logits for `compute_metrics` are recomputed with an extra forward pass; TRL deprecates them.",
            FutureWarning,
            stacklevel=2,
        )
        with torch.no_grad():
            return loss, model(**{k: v for k, v in model_inputs.items() if not k.startswith("scored_")})

    def _compute_trl_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        """The parent's loss, for a batch in the parent's layout: one rejected completion an example."""
        loss_types = self.loss_types
        self.loss_types = _as_trl_knows(loss_types)
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.loss_types = loss_types

    @torch.no_grad()
    def _wpo_weights(self, outputs: Any, inputs: dict[str, torch.Tensor], batch: ScoredBatch) -> torch.Tensor:
        """Weight of each pair by the policy's own likelihood of both (WPO, arXiv 2406.11827, Eq. 2), (P,)."""
        token_logps = (outputs.log_probs - outputs.log_sum_sq_probs)[inputs["token_pairs"]]
        weights = torch.exp(_sum_by_completion(token_logps, inputs) / _completion_lengths(inputs).clamp(min=1))
        chosen, rejected = _split(weights, inputs)
        return chosen[batch.example] * rejected

    # Metrics

    @torch.no_grad()
    def _record_metrics(
        self, batch: ScoredBatch, outputs: Any, inputs: dict[str, torch.Tensor], *, counts: bool
    ) -> None:
        """Record means over the examples, and over the tokens, of all processes. A batch that `counts` not is left
        out.
        """
        tokens, is_chosen = inputs["token_pairs"], _is_chosen_token(inputs)
        means = example_metrics(batch, self.beta) | token_metrics(outputs, tokens, is_chosen)
        # One gather of sums and counts, whatever the number of negatives in each process
        sums = [values.float().sum() for values in means.values()] + [inputs["attention_mask"].float().sum()]
        sizes = [len(values) for values in means.values()] + [0]
        table = torch.stack([torch.stack(sums), torch.tensor(sizes, device=sums[0].device, dtype=torch.float)])
        total_sums, total_counts = self.accelerator.gather(counts * table[None]).sum(dim=0).tolist()
        mode = "train" if self.model.training else "eval"
        # `log` averages what is recorded. An evaluation's batches weigh as in `eval_loss`: by their rows
        repeats = 1 if mode == "train" else int(total_counts[0])
        for name, total, count in zip(means, total_sums, total_counts, strict=False):
            self._metrics[mode][name] += [total / count if count else 0.0] * repeats
        if mode == "train":
            self._total_train_tokens += int(total_sums[-1]) // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def create_model_card(  # type: ignore[override]  # as in `DPOTrainer`
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes TRL's card to `output_dir`, with a recommender's quick start, N, and what was ranked meanwhile."""
        super().create_model_card(model_name, dataset_name or hub_dataset(self.train_dataset), tags)
        if self.is_world_process_zero():
            complete_card(self)

    # Checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains as [`~transformers.Trainer.train`] does; `True` resumes from the last whole checkpoint."""
        output_dir: Any = self.args.output_dir
        checkpoint = checkpoint_to_resume(output_dir, resume_from_checkpoint)
        if checkpoint is not None:
            check_checkpoint_kind(checkpoint, self.accelerator)
        if checkpoint is not None and self.args.sync_ref_model:
            logger.warning(
                "`sync_ref_model=True`: checkpoints do not hold the reference, which starts again as it did at first. "
                "The resumed run will not end with the weights of an uninterrupted one."
            )
        self.accelerator.wait_for_everyone()  # all have chosen among the same folders
        if self.args.should_save:
            set_incomplete_aside(output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            withdraw(f"{self._get_output_dir(trial)}/checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # every process writes a file of its own
        if self.args.should_save:
            list_files(output_dir)


def _as_trl_knows(loss_types: list[str]) -> list[str]:
    """With one rejected completion, and in the parent's checks of options, our losses are DPO's own."""
    return ["sigmoid" if loss_type in ("dmpo", "softmax") else loss_type for loss_type in loss_types]


def _is_multi_preference(inputs: dict[str, torch.Tensor]) -> bool:
    return "token_pairs" in inputs


def _model_inputs(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in _NOT_MODEL_INPUTS} | {"use_cache": False}


def _sum_by_completion(token_values: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(T,) to (C,)."""
    sums = token_values.new_zeros(len(inputs["is_chosen"]))
    return sums.index_add(0, inputs["token_completions"], token_values)


def _completion_lengths(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return _sum_by_completion(torch.ones_like(inputs["token_completions"]), inputs)


def _is_chosen_token(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["is_chosen"][inputs["token_completions"]]


def _split(values: torch.Tensor, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of all completions, (C,), to those of the chosen, (B,), and of the rejected, (P,)."""
    return values[inputs["is_chosen"]], values[~inputs["is_chosen"]]
