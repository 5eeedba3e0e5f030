"""`dmpo-trl estimate`: tokens, FLOPs and memory of a training step, computed from a model's config."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ._splits import choose_split, first_negatives
from ._train_options import adapter_options, argument_types
from .options import Parser, check_at_least

if TYPE_CHECKING:
    from peft import PeftConfig
    from trl import ModelConfig

    from ..modeling.row_plan import RowPlan
    from ..training.cost import BatchSize, Lengths, ModelSize, StepCost, TrainingOptions


@dataclass
class EstimateArguments:
    """Lengths of the examples, unless `--dataset_name` names some to measure."""

    prompt_tokens: int | None = field(default=None, metadata={"help": "Tokens in a prompt."})
    completion_tokens: int | None = field(
        default=None, metadata={"help": "Tokens in a completion, including the end-of-sequence token."}
    )
    negatives: int = field(default=1, metadata={"help": "Rejected completions per example."})
    sample_rows: int = field(
        default=256,
        metadata={"help": "Number of rows of --dataset_name, drawn at random, whose lengths are measured."},
    )
    memory_gb: float | None = field(
        default=None,
        metadata={
            "help": "Memory of a device in 10^9 bytes, for the largest N that fits into it and for what to switch on "
            "and off. Default: that of the first GPU, where one is there."
        },
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, prompt_tokens=1, completion_tokens=1, negatives=1, sample_rows=1)


@dataclass
class Sample:
    """Layouts of the batches, and the lengths of one example's prompt and completions."""

    layouts: dict[str, list[BatchSize]]
    prompt_tokens: int
    completion_tokens: int
    negatives: int
    source: str


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        "dmpo-trl estimate --model_name_or_path Qwen/Qwen3-0.6B --prompt_tokens 300 --completion_tokens 10 "
        "--negatives 7\n"
        "dmpo-trl estimate --config dmpo.yaml --memory_gb 24"
    )
    return Parser("estimate", *argument_types(), EstimateArguments, example=example)


def run(arguments: list[str]) -> None:
    """Print the table. The options and the YAML file are those of `dmpo-trl train`; no weights are read."""
    from ..training.cost import BatchSize, ModelSize, TrainingOptions, largest, step_cost
    from ..training.reference import needs_reference
    from .launch import accelerate_options

    parser = make_parser()
    parsed = parser.parse_values(arguments, accelerate_options())
    device_type = "cpu" if parsed.values.use_cpu else "cuda"
    parsed.values.use_cpu = True  # the machine that estimates need not be one that could train
    script, config, model, _, ours, options = parser.instances(parsed)
    if model.model_name_or_path is None:
        raise ValueError("--model_name_or_path names the model to train: a folder or a hub id.")
    if model.load_in_8bit:
        raise ValueError("There is no estimate for --load_in_8bit; --load_in_4bit has one.")
    loaded, adapter = _configs(model.model_name_or_path, model, config.trust_remote_code)
    if model.load_in_4bit and adapter is None:
        raise ValueError("--load_in_4bit trains an adapter on a quantized model: add --use_peft.")
    size = ModelSize.from_config(loaded, adapter)
    dtype = loaded.dtype if model.dtype == "auto" else model.dtype
    weight_bytes = 2 if str(dtype).removeprefix("torch.") in ("bfloat16", "float16") else 4
    training = TrainingOptions(
        weight_bytes=weight_bytes,
        # Where bf16 is not given, the machine that trains uses it
        half_precision=weight_bytes == 2 or parsed.values.bf16 is not False or config.fp16,
        gradient_checkpointing=config.gradient_checkpointing or getattr(config, "activation_checkpointing", False),
        precomputed_reference=config.precompute_ref_log_probs or not needs_reference(config, None),
        load_in_4bit=model.load_in_4bit,
    )
    plan, attention = _rows(loaded, config, model, device_type)
    batch_size = config.per_device_train_batch_size
    sample = _measure(script, config, model, options, ours.max_negatives, plan, batch_size)
    memory_gb: float | None = options.memory_gb or _memory_of_gpu()
    limit = math.inf if memory_gb is None else memory_gb * 1e9

    def largest_negatives(layout: Callable[[Lengths], BatchSize]) -> int:
        def fits(negatives: int) -> bool:
            completions = [sample.completion_tokens] * (negatives + 1)
            cost = step_cost(size, layout([(sample.prompt_tokens, completions)] * batch_size), training)
            return cost.memory <= limit

        return largest(fits, 4096)

    columns = {}
    for name, layout in (
        ("trie", lambda lengths: BatchSize.trie(lengths, plan)),
        ("copies", BatchSize.copies),
    ):
        columns[name] = _column([step_cost(size, batch, training) for batch in sample.layouts[name]])
        if memory_gb is not None:
            columns[name][f"largest N in {memory_gb:g} GB"] = largest_negatives(layout)
    trained = size.adapter or size.parameters
    if device_type == "cuda" and memory_gb is None:
        attention += " (--use_cpu counts a CPU's step)"
    print(
        f"{model.model_name_or_path}: {size.parameters / 1e6:,.1f}M parameters, {trained / 1e6:,.1f}M trained"
        f"{' (LoRA)' if size.adapter else ''}; one step of {batch_size} examples, {sample.source}; {attention}\n"
    )
    print(_table(columns))
    _print_faster(size, sample.layouts["trie"], training, memory_gb)
    print("\nHow it is computed, what is left out and how far it is from measured runs: docs/cost.md in a clone.")


def _configs(path: str, options: ModelConfig, trust_remote_code: bool) -> tuple[Any, PeftConfig | None]:
    """Return the config of the model, and of the adapter that is trained: a new one, or the one at `path` goes on."""
    from peft import PeftConfig
    from transformers import AutoConfig

    from ..modeling.loading import is_adapter

    revision = options.model_revision
    goes_on = is_adapter(path, revision=revision)
    adapter = adapter_options(path, goes_on, options)
    if goes_on:
        adapter = PeftConfig.from_pretrained(path, revision=revision)
        adapter.inference_mode = False  # else none of its weights would count as trained
        path, revision = adapter.base_model_name_or_path or "", adapter.revision
    return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code), adapter


def _rows(config: Any, options: Any, model: ModelConfig, device_type: str) -> tuple[RowPlan, str]:
    """Return how the trainer lays the trie's rows out on a device, and what attention that is for, in words."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..modeling.attention import plain_attention
    from ..modeling.block_attention import block_obstacle
    from ..modeling.row_plan import plan_for

    asked = model.attn_implementation
    known = {"attn_implementation": asked} if asked in ("sdpa", "eager") else {}
    with torch.device("meta"):
        base = plain_attention(AutoModelForCausalLM.from_config(config, **known))
    reason = block_obstacle(config, base, device_type, triton=True)  # which torch for CUDA brings along
    if not options.block_attention:
        reason = "block_attention is False"
    elif options.torch_compile:
        reason = "torch_compile is set"
    if reason is None:
        return plan_for(device_type, ["trie_sdpa_blocks"], config), "on CUDA, the trie attended to in blocks"
    # As if compiled: a CPU's rows are packed without padding and attended to tree by tree, which is counted as padded
    plan = plan_for(device_type, [f"trie_{base}"], config, compiles=True)
    return plan, "on a CPU" if device_type == "cpu" else f"on CUDA, with dense masks: {reason}"


def _memory_of_gpu() -> float | None:
    """Return the memory of the first GPU in GB; None without one."""
    import torch

    return round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if torch.cuda.is_available() else None


def _print_faster(
    size: ModelSize, layouts: list[BatchSize], training: TrainingOptions, memory_gb: float | None
) -> None:
    """Print the options that make a step of the trie faster: the two that matter most, alone and together.

    Args:
        size: The model's.
        layouts: Of batches.
        training: Options as they are.
        memory_gb: Memory that the step may take; None prints what each option takes.
    """
    from ..training.cost import step_cost

    def costs(options: TrainingOptions) -> tuple[float, float]:
        own = [step_cost(size, layout, options) for layout in layouts]
        return statistics.mean(cost.flops for cost in own), max(cost.memory for cost in own)

    changes = {
        "--gradient_checkpointing False": {"gradient_checkpointing": False},
        "--precompute_ref_log_probs True": {"precomputed_reference": True},
    }
    changes = {name: change for name, change in changes.items() if replace(training, **change) != training}
    if len(changes) > 1:
        changes[" ".join(changes)] = {key: value for change in changes.values() for key, value in change.items()}
    flops, _ = costs(training)
    lines: list[str] = []
    too_large: list[str] = []
    for name, change in changes.items():
        less, memory = costs(replace(training, **change))
        line = f"{name}: {flops / less:.2f} times fewer FLOPs, {memory / 1e9:.3f} GB"
        (lines if memory_gb is None or memory <= memory_gb * 1e9 else too_large).append(line)
    if lines:
        where = "if the memory is there" if memory_gb is None else f"and fits in {memory_gb:g} GB"
        print(f"\nFaster, {where} (trie):", *lines, sep="\n")
        if not training.precomputed_reference:
            print(
                "Log-probs that are precomputed take a forward pass of the dataset before the first step, which is "
                "cached: they pay from the second epoch, or run, on."
            )
    if too_large:
        print(
            f"\nFaster, and does not fit in {memory_gb:g} GB (trie):", *(f"- {line}" for line in too_large), sep="\n"
        )


def _measure(
    script: Any,
    config: Any,
    model: Any,
    options: EstimateArguments,
    max_negatives: int | None,
    plan: RowPlan,
    batch_size: int,
) -> Sample:
    from ..training.cost import BatchSize

    if (options.prompt_tokens is None) == (script.dataset_name is None):
        raise ValueError("Give one of --prompt_tokens (with --completion_tokens) and --dataset_name.")
    if options.prompt_tokens is not None:
        if options.completion_tokens is None:
            raise ValueError("--prompt_tokens needs --completion_tokens.")
        prompt, completion, negatives = options.prompt_tokens, options.completion_tokens, options.negatives
        negatives = min(negatives, max_negatives or negatives)
        if config.max_length is not None and prompt + completion > config.max_length:
            raise ValueError(
                f"A prompt of {prompt} and a completion of {completion} tokens exceed max_length={config.max_length}."
            )
        lengths: Lengths = [(prompt, [completion] * (negatives + 1))] * batch_size
        layouts = {"trie": [BatchSize.trie(lengths, plan)], "copies": [BatchSize.copies(lengths)]}
        source = (
            f"N = {negatives}, prompts of {prompt} tokens, completions of {completion}, nothing shared but prompts"
        )
        return Sample(layouts, prompt, completion, negatives, source)

    from datasets import load_dataset

    from ..batching.collator import DataCollatorForMultiPreference
    from ..data.preparation.folder import check_before_loading, is_prepared
    from ..modeling.loading import load_tokenizer
    from ..preprocessing.dataset import tokenize_dataset
    from ..preprocessing.format import chosen_entries

    tokenizer = load_tokenizer(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=config.trust_remote_code
    )
    check_before_loading(script.dataset_name)
    splits = load_dataset(script.dataset_name, name=script.dataset_config)
    data = choose_split(splits, script.dataset_train_split, "--dataset_train_split")
    in_text = config.special_tokens_in_text
    rows = data.shuffle(config.seed).select(range(min(options.sample_rows, len(data))))
    rows = first_negatives(rows, max_negatives)
    examples = tokenize_dataset(
        rows,
        "train",
        tokenizer,
        max_length=config.max_length,
        truncation_mode=config.truncation_mode,
        special_tokens_in_text=False if in_text is None and is_prepared(script.dataset_name) else in_text,
    ).to_list()
    layouts = {}
    own_multiple = config.pad_to_multiple_of or 1
    multiples = {"trie": math.lcm(own_multiple, plan.multiple), "copies": own_multiple}  # as in `Layout.collator`
    for name in multiples:
        collate = DataCollatorForMultiPreference(
            pad_token_id=0,
            max_length=config.max_length,
            truncation_mode=config.truncation_mode,
            prefix_sharing=name == "trie",
            **plan.options() | {"pad_to_multiple_of": multiples[name]},
        )
        batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
        whole = [batch for batch in batches if len(batch) == batch_size] or batches
        in_blocks = plan.in_blocks and name == "trie"
        layouts[name] = [BatchSize.measured(collate(batch), in_blocks=in_blocks) for batch in whole]
    rejected = [ids for row in examples for ids in row["rejected_ids"]]
    completions = rejected + [ids for row in examples for _, _, ids in chosen_entries(row)]
    prompt = round(statistics.mean(len(row["prompt_ids"]) for row in examples))
    completion = round(statistics.mean(map(len, completions)))
    negatives = round(len(rejected) / len(examples))
    source = (
        f"{len(examples)} rows of {script.dataset_name}: N = {negatives}, prompts of {prompt} tokens, completions of "
        f"{completion} on average"
    )
    return Sample(layouts, prompt, completion, negatives, source)


def _column(costs: list[StepCost]) -> dict[str, float]:
    """Return tokens and FLOPs of the mean batch, and the memory of the batch that needs most."""
    worst = max(costs, key=lambda cost: cost.memory)

    def mean(value: Callable[[StepCost], float]) -> float:
        return statistics.mean(map(value, costs))

    return {
        "tokens": mean(lambda cost: cost.layout.tokens),
        "tokens with padding": mean(lambda cost: cost.layout.padded_tokens),
        "TFLOPs": mean(lambda cost: cost.flops) / 1e12,
        "- forward": mean(lambda cost: cost.forward) / 1e12,
        "- backward": mean(lambda cost: cost.backward) / 1e12,
        "- recomputation": mean(lambda cost: cost.recomputation) / 1e12,
        "- reference": mean(lambda cost: cost.reference) / 1e12,
        "memory, GB": worst.memory / 1e9,
        "- weights": worst.weight_memory / 1e9,
        "- reference weights": worst.reference_memory / 1e9,
        "- optimizer": worst.optimizer_memory / 1e9,
        "- gradients": worst.gradient_memory / 1e9,
        "- activations": worst.activation_memory / 1e9,
        "- head and mask": (worst.head_memory + worst.mask_memory) / 1e9,
    }


def _table(columns: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':<22}{'trie':>12}{'copies':>12}{'ratio':>9}"]
    for name, trie in columns["trie"].items():
        copies = columns["copies"][name]
        whole = name.startswith(("tokens", "largest"))
        ratio = f"{copies / trie:.2f}" if trie and copies and not name.startswith("largest") else ""
        shown = [f"{value:,.0f}" if whole else f"{value:,.3f}" for value in (trie, copies)]
        lines.append(f"{name:<22}{shown[0]:>12}{shown[1]:>12}{ratio:>9}".rstrip())
    return "\n".join(lines)
