"""The DMPO authors' pairs in the paper's experiments; the real ones only where DMPO_TRL_SHARED_DATA points to them."""

import importlib
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import save_model

from dmpo_trl.data import read_dmpo

SIZES = {"test_users": 8, "tokens": 2000, "sft_epochs": 1, "lora_rank": 4, "batch_size": 4}
REAL = ["ml-1m", "movies", "games"]


@pytest.fixture(scope="module")
def pairs():
    return importlib.import_module("paper.pairs")


def row(history: list[str], target: str, other: str, target_first: bool, answer_only: bool = False) -> dict:
    had = "".join(f" <Title:{title}> " for title in history)
    first, second = (target, other) if target_first else (other, target)
    text = (
        "You are an assistant working on movie recommendations. Here is the user's history of movies they have "
        f"watched: {had}. Rank the likelihood of the user watching the two movies  <Title:{first}>  and  "
        f"<Title:{second}> ."
    )
    orders = [f" <Title:{target}> ,  <Title:{other}> ", f" <Title:{other}> ,  <Title:{target}> "]
    return {"instruction": text, "input": "", "output": orders[0] if answer_only else orders}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and files as those of ML-1M: 6 training histories, whose titles are cut, and 8 rows to rank.

    The second row to rank has the first training history.
    """
    folder = tmp_path_factory.mktemp("pairs")
    save_model(folder / "model")
    cut, whole = [f"Film {n} " for n in range(20)], [f"Film {n} (19{n + 40})" for n in range(20)]
    train = [([cut[n], cut[n + 1], cut[n + 2]], cut[n + 3], cut[10 + n : 15 + n]) for n in range(6)]
    files = {
        "sft_ranking": [row(had, wanted, others[0], n % 2 == 0, True) for n, (had, wanted, others) in enumerate(train)]
    }
    for k in range(1, 6):
        files[f"dpo_ranking_{k}"] = [
            row(had, wanted, other, (n + k) % 2 == 0)
            for had, wanted, others in train
            for n, other in enumerate(others[:k])
        ]
    files["eval_ranking"] = [
        row([whole[5], whole[6], whole[12 + n]], whole[3 + n], whole[19 - n], n % 2 == 0) for n in range(8)
    ]
    files["eval_ranking"][1] = row(whole[0:3], whole[3], whole[10], True)
    for name, rows in files.items():
        (folder / f"rec_data_ml_1m_{name}.json").write_text(json.dumps(rows))
    return folder


def run(paper, folder: Path, output: Path, *blocks: dict, **settings) -> None:
    file = output.with_suffix(".yaml")
    cells = [{"dataset": "pairs-ml-1m", "users": 6, "seed": 0} | block for block in blocks]
    file.write_text(yaml.safe_dump({"settings": SIZES | settings, "cells": cells}))
    places = ["--work", str(output.parent / "work"), "--output", str(output), "--model", str(folder / "model")]
    paper.main(["run", str(file), "--data", f"dmpo={folder}", *places])


def test_both_wordings_are_trained_ranked_and_reported(paper, folder, tmp_path):
    output = tmp_path / "out"
    authors = {"method": ["counts", "zero-shot", "sft more", "dpo on pairs", "official code"]}
    run(paper, folder, output, authors, {"dataset": "titles-ml-1m", "method": ["sft more", "dmpo"]})
    cells = {file.stem: json.loads(file.read_text()) for file in output.glob("*.json")}
    assert len(cells) == 7
    for name, cell in cells.items():
        assert cell["repeated rows"] == [1]
        if "counts" not in name:
            assert {"pairs sum", "pairs mean"} < cell.keys()
            ranks = np.array(cell["pairs sum"]["ranks"])
            assert set(ranks) <= {1, 1.5, 2}
            assert cell["pairs sum"]["auc"] == pytest.approx(2 - ranks.mean())
            assert cell["pairs sum"]["without repeats"]["auc"] == pytest.approx(2 - np.delete(ranks, 1).mean())
    assert cells["titles-ml-1m-6-dmpo-0"]["training"]["tokens"] == 2000
    paper.main(["report", str(output)])
    text = (output / "report.md").read_text()
    assert "## pairs-ml-1m, 6 training histories, pairs" in text
    assert "## titles-ml-1m, 6 training histories, pairs" in text
    assert re.search(r"- official code (cannot be told apart from|is \w+ than) sft more: ", text)
    assert re.search(r"\| random \| 1 \| 0\.500 \[0\.500, 0\.500\] \|", text)


def test_popularity_is_that_of_cut_titles(paper, folder, tmp_path):
    run(paper, folder, tmp_path / "out", {"method": "counts"})
    cell = json.loads((tmp_path / "out" / "pairs-ml-1m-6-counts-0.json").read_text())
    rows = json.loads((folder / "rec_data_ml_1m_eval_ranking.json").read_text())
    numbers = [[int(n) for n in re.findall(r"Film (\d+) ", one["output"][0])] for one in rows]
    seen = {n: set(range(n, n + 4)) for n in range(6)}
    given = {n: {int(m) for m in re.findall(r"Film (\d+) ", one["instruction"])[:-2]} for n, one in enumerate(rows)}
    for name, had in (("popularity", seen), ("popularity, ranked histories", given)):
        count = Counter(item for own in had.values() for item in own)
        wins = [(count[wanted] > count[other]) + 0.5 * (count[wanted] == count[other]) for wanted, other in numbers]
        assert cell[f"pairs {name}"]["auc"] == pytest.approx(np.mean(wins))


def test_pairs_across_domains(paper, folder, tmp_path):
    for name in ("sft_ranking", "eval_ranking", "dpo_ranking_3"):
        rows = (folder / f"rec_data_ml_1m_{name}.json").read_text()
        (folder / f"rec_Amazon_Movie_{name}.json").write_text(rows.replace("Film", "Series"))
    output, block = tmp_path / "out", {"method": ["sft", "sft more"]}
    run(paper, folder, output, block, block | {"dataset": "pairs-movies", "trained_on": "pairs-ml-1m"})
    assert len(list((tmp_path / "work").glob("*/sft/spent.json"))) == 1  # one adapter ranks both
    paper.main(["report", str(output)])
    text = (output / "report.md").read_text()
    assert "## pairs-movies, trained on pairs-ml-1m, 6 training histories, pairs" in text
    assert "## pairs-ml-1m, 6 training histories, pairs" in text


@pytest.mark.parametrize("wanted", [1, 3, 5])
def test_rows_are_those_of_the_files(paper, pairs, folder, wanted):
    from paper.methods import Method
    from paper.settings import Settings

    def users(name):
        source = pairs.PAIR_SOURCES[name]
        return pairs.PairUsers(source, source.read(folder), Settings(), 4, 0)

    rows = users("pairs-ml-1m").preference(Method({}, negatives=wanted), None).to_list()
    published = json.loads((folder / f"rec_data_ml_1m_dpo_ranking_{max(wanted, 2)}.json").read_text())
    of_four = [one for n, one in enumerate(published) if n < 4 * max(wanted, 2) and n % max(wanted, 2) < wanted]
    assert [one["prompt"][0]["content"] for one in rows] == [one["instruction"] for one in of_four]
    assert [[one["chosen"][0]["content"], one["rejected"][0][0]["content"]] for one in rows] == [
        one["output"] for one in of_four
    ]
    assert {len(one["rejected"]) for one in rows} == {1}
    asked = users("titles-ml-1m").preference(Method({}, negatives=wanted), None)[0]
    assert asked["prompt"][-1]["content"].endswith("\nFilm 0\nFilm 1\nFilm 2")
    assert asked["chosen"][0]["content"] == "Film 3"
    assert [one[0]["content"] for one in asked["rejected"]] == [f"Film {n}" for n in range(10, 10 + wanted)]
    sft = users("pairs-ml-1m").sft()
    assert len(sft) == 4
    assert sft[1]["completion"][0]["content"] == " <Title:Film 4 > ,  <Title:Film 11 > "


@pytest.mark.parametrize(
    ("block", "settings", "says"),
    [
        ({"method": "sasrec"}, {}, "sasrec cannot rank pairs"),
        ({"method": "dmpo 7"}, {}, "dmpo 7: a history has one position and at most 5 negatives"),
        ({"method": "dmpo hard negatives"}, {}, "a history has one position and at most 5 negatives"),
        ({"method": "sft", "trained_on": "lastfm"}, {}, "lastfm and pairs-ml-1m do not go together"),
        ({"method": "sft"}, {"explained_users": 2}, "have neither explained_users nor catalogue_users"),
        ({"method": "sft", "users": 7}, {}, "data_ml_1m has 6 training histories, not 7"),
        ({"method": "sft", "dataset": "pairs-games"}, {}, "Amazon_Game"),
    ],
)
def test_what_the_files_cannot_give_is_said(paper, folder, tmp_path, block, settings, says):
    with pytest.raises((SystemExit, FileNotFoundError), match=re.escape(says)):
        run(paper, folder, tmp_path / "out", block, **settings)


def test_the_committed_report_is_that_of_the_cells(paper, tmp_path):
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "pairs"
    for file in results.glob("*.json"):
        assert "uncommitted" not in json.loads(file.read_text())["commit"], file.name
    paper.main(["report", str(results), "--output", str(tmp_path)])
    assert (tmp_path / "report.md").read_bytes() == (results / "report.md").read_bytes()


@pytest.fixture
def real():
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    return Path(root) / "dmpo"


# The pairwise AUC of popularity among the histories of the ranked rows, known from elsewhere
@pytest.mark.parametrize(("name", "auc"), [("ml-1m", 0.608), ("movies", 0.516), ("games", 0.5455)])
def test_popularity_on_the_real_files(paper, real, tmp_path, name, auc):
    file = tmp_path / "config.yaml"
    cell = {"dataset": f"pairs-{name}", "users": 100, "seed": 0, "method": "counts"}
    file.write_text(yaml.safe_dump({"settings": {"test_users": 1000}, "cells": [cell]}))
    paper.main(["run", str(file), "--data", f"dmpo={real}", "--output", str(tmp_path), "--model", "none"])
    content = json.loads((tmp_path / f"pairs-{name}-100-counts-0.json").read_text())
    assert content["pairs popularity, ranked histories"]["auc"] == pytest.approx(auc, abs=1e-9)
    assert len(content["pairs popularity"]["ranks"]) == 1000
    repeated = [1, 2, 6, 8, 12, 13, 15, 17, 18, 19, 21, 22, 23, 27, 28] if name == "games" else []
    assert content["repeated rows"] == repeated


@pytest.mark.parametrize("name", REAL)
def test_instructions_are_the_authors_to_the_letter(pairs, real, name):
    source = pairs.PAIR_SOURCES[f"pairs-{name}"]
    files = sorted(real.glob(f"rec_{source.name}_*.json"))
    assert files
    for part, examples in read_dmpo(real, source.name).examples.items():
        made = {
            pairs.instruction(
                source.words, one["history"], [one["target"], other] if first else [other, one["target"]]
            )
            for one in examples.to_dicts()
            for other, first in zip(one["negatives"], one["target_first"], strict=True)
        }
        kind, *number = part.split("_")
        rows = json.loads(
            (real / "_".join(["rec", source.name, kind, "ranking", *number])).with_suffix(".json").read_text()
        )
        assert made == {one["instruction"] for one in rows}
