"""`dmpo-trl evaluate`: ranking of held-out users by a model and by the baselines that it has to beat."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..writing import check_file, new_file, real_path
from ._evaluation_folder import check_output, keep_parts, write_evaluation
from ._splits import choose_split
from ._train_options import check_page_name
from .options import ModelArguments, Parser, check_at_least

if TYPE_CHECKING:
    from datasets import Dataset

    from ..evaluation import ResultParts

COUNTS = ("popularity", "popularity_shown", "item_knn", "item_knn_shown")
NO_HISTORY = "no_history"
RESERVED = (*COUNTS, NO_HISTORY, "random", "model", "sum", "mean", "baseline-sum", "baseline-mean")


@dataclass
class EvaluateArguments:
    """What to evaluate on, and how."""

    data: str = field(metadata={"help": "Folder that `dmpo-trl prepare` wrote."})
    split: str = field(default="test", metadata={"help": "Users to rank.", "choices": ["validation", "test"]})
    users: int | None = field(
        default=None, metadata={"help": "Rank only this many of them, the first ones. Default: all."}
    )
    baseline: str | None = field(
        default=None,
        metadata={"help": "Another model, for instance the SFT stage, to compare with on the same users, paired."},
    )
    whole_catalogue: bool = field(
        default=False,
        metadata={"help": "Rank all items that the user has not had, instead of the sampled candidates."},
    )
    catalogue_users: int | None = field(
        default=None,
        metadata={
            "help": "Also rank this many users, the first ones, among all items that they have not had, in a table of "
            "its own. Every title is scored: with 1,700 titles two to three minutes per user on one CPU core. "
            "Default: none."
        },
    )
    scores: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other recommenders, as NAME=FILE: Parquet files of user, item and score (of RecBole, RecTools, "
            "LensKit, a script), with the identifiers of the raw data."
        },
    )
    fuse: str | None = field(
        default=None,
        metadata={
            "help": "Also rank by the model and one other ranker together: item_knn, item_knn_shown, popularity, "
            "popularity_shown, a NAME of --scores or no_history, how unlikely the model finds a title without any "
            "history. Its weight is the best one on the validation users."
        },
    )
    generate: bool = field(
        default=False, metadata={"help": "Also let the model generate freely, and count how much of it is an item."}
    )
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "Any of hr@k, recall@k, ndcg@k, mrr@k, mrr, auc, pooled_auc, with any number for k. Default: "
            "hr@1, hr@5, hr@10, ndcg@5, ndcg@10, mrr and auc, as far as there are more than k candidates."
        },
    )
    top_k: int = field(
        default=5, metadata={"help": "Length of a list of recommendations, for coverage and popularity bias."}
    )
    tokens_per_batch: int = field(
        default=4096, metadata={"help": "Most tokens in one forward pass; lower it when memory runs out."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the table (table.md), its figures (metrics.json, metrics.csv) and every user's scores "
            "(one Parquet file per ranker). Default: the table is printed only. A run that was interrupted goes on "
            "where it was: its parts are in the folder OUTPUT_DIR.parts until all are there."
        },
    )
    report: str | None = field(
        default=None,
        metadata={
            "help": "Also write one page for a browser to this file (.html): tables, pictures and the lists of the "
            "first 200 users. It needs nothing beside it, and is not in --output_dir."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Replace an earlier evaluation in --output_dir, and --report where it exists. Where the folder "
            "holds anything else, nothing is replaced."
        },
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, top_k=1, tokens_per_batch=1, catalogue_users=2)
        check_page_name(self.report)
        if self.report and self.output_dir and real_path(self.report).is_relative_to(real_path(self.output_dir)):
            raise ValueError(
                f"--report {self.report} is in --output_dir, which is replaced as a whole and so may hold nothing but "
                "the evaluation: name a file elsewhere, for instance beside the folder."
            )
        if self.whole_catalogue and self.catalogue_users is not None:
            raise ValueError("--whole_catalogue ranks all users among all items already: leave --catalogue_users out.")
        known = [*COUNTS, NO_HISTORY, *self.score_files()]
        if self.fuse is not None and self.fuse not in known:
            raise ValueError(f"--fuse must be one of {', '.join(known)}, it is {self.fuse!r}.")
        if self.fuse is not None and self.split != "test":
            raise ValueError("--fuse chooses its weight on the validation users: rank those of --split test with it.")

    def score_files(self) -> dict[str, str]:
        """Return the files of `scores` by their names."""
        files: dict[str, str] = {}
        for entry in self.scores or []:
            name, _, file = entry.partition("=")
            if not re.fullmatch(r"[\w.-]+", name) or not file or name in RESERVED:
                raise ValueError(
                    f"--scores takes NAME=FILE, with a name of your own of letters, digits, ., - and _, not {entry!r} "
                    f"(taken are {', '.join(RESERVED)})."
                )
            if name in files:
                raise ValueError(f"--scores names two files {name!r}; give each a name of its own.")
            files[name] = file
        return files


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        "dmpo-trl evaluate --model outputs/dmpo --baseline outputs/sft --data data\n"
        "accelerate launch --num_processes 2 -m dmpo_trl.cli evaluate --model outputs/dmpo --data data"
    )
    return Parser("evaluate", ModelArguments, EvaluateArguments, example=example)


def run(arguments: list[str]) -> None:
    """Evaluate as the arguments say. Under `accelerate launch` the users are divided among the processes."""
    from ..evaluation.metrics import check_metrics
    from ..training.distributed import begin_process_group

    model, options = make_parser().parse(arguments)
    check_metrics(options.metrics or [])
    if begin_process_group().is_main_process:  # before the work, not after it
        if options.output_dir is not None:
            check_output(options.output_dir, overwrite=options.overwrite)
        if options.report is not None:
            check_file(options.report, overwrite=options.overwrite)
    with keep_parts(options.output_dir) as parts:
        _evaluate(model, options, parts)


def _evaluate(model: ModelArguments, options: EvaluateArguments, parts: ResultParts | None) -> None:
    """Evaluate, and keep what is computed in `parts`."""
    from accelerate import PartialState

    from ..data import Prepared
    from ..evaluation import (
        beyond_accuracy,
        full_catalogue,
        generate_items,
        load_for_ranking,
        rank_beside_baselines,
    )
    from ..evaluation.fusion import WEIGHTS
    from ..evaluation.metrics import POOLED_AUC
    from ..evaluation.no_history import NO_HISTORY_WEIGHTS, check_lists_nothing
    from ..modeling.loading import check_found
    from ._evaluation import EvaluationReport, default_metrics
    from ._groups import GroupTable, divide
    from ._page import page, user_lists
    from ._protocols import ProtocolTable, further_protocols, in_words, main_protocol
    from ._rankers import (
        fusion_weight,
        other_rankers,
        rank_fused,
        ranked_to_choose,
        ranker_without_history,
        validation_users,
    )

    prepared = Prepared.load(options.data)
    if options.fuse == NO_HISTORY:
        check_lists_nothing(prepared.template)
    users = _first_users(prepared.ranking, options.split, options.users)
    titles = prepared.titles()
    popularity = prepared.popularity()
    divisions = divide(prepared, users)
    if options.whole_catalogue:
        users = full_catalogue(users, titles, prepared.template)

    protocol = main_protocol(prepared, options.whole_catalogue)
    further = further_protocols(
        prepared,
        protocol,
        lambda splits: _first_users(splits, options.split, options.users),
        split=options.split,
        titles=titles,
        catalogue_users=options.catalogue_users,
    )
    rankers = other_rankers(prepared, options.score_files())
    others, *others_further = (
        {name: rank(asked) for name, rank in rankers.items() if name != "popularity"}
        for asked in (users, *further.values())
    )  # before the model is loaded
    held_out = None if options.fuse is None else validation_users(prepared, options.whole_catalogue, titles)
    choosing = (
        ranked_to_choose(options.fuse, rankers[options.fuse], held_out)
        if options.fuse in rankers and held_out is not None
        else None
    )

    loading = replace(model, revision=None).from_pretrained()  # of the baseline: the revision is that of --model
    if options.baseline is not None:
        check_found(options.baseline, **loading)  # before the work, not after it
    loaded, tokenizer = load_for_ranking(model.model, **model.from_pretrained())
    ranking: Any = {"tokens_per_batch": options.tokens_per_batch, "special_tokens_in_text": False, "parts": parts}
    results = rank_beside_baselines(loaded, tokenizer, users, popularity, **ranking)
    results |= others
    of_further = {
        name: rank_beside_baselines(loaded, tokenizer, asked, popularity, **ranking) | own
        for (name, asked), own in zip(further.items(), others_further, strict=True)
    }
    if options.fuse == NO_HISTORY:
        rankers[NO_HISTORY] = ranker_without_history(loaded, tokenizer, prepared, ranking)
        for own, asked in zip((results, *of_further.values()), (users, *further.values()), strict=True):
            own[NO_HISTORY] = rankers[NO_HISTORY](asked)
        choosing = rankers[NO_HISTORY](held_out)
    if options.fuse is not None:
        weights = NO_HISTORY_WEIGHTS if options.fuse == NO_HISTORY else WEIGHTS
        assert choosing is not None
        weight = fusion_weight(loaded, tokenizer, held_out, choosing, ranking, weights)
        for own in (results, *of_further.values()):
            own |= rank_fused(own, options.fuse, weight)
    generated = (
        generate_items(
            *(loaded, tokenizer, users, titles.values()), name="generation", special_tokens_in_text=False, parts=parts
        )
        if options.generate
        else None
    )
    del loaded  # leaves its memory to the baseline
    if options.baseline is not None:
        loaded, tokenizer = load_for_ranking(options.baseline, **loading)
        for own, asked in zip((results, *of_further.values()), (users, *further.values()), strict=True):
            baseline = rank_beside_baselines(loaded, tokenizer, asked, popularity, **ranking)
            own |= {f"baseline {score}": baseline[score] for score in ("sum", "mean")}
    if not PartialState().is_main_process:
        return
    metrics = options.metrics or default_metrics(max(map(len, results["random"].scores)))
    labels = {name: name for name in results} | _labels(model.model, options.baseline)
    compared = [
        (score, other)
        for score in ("sum", "mean")
        for other in ("popularity", "item_knn", f"baseline {score}", *(own for own in others if own not in COUNTS))
    ]
    compared.append(("mean", "sum"))  # which of them suits the titles
    compared += [(name, alone) for name in results if " + " in name for alone in ("sum", str(options.fuse))]
    per_user = [metric for metric in metrics if metric != POOLED_AUC]
    other = next(name for name in ("baseline sum", "item_knn", "popularity") if name in results)
    candidates = "the whole catalogue" if options.whole_catalogue else "candidates"
    report = EvaluationReport(
        {"model": model.model, **asdict(options), "users": len(users)},
        f"{len(users)} {options.split} users, {candidates} ranked by the sum of log-probs or their mean per token.\n"
        f"Mean [95% bootstrap interval over users]; {in_words(protocol, further)}",
        {labels[name]: result.intervals(metrics) for name, result in results.items()},
        {
            (labels[score], labels[other]): results[score].minus(results[other], per_user)
            for score, other in compared
            if other in results and per_user
        },
        {labels[name]: beyond_accuracy(result, popularity, options.top_k) for name, result in results.items()},
        {} if generated is None else {labels["model"]: generated.intervals()},
        {
            kind: GroupTable.of(
                division,
                {labels[name]: result for name, result in results.items()},
                metrics,
                (labels["sum"], labels[other]),
            )
            for kind, division in divisions.items()
        },
        protocol,
        {
            name: ProtocolTable.of(
                name,
                options.split,
                {labels[ranker]: result for ranker, result in own.items()},
                options.metrics or default_metrics(max(map(len, own["random"].scores))),
            )
            for name, own in of_further.items()
        },
    )
    written = results | {f"{kind}/{name}": own[name] for kind, own in of_further.items() for name in own}
    print(report.text())
    if options.output_dir is not None and parts is not None:
        write_evaluation(options.output_dir, report.files(), written, parts, overwrite=options.overwrite)
        print(f"\nWritten to {options.output_dir}.")
    if options.report is not None:
        lists = user_lists(users, titles, {labels[name]: results[name] for name in ("sum", other)})
        with new_file(options.report, overwrite=options.overwrite) as file:
            file.write_text(page(report, lists), encoding="utf-8")
        print(f"\nA page to look at is in {options.report}.")


def _labels(model: str, baseline: str | None) -> dict[str, str]:
    """Return what the rankers are called: the models by their names, or by their paths where they share a name."""
    paths = {"": model} | ({} if baseline is None else {"baseline ": baseline})
    names = {kind: Path(path).name or path for kind, path in paths.items()}
    if len(set(names.values())) < len(names):
        names = {"": model, "baseline ": f"baseline {baseline}" if baseline == model else str(baseline)}
    labels = {f"{kind}{score}": f"{name} ({score})" for kind, name in names.items() for score in ("sum", "mean")}
    return {"random": "random", "popularity": "popularity", "model": names[""], **labels}


def _first_users(splits: Mapping[str, Dataset], split: str, limit: int | None) -> Dataset:
    """Return the users of a split, all of them or the first `limit`, but at least two."""
    users = choose_split(splits, split, "--split")
    first = users if limit is None else users.select(range(min(limit, len(users))))
    if len(first) < 2:
        raise ValueError(
            f"{len(first)} {split} users (of {len(users)}): an interval over users needs two or more. "
            "Raise `--users`, or prepare the data with more users held out."
        )
    return first
