"""Last.fm: from play counts to a recommender of artists, by two losses.

    python examples/lastfm.py --path hetrec2011-lastfm-2k.zip
    python examples/lastfm.py --version hetrec-2k --download

HetRec 2K has no times. The artists of a user are ordered by play count, so the question is the user's favourite after
those played less. Both multi-negative losses start from the same SFT adapter: DMPO pushes down the mean of the
negatives, S-DPO (`softmax`) mostly the one that the model likes best.
"""

from dataclasses import replace

from stages import compare, prepare_data, train_dmpo, train_sft


def main() -> None:
    """Go from raw files to the table."""
    prepared, settings = prepare_data(
        dataset="lastfm",
        output_dir="outputs/lastfm/data",
        results="outputs/lastfm",
        split="users",
        train_users=300,
        validation_users=100,
        test_users=150,
    )
    sft = train_sft(prepared.sft["train"], settings)
    models = {"zero-shot": settings.model, "SFT": sft}
    for name, loss_type in (("S-DPO", "softmax"), ("DMPO", "dmpo")):
        own = replace(settings, loss_type=loss_type)
        models[name] = train_dmpo(prepared.preference["train"], sft, own, name=loss_type)
    print(compare(prepared, models, settings))


if __name__ == "__main__":
    main()
