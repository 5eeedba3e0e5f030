"""Benchmark of ranking on the CPU, in float32: one trie per MovieLens user, or one sequence at a time.

    OMP_NUM_THREADS=2 python benchmarks/ranking.py --output benchmarks/results

Two ways to compute the same scores of the same candidates are compared:

    separate    one forward pass per candidate: prompt and title, logits of the title's positions only
    together    `score_candidates` of dmpo-trl: every distinct prefix once, several users per forward pass

The sides take turns inside one process. A run in which their scores or their orders of the candidates differ stops.
The users are those of MovieLens 100K, with the quickstart's prompts; one of the candidates is the film that came next.
"""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from datasets import Dataset
from machine import describe
from models import default_model, movielens_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dmpo_trl.data import MOVIES, leave_one_out, ranking_dataset, read_recbole, sample_negatives
from dmpo_trl.evaluation.ranking import rank_by_log_prob, score_candidates
from dmpo_trl.evaluation.result import RankingResult
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.scoring import CompletionScores

COLUMNS = ["side", "seconds per user", "candidates per second", "ratio", "lowest", "highest"]
TOLERANCE = 2e-3  # nats per title: float32 rounds in a different order; about 30 nats is a typical log-prob


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    users: int = field(default=8, metadata={"help": "Users to rank for."})
    candidates: int = field(default=20, metadata={"help": "Films to rank for each."})
    history: int = field(default=20, metadata={"help": "Films in a prompt."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; the median is reported."})
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})


def make_users(settings: Settings) -> Dataset:
    data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
    examples = leave_one_out(data, min_rating=4.0, history_length=settings.history, min_history=settings.history).head(
        settings.users
    )
    return ranking_dataset(sample_negatives(examples, data, settings.candidates - 1, seed=0), data, MOVIES, seed=0)


@torch.no_grad()
def score_separately(model: Any, tokenizer: Any, users: Dataset) -> list[CompletionScores]:
    scored = []
    for row in users:
        prompt, options = tokenize_completions(tokenizer, row["prompt"], row["candidates"])
        logps = []
        for option in options:
            ids = torch.tensor([prompt + option])
            logits = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=len(option)).logits[0]
            logps.append(float(logits.log_softmax(-1).gather(1, ids[0, -len(option) :, None]).double().sum()))
        scored.append(CompletionScores(np.array(logps), np.array([len(option) for option in options])))
    return scored


def check_agreement(users: Dataset, separate: list[CompletionScores], together: list[CompletionScores]) -> float:
    """Return the largest difference of two scores; stop the run where it is too large or an order differs."""
    difference = max(float(np.abs(a.logps - b.logps).max()) for a, b in zip(separate, together, strict=True))
    if not difference <= TOLERANCE:
        raise SystemExit(f"The sides' scores differ by {difference:.2g} nats. Times would mean nothing.")
    for score in ("sum", "mean"):
        first, second = (
            _ranks(rank_by_log_prob(users, scored, score=score, name=score)) for scored in (separate, together)
        )
        if first != second:
            raise SystemExit(f"The sides rank differently by the {score}. Times would mean nothing.")
    return difference


def _ranks(result: RankingResult) -> list[list[int]]:
    """Return the places of all candidates, not of the relevant one alone."""
    return [np.argsort(-scores, kind="stable").tolist() for scores in result.scores]


def count_tokens(tokenizer: Any, users: Dataset) -> tuple[int, int]:
    """Return the number of tokens of all prompts, and of all candidates."""
    prompts = titles = 0
    for row in users:
        prompt, options = tokenize_completions(tokenizer, row["prompt"], row["candidates"])
        prompts += len(prompt)
        titles += sum(map(len, options))
    return prompts, titles


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if settings.model is None:
        settings.model = default_model()
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    users = make_users(settings)
    score_candidates(model, tokenizer, users.select([0]))  # the probe belongs to a run, not to a ranking

    seconds: dict[str, list[float]] = {"separate": [], "together": []}
    difference = 0.0
    for _ in range(settings.rounds):
        scored = {}
        for side, score in (("separate", score_separately), ("together", score_candidates)):
            start = time.perf_counter()
            scored[side] = score(model, tokenizer, users)
            seconds[side].append(time.perf_counter() - start)
        difference = max(difference, check_agreement(users, scored["separate"], scored["together"]))

    prompts, titles = count_tokens(tokenizer, users)
    header = describe() | {
        "model": Path(settings.model).name,
        "rounds": str(settings.rounds),
        "users": f"{len(users)}, {settings.candidates} candidates each; prompts of {prompts / len(users):.0f} tokens, "
        f"titles of {titles / len(users) / settings.candidates:.1f}",
        "agreement": "identical orders of the candidates, by sum and by mean; scores differ by at most "
        f"{difference:.1g} nats",
    }
    rows = []
    for side, times in seconds.items():
        own = statistics.median(times) / len(users)
        ratios = [a / b for a, b in zip(seconds["separate"], times, strict=True)]
        values = (side, own, settings.candidates / own, statistics.median(ratios), min(ratios), max(ratios))
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    print("\n".join([report.head(header), "", report.table_head(COLUMNS)]))
    for row in rows:
        print(report.table_row(row, COLUMNS))
    if settings.output is not None:
        command = report.command("ranking", arguments)
        report.add_rows(settings.output, "ranking", command, header, rows)


if __name__ == "__main__":
    main()
