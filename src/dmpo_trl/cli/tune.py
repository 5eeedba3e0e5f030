"""`dmpo-trl tune`: a search for options of training that rank validation users best."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ._search import as_options, by_name, read_space
from ._train_options import argument_types
from .options import ParsedArguments, Parser, check_at_least

_DEFAULT = ["learning_rate=1e-5..1e-3", "beta=0.05..5", "loss_type=dmpo,softmax,sampled_softmax"]
# Of each trial, whatever the options of training say: it is ranked on its way, and leaves nothing
_OF_TRIALS = {"eval_strategy": "steps", "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False}
_REFUSED = ("resume", "resume_from_checkpoint", "push_to_hub", "report")


@dataclass
class TuneArguments:
    """What is searched, for how long."""

    search: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is drawn for options of train, each as NAME=LOW..HIGH (where LOW is above 0, evenly on a "
            "logarithmic scale) or NAME=A,B,C (several values of one option joined by +). Default: "
            f"{' '.join(_DEFAULT)} max_negatives=1..N, with the largest N of the data."
        },
    )
    trials: int = field(
        default=20, metadata={"help": "Trials in all; started again, a search goes on until there are as many."}
    )
    startup_trials: int = field(
        default=5, metadata={"help": "Trials at the beginning that are drawn at random, and never stopped early."}
    )
    evaluations: int = field(
        default=4,
        metadata={"help": "How often a trial is ranked on its way; a trial below the median is stopped there."},
    )
    objective: str = field(default="ndcg@5", metadata={"help": "Metric of the ranking that is maximised."})

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_at_least(self, trials=1, startup_trials=0, evaluations=2)


def make_parser() -> Parser:
    """Return the command's parser."""
    example = (
        "dmpo-trl tune --config dmpo.yaml --ranking_data data --output_dir outputs/tune\n"
        "dmpo-trl tune --config dmpo.yaml --ranking_data data --output_dir outputs/tune --trials 40 \\\n"
        "    --search learning_rate=1e-5..1e-3 lora_r=8,16,32\n"
        "dmpo-trl train --config outputs/tune/best.yaml"
    )
    return Parser("tune", *argument_types(), TuneArguments, example=example)


def run(arguments: list[str]) -> None:
    """Search as the arguments say. The test users are not looked at."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError("The search needs optuna: pip install '.[tune]' in a clone of dmpo-trl.") from error
    from ..data.preparation.folder import is_prepared
    from ..evaluation.metrics import METRICS
    from ._training import largest_negatives, trainer_of
    from ._tuning import Study, best_yaml, held, sentence, value_of
    from .launch import is_launched

    parser = make_parser()
    parsed = parser.parse_values(arguments)
    script, config, _, mixture, training, options = _instances(parser, parsed, {})
    if is_launched():
        raise ValueError("A search is one process; the trials come one after the other.")
    if options.objective not in METRICS:
        raise ValueError(f"--objective must be one of {', '.join(METRICS)}, it is {options.objective!r}.")
    if training.ranking_split != "validation":
        raise ValueError("--ranking_split test: options are chosen on validation users, or test users say nothing.")
    if training.ranking_data is None:
        if not is_prepared(script.dataset_name):
            raise ValueError("--ranking_data names the folder of `dmpo-trl prepare` whose users are ranked.")
        parsed.values.ranking_data = script.dataset_name
    for name in _REFUSED:
        if getattr(parsed.values, name, None):
            raise ValueError(f"--{name} is for a training; a search goes on when it is started again.")

    entries = options.search
    if entries is None:
        most = largest_negatives(script, mixture)
        entries = _DEFAULT + ([f"max_negatives=1..{most}"] if most > 1 else [])
    own = {field.name for field in fields(TuneArguments)}
    trained = [option for option in parser.options if option.dest not in own]
    space = read_space(entries, trained)
    for name in sorted(space):  # each value that is listed, before the first trial
        for value in getattr(space[name], "values", ()):
            _instances(parser, parsed, as_options({name: value}, trained))
    given = _given(parsed.values, own)
    folder = Path(str(config.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    settings = given | {"search": entries} | {name: getattr(options, name) for name in own - {"trials", "search"}}
    settings = {name: value for name, value in settings.items() if name != "output_dir"}

    def text(trials: Sequence[Any]) -> str:
        users = f"{options.objective} of the validation users of {parsed.values.ranking_data}"
        to_train = {"output_dir": str(folder / "best")}
        return best_yaml(trials, lambda trial: given | as_options(trial.params, trained) | to_train, users)

    def objective(trial: Any, drawn: dict[str, Any]) -> float:
        changes = as_options(drawn, trained) | _OF_TRIALS
        changes |= {"eval_steps": 1 / options.evaluations, "output_dir": str(folder / f"trial-{trial.number}")}
        *parts, _ = _instances(parser, parsed, changes)
        return value_of(lambda: trainer_of(*parts), trial, options.objective)

    with held(folder):
        study = Study(
            folder, settings, space, metric=options.objective, startup=options.startup_trials, seed=config.seed
        )
        study.check_files(text)
        if study.done:
            print(f"{len(study.done)} trials were done by an earlier run.")
        while len(study.done) < options.trials:
            print(sentence(study.run(objective), options.objective), flush=True)
            study.write(text)
        study.write(text)
        if study.best is None:
            raise ValueError("No trial came to its end, so none is the best: search elsewhere, in another folder.")
        print(
            f"\nThe best of {len(study.done)} trials is {sentence(study.best, options.objective)}.\n"
            f"Train with it: dmpo-trl train --config {folder / 'best.yaml'}\n"
            "Then evaluate on the test users: the best of many trials is partly luck."
        )


def _instances(parser: Parser, parsed: ParsedArguments, changes: dict[str, Any]) -> tuple[Any, ...]:
    """Return the dataclasses of the options, with some of them changed."""
    values = argparse.Namespace(**deepcopy(vars(parsed.values)) | changes)
    return parser.instances(ParsedArguments(values, parsed.foreign_from_file, parsed.foreign_from_flags))


def _given(values: argparse.Namespace, own: set[str]) -> dict[str, Any]:
    """Return the options of training that are not as by default."""
    defaults = {name: option.default for name, option in by_name(make_parser().options).items()}
    return {name: value for name, value in vars(values).items() if name not in own and value != defaults.get(name)}
