"""`dmpo-trl recommend`: items of the whole catalogue, for one history or for many users."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..recommend import UserHistory
from ..recommend.recommendation import as_json
from ..writing import real_path
from ._users import Users, users_of_file, users_of_split
from .options import ModelArguments, Parser, check_at_least

if TYPE_CHECKING:
    from ..data.prompts import PromptTemplate
    from ..recommend import Recommendation, Recommender
    from ..recommend.catalogue import Catalogue

_CANDIDATES = 200  # per user, where no number is asked for


@dataclass
class RecommendArguments:
    """Users to recommend to, and how items are searched for."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder that `dmpo-trl prepare` wrote: catalogue and template. Default: those that "
            "`Recommender.save_pretrained` or `dmpo-trl train` left beside the model."
        },
    )
    history: list[str] | None = field(
        default=None, metadata={"help": "One user's items from old to new, by identifier or exact title."}
    )
    users: str | None = field(
        default=None,
        metadata={
            "help": 'File of users, one JSON object per line: {"user": "7", "history": ["1", "50"]}. The items of '
            'a list "seen", where there is one, are not recommended either.'
        },
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "Recommend to the users of this split of --data. Nothing they had is recommended.",
            "choices": ["validation", "test"],
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Parquet file to write for many users: columns user, rank, item, title, score. A run that was "
            "interrupted goes on where it was: its parts are in the folder OUTPUT.parts until all are there."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace --output where it exists."})
    json: bool = field(
        default=False,
        metadata={
            "help": "Print one JSON object per user, each on a line. With --users and --split it takes the place of "
            "--output."
        },
    )
    k: int = field(default=10, metadata={"help": "Number of items per user."})
    num_beams: int = field(
        default=100, metadata={"help": "Number of title prefixes that the search follows at a time."}
    )
    exact: bool = field(
        default=False,
        metadata={"help": "Search on until the outcome is proven to be the best of the whole catalogue."},
    )
    candidates: str | None = field(
        default=None,
        metadata={
            "help": "Score only these items instead of searching the whole catalogue, each of them exactly: those "
            "that popularity, popularity_shown, item_knn or item_knn_shown (counted in --data) find for a user, or "
            "those of a Parquet file of user and item, and score where it orders them. Nothing that the user had is "
            "scored."
        },
    )
    candidates_per_user: int = field(default=_CANDIDATES, metadata={"help": "How many of --candidates to score."})
    prior: str | None = field(
        default=None,
        metadata={
            "help": "Order by the model and by what counts know: popularity, popularity_shown, item_knn or "
            "item_knn_shown (as in `evaluate`, counted in --data), a Parquet file of user, item and score, or "
            "no_history, how unlikely the model finds a title without any history. The model's score is then the sum "
            "of log-probs, for which `evaluate --fuse` chooses the weight. With --exact over the whole catalogue, "
            "else over the best items by the model, as many as there are beams."
        },
    )
    prior_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of --prior. `dmpo-trl evaluate --fuse NAME` finds it: of `sum + 2 item_knn` it is 2."
        },
    )
    batch_size: int = field(default=8, metadata={"help": "Users searched together."})

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, k=1, num_beams=1, batch_size=1, prior_weight=0, candidates_per_user=1)
        if (self.prior is None) != (self.prior_weight is None):
            raise ValueError(
                "--prior and --prior_weight belong together. `dmpo-trl evaluate --fuse NAME` finds the weight."
            )
        if self.candidates is not None and self.exact:
            raise ValueError("--exact proves what is best of the whole catalogue: leave out it or --candidates.")
        if self.candidates is None and self.candidates_per_user != _CANDIDATES:
            raise ValueError("--candidates_per_user says how many of --candidates are scored: give those too.")
        if self.candidates is not None and self.k > self.candidates_per_user:
            raise ValueError(
                f"--k {self.k} needs at least as many --candidates_per_user, not {self.candidates_per_user}."
            )


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        'dmpo-trl recommend --model outputs/dmpo --data data --history "Toy Story (1995)" 50\n'
        "dmpo-trl recommend --model outputs/dmpo --data data --users users.jsonl --output recommendations.parquet\n"
        "dmpo-trl recommend --model outputs/dmpo --data data --split test --candidates item_knn --json\n"
        "accelerate launch --num_processes 2 -m dmpo_trl.cli recommend --model outputs/dmpo --data data --split test "
        "--output recommendations.parquet"
    )
    return Parser("recommend", ModelArguments, RecommendArguments, example=example)


def run(arguments: list[str]) -> None:
    """Recommend as the arguments say: print the items of one user, write those of many to a file.

    Under `accelerate launch` or `torchrun` the users are divided among the processes.
    """
    from ..evaluation.fusion import check_weight
    from ..evaluation.no_history import check_lists_nothing
    from ..recommend._saved import find_parts
    from ..recommend.catalogue import Catalogue
    from ..training.distributed import begin_process_group
    from ._loading import load_recommender
    from ._prior import candidates_of, prior_of
    from .evaluate import NO_HISTORY

    model, options = make_parser().parse(arguments)
    state = begin_process_group()

    @functools.cache
    def catalogue_and_template() -> tuple[Catalogue, PromptTemplate]:
        loading = model.from_pretrained()
        items, template, _ = find_parts(model.model, loading, data=options.data, items=None, template=None)
        return Catalogue(items), template

    # What can be wrong with users, prior and candidates is found before the model is loaded
    users = _users(options, lambda: catalogue_and_template()[0], is_main_process=state.is_main_process)
    of_model = options.prior == NO_HISTORY
    prior = None if options.prior is None or of_model else prior_of(options.prior, options.data)
    candidates = None
    if options.candidates is not None:
        candidates = candidates_of(
            options.candidates, options.data, lambda: catalogue_and_template()[0].frame, options.candidates_per_user
        )
    catalogue, template = catalogue_and_template()
    if of_model:
        check_lists_nothing(template)
    if options.prior is not None:
        check_weight(options.prior_weight)
    if options.history is not None:
        catalogue.rows(options.history, "--history")
    for known in (prior, candidates):
        if known is not None:
            for user in [None] if users is None else (one.user for one in users):
                known.check(user)

    parts: dict[str, Any] = {"items": catalogue.frame, "template": template}
    if options.prior is not None:  # whatever score is saved with the model: the weight was chosen for the sum
        parts["score"] = "sum"
    if prior is not None:
        parts |= {"prior": prior, "prior_weight": options.prior_weight}
    recommender = load_recommender(model.model, model.from_pretrained(), **parts)
    if of_model:
        recommender = _with_own_prior(recommender, options.prior_weight)
    search: dict[str, Any] = {
        "k": options.k,
        "num_beams": options.num_beams,
        "exact": options.exact,
        "candidates": candidates,
    }
    if users is None:
        found = recommender.recommend(options.history, **search)
        if state.is_main_process:
            _print_items(recommender, options.history, found, as_line=options.json)
        return
    if options.json:
        _print_json(recommender, users, options.batch_size, search)
        return
    count = recommender.recommend_all(
        users, options.output, **search, batch_size=options.batch_size, overwrite=options.overwrite
    )
    if state.is_main_process:
        print(f"Recommendations for {count:,} users are in {options.output}.")


def _users(options: RecommendArguments, catalogue: Callable[[], Catalogue], *, is_main_process: bool) -> Users | None:
    """Return the users to recommend to, None where `--history` is that of one."""
    from ..recommend.batch import check_output

    if [options.history, options.users, options.split].count(None) != 2:
        raise ValueError(
            "Give one of --history, for one user, --users, for a file of users, and --split, for the users of --data."
        )
    if options.split is not None and options.data is None:
        raise ValueError("--split needs --data, the prepared folder whose users it means.")
    if options.users is None and options.split is None:
        if options.output is not None or options.overwrite:
            raise ValueError(
                "--output is for many users: what is found for the one of --history is printed, with --json as JSON."
            )
        return None
    if (options.output is None) != options.json:
        raise ValueError("Many users need one of --output, the Parquet file to write, and --json, to print them.")
    if options.output is not None and is_main_process:
        check_output(options.output, overwrite=options.overwrite)
    if options.users is not None:
        if options.output is not None and real_path(options.users) == real_path(options.output):
            raise ValueError(f"--output {options.output} is the file of --users; name another.")
        return users_of_file(options.users, catalogue)
    assert options.data is not None
    assert options.split is not None
    return users_of_split(options.data, options.split)


def _with_own_prior(recommender: Recommender, weight: float) -> Recommender:
    """Return the recommender with the prior of what its model says without a history."""
    from ..recommend import Recommender, prior_without_history

    return Recommender(
        recommender.model,
        recommender.tokenizer,
        recommender.catalogue.frame,
        recommender.template,
        score=recommender.score,
        prior=prior_without_history(recommender),
        prior_weight=weight,
    )


def _about(recommender: Recommender) -> dict[str, Any]:
    """Return what a line of JSON says of the prior."""
    fusion = recommender.fusion
    return {} if fusion is None else {"prior": fusion.prior.name, "prior_weight": fusion.weight}


def _print_items(
    recommender: Recommender, history: Sequence[str], found: Sequence[Recommendation], *, as_line: bool
) -> None:
    """Print the items of one user: a line of JSON, or a line for each item."""
    if as_line:
        print(as_json({"history": history, **_about(recommender)}, found, recommender.score))
        return
    kind = "mean log-prob per token" if recommender.score == "mean" else "log-prob"
    for rank, one in enumerate(found, start=1):
        scores = f"{kind} {one.score:.2f}"
        if recommender.fusion is not None:
            name = recommender.fusion.prior.name
            scores = f"{one.score:.2f} of {kind} {one.model_score:.2f} and {name} {one.prior_score:.4g}"
        print(f"{rank:>3}. {one.title}  ({one.item}, {scores})")


def _print_json(
    recommender: Recommender,
    users: Iterable[UserHistory],
    batch_size: int,
    search: Mapping[str, Any],
) -> None:
    """Print a line for each user as soon as their batch is done."""
    from accelerate import PartialState

    from ..work import over_processes

    waiting, state = iter(users), PartialState()
    while batch := list(islice(waiting, batch_size * state.num_processes)):

        def find(own: Sequence[int], batch: list[UserHistory] = batch) -> list[list[Recommendation]]:
            return recommender.recommend_batch(
                [batch[place].history for place in own],
                exclude=[batch[place].seen for place in own],
                users=[batch[place].user for place in own],
                **search,
            )

        found = over_processes(find, range(len(batch)), recommender.model)
        if state.is_main_process:
            for user, items in zip(batch, found, strict=True):
                print(as_json({"user": user.user, **_about(recommender)}, items, recommender.score), flush=True)
