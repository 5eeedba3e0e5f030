"""Benchmark of recommending on the CPU, in float32, one thread: beams, retrieve then rank, and plain transformers.

    OMP_NUM_THREADS=1 python benchmarks/recommend.py --output benchmarks/results

Ways to find 10 films of MovieLens 100K for a user, all in one process:

    generate      transformers' `generate` with `prefix_allowed_tokens_fn` over the same trie of titles
    beams         `Recommender.recommend` of dmpo-trl
    item_knn, popularity
                  the same with `candidates`: as many items, each scored exactly
    proven best   the same with `exact=True`: what scoring every title gives, which recall is counted against

Seconds are those of the process (CPU time): on a machine with other work the clock on the wall says little. Of them,
`outside the model` is the share that is not inside the model's forward: an upper bound of Python's own. With
`--titles` the trie of so many made-up titles is built instead, and its seconds and memory are measured.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from machine import PeakMemory, describe
from models import default_model, movielens_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dmpo_trl.data import MOVIES, Interactions, leave_one_out, read_recbole
from dmpo_trl.recommend import Candidates, Prior, Recommender, TitleTrie
from dmpo_trl.recommend.catalogue import PromptTries

K = 10
COLUMNS = ["way", "seconds per user", "of generate", "recall", "outside the model"]
TRIE_COLUMNS = ["titles", "nodes", "seconds", "peak GB"]


@dataclass
class Settings:
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    users: int = field(default=3, metadata={"help": "Users to recommend to, one at a time."})
    history: int = field(default=10, metadata={"help": "Films in a prompt."})
    beams: list[int] = field(default_factory=lambda: [20, 30, 50, 100])
    together: list[int] = field(
        default_factory=list, metadata={"help": "Users searched together, with the first of --beams."}
    )
    candidates: list[int] = field(default_factory=lambda: [100, 200])
    proven: bool = field(default=True, metadata={"help": "What recall is counted against; without it there is none."})
    generate_beams: list[int] = field(default_factory=lambda: [100], metadata={"help": "0: leave `generate` out."})
    titles: int | None = field(default=None, metadata={"help": "Only build the trie of so many titles."})
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})


@dataclass
class Case:
    """The recommender, its data, and the users' histories."""

    recommender: Recommender
    data: Interactions
    histories: list[list[str]]


def make_case(settings: Settings, model: Any, tokenizer: Any) -> Case:
    data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
    length = settings.history
    examples = leave_one_out(data, min_rating=4.0, history_length=length, min_history=length).head(settings.users)
    recommender = Recommender(model, tokenizer, data.items.select("item", "title"), MOVIES)
    return Case(recommender, data, examples["history"].to_list())


def generate(recommender: Recommender, history: list[str], num_beams: int) -> list[str]:
    """Items of transformers' own beam search, which is told by a dictionary of beginnings what may follow."""
    had = recommender.catalogue.rows(history, "history")
    prompt, trie = recommender._tries(recommender.template.prompt([recommender.catalogue.titles[row] for row in had]))
    excluded = set(recommender.catalogue.of_same_title(had))
    nodes, counts = trie.excluded_counts(excluded)
    full = set(nodes[counts == trie.count[nodes]].tolist())  # nothing below them may come out
    following: dict[tuple[int, ...], dict[int, int]] = {}

    def step(begun: tuple[int, ...]) -> dict[int, int]:
        """What may follow a beginning: tokens and their nodes."""
        if begun not in following:
            node = step(begun[:-1])[begun[-1]] if begun else 0
            children = trie.children(np.array([node]))[1].tolist()
            following[begun] = {int(trie.token[child]): child for child in children if child not in full}
        return following[begun]

    eos = recommender.tokenizer.eos_token_id

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        begun = ids[len(prompt) :].tolist()
        return [eos] if eos in begun else list(step(tuple(begun))) or [eos]

    ids = torch.tensor([prompt])
    with torch.no_grad():
        output = recommender.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=num_beams,
            num_return_sequences=K,
            prefix_allowed_tokens_fn=allowed,
            length_penalty=0.0,
            early_stopping="never",
            do_sample=False,
            max_new_tokens=trie.depth,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    found = []
    for sequence in output[:, len(prompt) :].tolist():
        begun = tuple(sequence[: sequence.index(eos) + 1])
        node = np.array([step(begun[:-1])[begun[-1]]])
        while len(below := trie.children(node)[1]):  # what a chat template writes after the end of a turn
            node = below
        rows = trie.items_at(node)[1]
        found += [recommender.catalogue.items[row] for row in rows if row not in excluded]
    if len(found) < K:
        raise RuntimeError(f"generate found {len(found)} items, {K} were asked for.")
    return found[:K]


Way = Callable[[list[list[str]]], list[list[str]]]
"""Takes the users' histories, and returns the items of each, the best first."""


def ways(settings: Settings, case: Case) -> dict[str, Way]:
    """What is compared."""
    recommender = case.recommender

    def recommend(together: int = 1, **options: Any) -> Way:
        def find(histories: list[list[str]]) -> list[list[str]]:
            parts = [histories[first : first + together] for first in range(0, len(histories), together)]
            found = [users for part in parts for users in recommender.recommend_batch(part, K, **options)]
            return [[one.item for one in items] for items in found]

        return find

    pairs = case.data.interactions.select("user", "item")
    counts = Prior.popularity(dict(pairs.group_by("item").len().iter_rows()))
    found = {"proven best": recommend(exact=True)} if settings.proven else {}
    for number in settings.generate_beams:
        if number:
            found[f"generate, {number} beams"] = lambda histories, number=number: [
                generate(recommender, history, number) for history in histories
            ]
    found |= {f"{number} beams": recommend(num_beams=number) for number in settings.beams}
    for users in settings.together:
        number = settings.beams[0]
        found[f"{number} beams, {users} users together"] = recommend(together=users, num_beams=number)
    for number in settings.candidates:
        knn = Candidates.best_by(Prior.item_knn(pairs), ties=counts, per_user=number)
        found[f"item_knn, {number} candidates"] = recommend(candidates=knn)
        popular = Candidates.best_by(counts, per_user=number)
        found[f"popularity, {number} candidates"] = recommend(candidates=popular)
    return found


def compare(settings: Settings, case: Case) -> list[dict[str, Any]]:
    """Run each way for each user; return the rows of the table."""
    inside, began = [0.0], [0.0]
    model = case.recommender.model
    hooks = [
        model.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.process_time())),
        model.register_forward_hook(lambda *_: inside.__setitem__(0, inside[0] + time.process_time() - began[0])),
    ]
    case.recommender.recommend(case.histories[0], 1, num_beams=1)  # the probe and the trie belong to a run
    case.recommender.rank(case.histories[0], case.recommender.catalogue.items[:2])
    rows, best, reference = [], [], 0.0
    for way, find in ways(settings, case).items():
        inside[0], start = 0.0, time.process_time()
        found = find(case.histories)
        seconds = time.process_time() - start
        best = best or found
        reference = reference or (seconds if way.startswith("generate") else 0.0)
        recall = np.mean([len({*own} & {*right}) / K for own, right in zip(found, best, strict=True)])
        recall = recall if settings.proven else np.nan
        values = (
            way,
            seconds / len(found),
            reference / seconds if reference else float("nan"),
            float(recall),
            1 - inside[0] / seconds,
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        print(report.table_row(rows[-1], COLUMNS), flush=True)
    for hook in hooks:
        hook.remove()
    return rows


def measure_trie(count: int, tokenizer: Any, titles: list[str]) -> dict[str, Any]:
    """Build the trie of made-up titles, two real ones put together: from texts to arrays."""
    generator = random.Random(0)
    made: dict[str, None] = {}
    while len(made) < count:
        made[f"{generator.choice(titles)[:-7]} {generator.choice(titles)}"] = None
    with PeakMemory("cpu") as memory:
        start = time.process_time()
        _, trie = PromptTries(tokenizer, list(made), MOVIES)(MOVIES.prompt([titles[0]]))
        seconds = time.process_time() - start
    assert isinstance(trie, TitleTrie)
    return dict(zip(TRIE_COLUMNS, (count, len(trie.token), seconds, memory.above_start_gb), strict=True))


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    model_folder = settings.model or default_model()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    header = describe() | {"model": Path(model_folder).name}
    if settings.titles is not None:
        data = read_recbole(movielens_folder(), title_field="movie_title", year_field="release_year")
        name, columns, rows = "recommend-trie", TRIE_COLUMNS, []
        rows.append(measure_trie(settings.titles, tokenizer, data.items["title"].to_list()))
        print("\n".join([report.head(header), "", report.table_head(columns), report.table_row(rows[0], columns)]))
    else:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
        case = make_case(settings, model, tokenizer)
        header["users"] = f"{len(case.histories)}, {settings.history} films each, {len(case.data.items)} films in all"
        print("\n".join([report.head(header), "", report.table_head(COLUMNS)]))
        name, rows = "recommend", compare(settings, case)
    if settings.output is not None:
        report.add_rows(settings.output, name, report.command("recommend", arguments), header, rows)


if __name__ == "__main__":
    main()
