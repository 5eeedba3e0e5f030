"""One DMPO training step on the CPU, in float32: reference forward, policy forward, backward.

    OMP_NUM_THREADS=1 python benchmarks/step.py --negatives 1 3 7 15

Compares four ways to get the same loss and the same gradients:

    full logits   N+1 copies of the prompt, logits and log-softmax of every position (as in S-DPO's public trainer)
    trl fused     N+1 copies through TRL's fused head, as `DPOTrainer` computes a pair
    copies        ours, N+1 copies, scored positions only
    trie          ours, every distinct prefix once

The sides take turns inside one process; a run in which they disagree stops. By default a batch is one MovieLens 100K
example. `--rows` takes the DMPO authors' pairs instead, batches of ten rows in the file's order.
"""

import copy
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
import trl
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.contract import tokenize_row
from dmpo_trl.data import MOVIELENS_100K, MOVIES, leave_one_out, preference_dataset, read_recbole, sample_negatives
from dmpo_trl.losses import ScoredBatch, preference_loss
from dmpo_trl.probe import prepare_for_scoring

ROOT = Path(__file__).parents[1]
PROMPT_LENGTH = 270  # tokens; ten MovieLens titles and the words around them take about half of it
ROWS_A_BATCH = 10
MAX_LOSS_DIFFERENCE, MAX_NORM_DIFFERENCE = 1e-4, 1e-3  # absolute, relative

Batch = dict[str, torch.Tensor]
Examples = list[dict[str, Any]]  # prompt_ids, chosen_ids, rejected_ids: the batch as a collator gets it


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    tiny: bool = field(default=False, metadata={"help": "A tiny random model and random tokens, to try the script."})
    negatives: list[int] = field(default_factory=lambda: [1, 3, 7, 15])
    rows: Path | None = field(default=None, metadata={"help": "JSON file of the DMPO authors' pairs, to be used."})
    batches: int = field(default=3, metadata={"help": "Batches of --rows to take."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; the median is reported."})
    lora: bool = field(default=False, metadata={"help": "LoRA on all linear layers. Default: all parameters."})
    memory: bool = field(default=False, metadata={"help": "Peak memory, each side in a fresh process; no timing."})
    output: Path | None = field(default=None, metadata={"help": "Folder for step.csv."})


@dataclass
class Outcome:
    """What one side did with one case; `seconds` and `cpu_seconds` hold one value a round."""

    loss: float
    gradient_norm: float
    tokens: int
    positions: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_gb: float | None = None


@dataclass
class Side:
    """Collating a batch, and the log-probs of its completions, (C,), under a model."""

    collate: Callable[[Examples], Batch]
    score: Callable[[Any, Batch], torch.Tensor]
    shares_prefixes: bool = False


def collate_copies(examples: Examples) -> Batch:
    """Prompt and completion, once for every completion, padded on the right; labels of prompt and padding are -100."""
    sequences = [
        (example["prompt_ids"], completion)
        for example in examples
        for completion in [example["chosen_ids"], *example["rejected_ids"]]
    ]
    length = max(len(prompt) + len(completion) for prompt, completion in sequences)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (length - len(values))

    return {
        "input_ids": torch.tensor([padded(p + c, 0) for p, c in sequences]),
        "attention_mask": torch.tensor([padded([1] * len(p + c), 0) for p, c in sequences]),
        "labels": torch.tensor([padded([-100] * len(p) + c, -100) for p, c in sequences]),
    }


def score_with_full_logits(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    logps = logits[:, :-1].log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (logps * (targets != -100)).sum(dim=-1)


def score_with_trl(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch, fused_lm_head=True, use_cache=False).log_probs.sum(dim=-1)


def score_with_ours(model: Any, batch: Batch) -> torch.Tensor:
    inputs = {k: v for k, v in batch.items() if k not in ("num_rejected", "token_pairs", "token_completions")}
    token_logps = model(**inputs, use_cache=False).log_probs[batch["token_pairs"]]
    completions = int((batch["num_rejected"] + 1).sum())
    return token_logps.new_zeros(completions).index_add(0, batch["token_completions"], token_logps)


def make_sides(hidden_size: int) -> dict[str, Side]:
    """The sides by name; the first is what the others are compared with."""

    def collator(prefix_sharing: bool) -> DataCollatorForMultiPreference:
        # The balance is the trainer's
        return DataCollatorForMultiPreference(0, prefix_sharing=prefix_sharing, attention_balance=6.0 * hidden_size)

    return {
        "full logits": Side(collate_copies, score_with_full_logits),
        "trl fused": Side(collate_copies, score_with_trl),
        "copies": Side(collator(False), score_with_ours),
        "trie": Side(collator(True), score_with_ours, shares_prefixes=True),
    }


def load_models(settings: Settings) -> tuple[Any, Any]:
    """Policy and reference, float32. With the policy as its own reference any log-probs would give the loss log 2, so
    the reference's weights are disturbed.
    """
    torch.manual_seed(0)
    if settings.tiny:
        config = LlamaConfig(
            vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )
        policy = LlamaForCausalLM(config)
    else:
        policy = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    reference = copy.deepcopy(policy).requires_grad_(False)
    for weight in reference.parameters():
        weight.mul_(1 + 0.01 * torch.randn_like(weight))
    for model in (policy, reference):
        add_fused_lm_head(model)  # before ours: each head passes on the calls that are not for it
    if settings.lora:
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        policy = get_peft_model(policy, lora)
    for model in (policy, reference):
        prepare_for_scoring(model, base_model(model), True)
    return policy.train(), reference.eval()


def base_model(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def dmpo_loss(logps: torch.Tensor, ref_logps: torch.Tensor, num_rejected: list[int]) -> torch.Tensor:
    """Mean DMPO loss of a batch whose completions stand example by example, the chosen one first."""
    counts = torch.tensor(num_rejected)
    is_chosen = torch.zeros(len(logps), dtype=torch.bool)
    is_chosen[(counts + 1).cumsum(0) - (counts + 1)] = True
    batch = ScoredBatch(
        chosen_logps=logps[is_chosen],
        rejected_logps=logps[~is_chosen],
        ref_chosen_logps=ref_logps[is_chosen],
        ref_rejected_logps=ref_logps[~is_chosen],
        num_rejected=counts,
        chosen_lengths=torch.ones(len(counts)),  # DMPO looks at no lengths
        rejected_lengths=torch.ones(int(counts.sum())),
        chosen_nll=torch.zeros(()),
    )
    return preference_loss("dmpo", batch, SimpleNamespace(beta=0.1)).mean()


def run_step(side: Side, policy: Any, reference: Any, case: list[Examples]) -> Outcome:
    """One step with the case's batches, whose gradients add up."""
    for model in (policy, reference):  # only the trie needs the attention that takes its mask
        base_model(model).set_attn_implementation("trie_sdpa" if side.shares_prefixes else "sdpa")
    policy.zero_grad(set_to_none=True)
    start, cpu_start = time.perf_counter(), time.process_time()
    losses, tokens, positions = [], 0, 0
    for examples in case:
        batch = side.collate(examples)
        with torch.no_grad():
            ref_logps = side.score(reference, batch)
        loss = dmpo_loss(side.score(policy, batch), ref_logps, [len(example["rejected_ids"]) for example in examples])
        loss.backward()
        losses.append(loss.item())
        tokens += int(batch["attention_mask"].sum())
        positions += batch["input_ids"].numel()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    return Outcome(statistics.mean(losses), norm, tokens, positions, [seconds], [cpu_seconds])


def time_sides(settings: Settings, models: tuple[Any, Any], case: list[Examples]) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for _ in range(settings.rounds):
        for name, side in make_sides(models[0].config.hidden_size).items():
            outcome = run_step(side, *models, case)
            print(f"{name}: {outcome.seconds[0]:.2f} s, {outcome.cpu_seconds[0]:.2f} s CPU", file=sys.stderr)
            kept = outcomes.setdefault(name, outcome)
            if kept is not outcome:
                kept.seconds += outcome.seconds
                kept.cpu_seconds += outcome.cpu_seconds
        check_agreement(outcomes)
    return outcomes


def measure_memory(settings: Settings, name: str, case: list[Examples]) -> Outcome:
    """A step of one side, with its peak resident memory above that of the loaded models. Linux only."""
    models = load_models(settings)
    loaded = _memory_gb("VmRSS")
    side = make_sides(models[0].config.hidden_size)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    outcome = run_step(side, *models, case)
    outcome.peak_gb = _memory_gb("VmHWM") - loaded
    return outcome


def _memory_gb(entry: str) -> float:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e9


def memory_of_sides(settings: Settings, case: list[Examples]) -> dict[str, Outcome]:
    outcomes = {}
    for name in make_sides(1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            outcomes[name] = fresh_process.submit(measure_memory, settings, name, case).result()
    check_agreement(outcomes)
    return outcomes


def check_agreement(outcomes: dict[str, Outcome]) -> None:
    """Stop if a side computed something else than the first one."""
    (first, expected), *others = outcomes.items()
    for name, outcome in others:
        loss = abs(outcome.loss - expected.loss)
        norm = abs(outcome.gradient_norm / expected.gradient_norm - 1)
        if not (loss <= MAX_LOSS_DIFFERENCE and norm <= MAX_NORM_DIFFERENCE):
            raise SystemExit(
                f"'{name}' disagrees with '{first}': loss {outcome.loss:.7f} against {expected.loss:.7f}, gradient "
                f"norm {outcome.gradient_norm:.7f} against {expected.gradient_norm:.7f}. Times would mean nothing."
            )


# Cases


def make_cases(settings: Settings) -> dict[str, list[Examples]]:
    """Batches to step through, by a label."""
    if settings.rows is not None:
        rows = json.loads(settings.rows.read_text())[: settings.batches * ROWS_A_BATCH]
        examples = [
            {"prompt": row["instruction"] + row["input"], "chosen": row["output"][0], "rejected": row["output"][1:]}
            for row in rows
        ]
        ids = [tokenize(settings, example) for example in examples]
        return {settings.rows.name: [ids[i : i + ROWS_A_BATCH] for i in range(0, len(ids), ROWS_A_BATCH)]}
    most = max(settings.negatives)
    if settings.tiny:
        prompt = "x" * 40
        example = {"prompt": prompt, "chosen": "abcde", "rejected": [f"ab{i:03}" for i in range(most)]}
    else:
        example = find_example(settings, most)
    ids = tokenize(settings, example)
    return {f"N={n}": [[ids | {"rejected_ids": ids["rejected_ids"][:n]}]] for n in settings.negatives}


def find_example(settings: Settings, negatives: int) -> dict[str, Any]:
    """The MovieLens example, with the quickstart's words, whose prompt is closest to `PROMPT_LENGTH` tokens."""
    data = read_recbole(MOVIELENS_100K.fetch()[0].parent, title_field="movie_title")
    users = leave_one_out(data, min_rating=4.0, history_length=25, min_history=25)
    examples = preference_dataset(sample_negatives(users, data, negatives, seed=0), data, MOVIES).to_list()
    lengths = [len(tokenize(settings, example)["prompt_ids"]) for example in examples]
    return examples[min(range(len(examples)), key=lambda i: abs(lengths[i] - PROMPT_LENGTH))]


load_tokenizer = cache(AutoTokenizer.from_pretrained)


def tokenize(settings: Settings, example: dict[str, Any]) -> dict[str, Any]:
    if settings.tiny:  # bytes are the tokens
        rejected = [list(text.encode()) for text in example["rejected"]]
        prompt, chosen = (list(example[column].encode()) for column in ("prompt", "chosen"))
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    tokenizer = load_tokenizer(settings.model)
    return tokenize_row(
        example,
        0,
        dataset_name="benchmark",
        processing_class=tokenizer,
        eos_token=tokenizer.eos_token,
        max_length=None,
        truncation_mode="keep_start",
    )


# Report

COLUMNS = (
    "case", "side", "tokens", "with padding", "fewer tokens", "seconds", "CPU seconds", "faster", "faster (CPU)",
    "peak GB",
)  # fmt: skip


def rows_of(case: str, outcomes: dict[str, Outcome]) -> list[dict[str, str]]:
    """Ratios are those of the first side to each."""
    first = next(iter(outcomes.values()))
    timed = first.peak_gb is None
    rows = []
    for name, outcome in outcomes.items():
        seconds, cpu_seconds = statistics.median(outcome.seconds), statistics.median(outcome.cpu_seconds)
        values = [case, name, outcome.tokens, outcome.positions, f"{first.tokens / outcome.tokens:.2f}x"]
        if timed:
            values += [f"{seconds:.2f}", f"{cpu_seconds:.2f}", f"{statistics.median(first.seconds) / seconds:.2f}x"]
            values += [f"{statistics.median(first.cpu_seconds) / cpu_seconds:.2f}x", ""]
        else:
            values += ["", "", "", "", f"{outcome.peak_gb:.2f}"]
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def describe_machine() -> dict[str, str]:
    cpu = next(
        (
            x.split(":")[1].strip()
            for x in Path("/proc/cpuinfo").read_text().splitlines()
            if x.startswith("model name")
        ),
        platform.processor(),
    )
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "CPU": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
        "commit": git.stdout.strip() or "unknown",
    }


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if settings.model is None and not settings.tiny:
        sys.path.insert(0, str(ROOT / "examples"))
        from quickstart import model_folder

        settings.model = model_folder(None)
    cases = make_cases(settings)
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    print(f"- model: {'tiny' if settings.tiny else settings.model}, {'LoRA' if settings.lora else 'all parameters'}")
    print(f"- rounds: {settings.rounds}\n\n| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    models = None if settings.memory else load_models(settings)
    rows = []
    for label, case in cases.items():
        outcomes = memory_of_sides(settings, case) if models is None else time_sides(settings, models, case)
        for row in rows_of(label, outcomes):
            rows.append(row)
            print("| " + " | ".join(row.values()) + " |", flush=True)
    if settings.output is not None:
        settings.output.mkdir(parents=True, exist_ok=True)
        with (settings.output / "step.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS + tuple(describe_machine()))
            writer.writeheader()
            writer.writerows(row | describe_machine() for row in rows)


if __name__ == "__main__":
    main()
