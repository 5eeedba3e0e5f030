"""Last.fm: from play counts to a recommender of artists, by two losses.

    python examples/lastfm.py --path hetrec2011-lastfm-2k.zip
    python examples/lastfm.py --version hetrec-2k --download

HetRec 2K has no times. The artists of a user are ordered by play count, so the question is the user's favourite after
those played less. Both multi-negative losses start from the same SFT adapter: DMPO pushes down the mean of the
negatives, S-DPO (`softmax`) mostly the one that the model likes best.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from stages import Training, compare, train_dmpo, train_sft
from trl import TrlParser

from dmpo_trl.data import PrepareConfig, leak_report, prepare


@dataclass
class Data(PrepareConfig):
    """What is read, and how it is split."""

    dataset: str = "lastfm"
    output_dir: str = "outputs/lastfm/data"
    split: str = "users"
    train_users: int | None = 300
    validation_users: int | None = 100
    test_users: int | None = 150


@dataclass
class Settings(Training):
    """Model and training."""

    results: str = "outputs/lastfm"


def main() -> None:
    """From raw files to the table."""
    data, settings = TrlParser((Data, Settings)).parse_args_and_config()
    prepared = prepare(data)
    print(leak_report(prepared.preference["train"], prepared.ranking["test"]))
    sft = train_sft(prepared.sft["train"], settings)
    models = {"zero-shot": settings.model, "SFT": sft}
    for name, loss_type in (("S-DPO", "softmax"), ("DMPO", "dmpo")):
        results = str(Path(settings.results) / loss_type)
        models[name] = train_dmpo(
            prepared.preference["train"], sft, replace(settings, loss_type=loss_type, results=results)
        )
    print(compare(prepared, models, settings))


if __name__ == "__main__":
    main()
