"""One DMPO training step on the CPU, in float32: reference forward, policy forward, backward.

    OMP_NUM_THREADS=1 python benchmarks/step.py --negatives 1 3 7 15

Compares four ways to get the same loss and the same gradients:

    full logits   N+1 copies of the prompt, logits and log-softmax of every position (as in S-DPO's public trainer)
    trl fused     N+1 copies through TRL's fused head, as `DPOTrainer` computes a pair
    copies        ours, N+1 copies, scored positions only
    trie          ours, every distinct prefix once

The sides take turns inside one process; a run in which they disagree stops. By default a batch is one MovieLens 100K
example. `--rows` takes the DMPO authors' pairs instead, batches of ten rows in the file's order. Copies with full
logits take about 2.3 GB for every thousand tokens of a batch, all copies counted.
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
PROMPT_LENGTH, TITLE_LENGTH = 270, 10  # tokens; twenty films that a MovieLens user liked
BASELINE = "full logits"
MAX_LOSS_DIFFERENCE, MAX_NORM_DIFFERENCE = 1e-4, 1e-3  # absolute, relative

Batch = dict[str, torch.Tensor]
Examples = list[dict[str, Any]]  # prompt_ids, chosen_ids, rejected_ids: the batch as a collator gets it


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    tiny: bool = field(default=False, metadata={"help": "A tiny random model and random tokens, to try the script."})
    negatives: list[int] = field(default_factory=lambda: [1, 3, 7, 15])
    rows: Path | None = field(default=None, metadata={"help": "JSON file of the DMPO authors' pairs, to be used."})
    batch_rows: int = field(default=10, metadata={"help": "Rows of --rows a batch."})
    batches: int = field(default=3, metadata={"help": "Batches of --rows to take."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; the median is reported."})
    lora: bool = field(default=False, metadata={"help": "LoRA on all linear layers. Default: all parameters."})
    memory: bool = field(default=False, metadata={"help": "Peak memory as well: one step a side, in a fresh process."})
    output: Path | None = field(default=None, metadata={"help": "Folder for step.csv."})


@dataclass
class Outcome:
    """What one side did in one step; `padded` counts padding too, `peak_gb` is above the loaded models."""

    loss: float
    gradient_norm: float
    tokens: int
    padded: int
    seconds: float
    cpu_seconds: float
    peak_gb: float = 0.0


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
    notes = ("num_rejected", "is_chosen", "token_pairs", "token_completions")
    inputs = {k: v for k, v in batch.items() if k not in notes}
    token_logps = model(**inputs, use_cache=False).log_probs[batch["token_pairs"]]
    return token_logps.new_zeros(len(batch["is_chosen"])).index_add(0, batch["token_completions"], token_logps)


def make_sides(hidden_size: int) -> dict[str, Side]:
    """The sides by name, `BASELINE` first."""

    def collator(prefix_sharing: bool) -> DataCollatorForMultiPreference:
        # The balance is the trainer's
        return DataCollatorForMultiPreference(0, prefix_sharing=prefix_sharing, attention_balance=6.0 * hidden_size)

    return {
        BASELINE: Side(collate_copies, score_with_full_logits),
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


def dmpo_loss(logps: torch.Tensor, ref_logps: torch.Tensor, examples: int) -> torch.Tensor:
    """Mean DMPO loss. Completions stand example by example, the chosen one first, as many for each example."""
    logps, ref_logps = logps.view(examples, -1), ref_logps.view(examples, -1)  # (B, N+1)
    rejected = logps[:, 1:].flatten()
    batch = ScoredBatch(
        chosen_logps=logps[:, 0],
        rejected_logps=rejected,
        ref_chosen_logps=ref_logps[:, 0],
        ref_rejected_logps=ref_logps[:, 1:].flatten(),
        num_rejected=torch.full((examples,), logps.shape[1] - 1),
        chosen_lengths=torch.ones(examples),  # DMPO looks at neither lengths
        rejected_lengths=torch.ones(len(rejected)),
        chosen_nll=torch.zeros(()),  # nor the likelihood of the chosen completion
    )
    return preference_loss("dmpo", batch, SimpleNamespace(beta=0.1)).mean()


def run_step(side: Side, policy: Any, reference: Any, case: list[Examples]) -> Outcome:
    """One step with the case's batches, whose gradients add up."""
    for model in (policy, reference):  # only the trie needs the attention that takes its mask
        base_model(model).set_attn_implementation("trie_sdpa" if side.shares_prefixes else "sdpa")
    policy.zero_grad(set_to_none=True)
    start, cpu_start = time.perf_counter(), time.process_time()
    losses, tokens, padded = [], 0, 0
    for examples in case:
        batch = side.collate(examples)
        with torch.no_grad():
            ref_logps = side.score(reference, batch)
        loss = dmpo_loss(side.score(policy, batch), ref_logps, len(examples))
        loss.backward()
        losses.append(loss.item())
        tokens += int(batch["attention_mask"].sum())
        padded += batch["input_ids"].numel()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    norm = torch.nn.utils.get_total_norm(p.grad for p in policy.parameters() if p.grad is not None)
    return Outcome(statistics.mean(losses), float(norm), tokens, padded, seconds, cpu_seconds)


def time_sides(settings: Settings, models: tuple[Any, Any], case: list[Examples]) -> list[dict[str, Outcome]]:
    """The outcomes of the sides, a dictionary a round."""
    sides = make_sides(models[0].config.hidden_size)
    rounds = []
    for _ in range(settings.rounds):
        rounds.append({name: run_step(side, *models, case) for name, side in sides.items()})
        check_agreement(rounds[-1])
    return rounds


def memory_of_sides(settings: Settings, case: list[Examples]) -> list[dict[str, Outcome]]:
    outcomes = {}
    for name in make_sides(1):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            outcomes[name] = fresh_process.submit(measure_memory, settings, name, case).result()
    check_agreement(outcomes)
    return [outcomes]


def measure_memory(settings: Settings, name: str, case: list[Examples]) -> Outcome:
    """A step of one side with its peak resident memory. Linux only."""
    models = load_models(settings)
    loaded = _memory_gb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    outcome = run_step(make_sides(models[0].config.hidden_size)[name], *models, case)
    outcome.peak_gb = _memory_gb("VmHWM") - loaded
    return outcome


def _memory_gb(entry: str) -> float:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e9


def check_agreement(outcomes: dict[str, Outcome]) -> None:
    """Stop if a side computed something else than the baseline."""
    expected = outcomes[BASELINE]
    for name, outcome in outcomes.items():
        loss = abs(outcome.loss - expected.loss)
        norm = abs(outcome.gradient_norm / expected.gradient_norm - 1)
        if not (loss <= MAX_LOSS_DIFFERENCE and norm <= MAX_NORM_DIFFERENCE):
            raise SystemExit(
                f"'{name}' disagrees with '{BASELINE}': loss {outcome.loss:.7f} against {expected.loss:.7f}, gradient "
                f"norm {outcome.gradient_norm:.7f} against {expected.gradient_norm:.7f}. Times would mean nothing."
            )


# Cases


def make_cases(settings: Settings) -> dict[str, list[Examples]]:
    """Batches to step through, by a label."""
    if settings.rows is not None:
        rows = json.loads(settings.rows.read_text())[: settings.batches * settings.batch_rows]
        examples = [
            {"prompt": row["instruction"] + row["input"], "chosen": row["output"][0], "rejected": row["output"][1:]}
            for row in rows
        ]
        ids = [tokenize(settings, example) for example in examples]
        return {
            settings.rows.name: [ids[i : i + settings.batch_rows] for i in range(0, len(ids), settings.batch_rows)]
        }
    most = max(settings.negatives)
    if settings.tiny:
        ids = tokenize(
            settings, {"prompt": "x" * 40, "chosen": "abcde", "rejected": [f"ab{i:03}" for i in range(most)]}
        )
    else:
        ids = tokenize(settings, find_example(settings, most))
    return {f"N={n}": [[ids | {"rejected_ids": ids["rejected_ids"][:n]}]] for n in settings.negatives}


def find_example(settings: Settings, negatives: int) -> dict[str, Any]:
    """The MovieLens example, in the quickstart's words, closest to `PROMPT_LENGTH` and `TITLE_LENGTH`."""
    data = read_recbole(MOVIELENS_100K.fetch()[0].parent, title_field="movie_title", year_field="release_year")
    users = leave_one_out(data, min_rating=4.0, history_length=20, min_history=20)
    examples = preference_dataset(sample_negatives(users, data, negatives, seed=0), data, MOVIES).to_list()

    def distance(example: dict[str, Any]) -> float:
        ids = tokenize(settings, example)
        title = statistics.mean(map(len, [ids["chosen_ids"], *ids["rejected_ids"]]))
        return abs(len(ids["prompt_ids"]) - PROMPT_LENGTH) + abs(title - TITLE_LENGTH)

    return min(examples, key=distance)


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


def report(case: str, rounds: list[dict[str, Outcome]], measures: list[str]) -> list[dict[str, str]]:
    """A row a side: the median of each measure, and how many times the first side's it goes into."""
    rows = []
    for side in rounds[0]:
        row = {"case": case, "side": side}
        for measure in measures:
            first, own = (statistics.median(getattr(r[name], measure) for r in rounds) for name in (BASELINE, side))
            row[measure] = f"{own:.2f}" if isinstance(own, float) and own % 1 else f"{own:.0f}"
            row[f"{measure} ratio"] = f"{first / own:.2f}" if own else ""
        rows.append(row)
    return rows


def describe(settings: Settings) -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "cpu": f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "training": "LoRA" if settings.lora else "all parameters",
        "rounds": "1" if settings.memory else str(settings.rounds),
    }


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if settings.model is None and not settings.tiny:
        sys.path.insert(0, str(ROOT / "examples"))
        from quickstart import model_folder

        settings.model = model_folder(None)
    header = describe(settings)
    print("\n".join(f"- {name}: {value}" for name, value in header.items()), end="\n\n")
    models = None if settings.memory else load_models(settings)
    measures = ["tokens", "padded", "seconds", "cpu_seconds", *(["peak_gb"] if settings.memory else [])]
    columns = ["case", "side", *(column for measure in measures for column in (measure, f"{measure} ratio"))]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for label, case in make_cases(settings).items():
        rounds = memory_of_sides(settings, case) if models is None else time_sides(settings, models, case)
        for row in report(label, rounds, measures):
            rows.append(row | header)
            print(f"| {' | '.join(row.values())} |", flush=True)
    if settings.output is not None:
        settings.output.mkdir(parents=True, exist_ok=True)
        with (settings.output / "step.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
