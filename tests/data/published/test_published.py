"""Published splits: small files in each format, and the real ones compared with plain Python."""

import gzip
import json
import lzma
import zipfile
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data.published import read_dmpo, read_llara, read_sdpo
from dmpo_trl.data.published.sdpo import sdpo_examples

NAMES = ["Morcheeba", "Enigma", "Café :: Del Mar", "Moby", ":wumpscut:", "Air"]


def llara_row(history: list[int], target: int, pad: int = len(NAMES), length: int = 3) -> dict:
    return {"seq": history + [pad] * (length - len(history)), "len_seq": max(len(history), 1), "next": target}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def llara(tmp_path: Path) -> Path:
    folder = tmp_path / "llara"
    folder.mkdir()
    lines = [f"{number}::{name}\n" for number, name in enumerate(NAMES)]
    (folder / "id2name.txt").write_text("".join(lines), encoding="utf-8")
    # Two users; the window of three items slides over the first
    first = [llara_row(history, target) for history, target in [([], 0), ([0], 1), ([0, 1], 2), ([0, 1, 2], 3)]]
    first.append(llara_row([1, 2, 3], 4))
    write_lines(folder / "train_data.jsonl", [*first, llara_row([], 0), llara_row([0], 5)])
    write_lines(folder / "Val_data.jsonl", [llara_row([5, 4], 3), llara_row([3], 2)])
    return folder


def test_llara_keeps_every_row_and_finds_the_users(llara):
    data, examples = read_llara(llara)
    assert list(examples) == ["train", "validation"]
    assert examples["train"].rows() == [
        ("train-0", [], "0"),
        ("train-0", ["0"], "1"),
        ("train-0", ["0", "1"], "2"),
        ("train-0", ["0", "1", "2"], "3"),
        ("train-0", ["1", "2", "3"], "4"),
        ("train-1", [], "0"),
        ("train-1", ["0"], "5"),
    ]
    assert examples["validation"]["user"].to_list() == ["validation-0", "validation-1"]
    assert data.titles() == {str(number): name for number, name in enumerate(NAMES)}
    assert data.order == "position"
    assert data.dropped == {}
    had = defaultdict(list)
    for user, item, _ in data.interactions.sort("user", "timestamp").iter_rows():
        had[user].append(item)
    assert had == {
        "train-0": ["0", "1", "2", "3", "4"],
        "train-1": ["0", "5"],
        "validation-0": ["5", "4", "3"],
        "validation-1": ["3", "2"],
    }


def test_llara_out_of_an_archive(llara, tmp_path):
    with zipfile.ZipFile(tmp_path / "llara.zip", "w") as archive:
        for path in llara.iterdir():
            archive.write(path, f"data/{path.name}")
    assert read_llara(tmp_path / "llara.zip").examples["train"].equals(read_llara(llara).examples["train"])


@pytest.mark.parametrize("names", ["id2name.txt", "train_data.jsonl"])
def test_llara_files_may_be_packed(llara, names):
    expected = read_llara(llara)
    path = llara / names
    path.with_name(f"{names}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    data, examples = read_llara(llara)
    assert data.titles() == expected.interactions.titles()
    assert examples["train"].equals(expected.examples["train"])


def test_llara_names_may_be_packed_otherwise(llara):
    (llara / "names.txt.xz").write_bytes(lzma.compress((llara / "id2name.txt").read_bytes()))
    assert read_llara(llara, names="names.txt.xz").interactions.titles() == read_llara(llara).interactions.titles()


def test_llara_variants_must_be_chosen(llara):
    write_lines(llara / "Val_data.small.jsonl", [llara_row([5], 4)])
    assert read_llara(llara, variant="small").examples["validation"].rows() == [("validation-0", ["5"], "4")]
    assert read_llara(llara).examples["validation"].height == 2
    (llara / "Val_data.jsonl").rename(llara / "Val_data.full.jsonl")
    with pytest.raises(ValueError, match=r"choose with variant: '(full|small)', '(full|small)'"):
        read_llara(llara)


def test_llara_reads_no_other_variant_than_the_one_wanted(llara):
    with pytest.raises(ValueError, match=r"no Val_data\.full\.jsonl, the variant 'full', only Val_data\.jsonl\."):
        read_llara(llara, variant="full")
    (llara / "Val_data.jsonl").rename(llara / "Val_data.small.jsonl")
    with pytest.raises(ValueError, match=r"no Val_data\.full\.jsonl, .*, only Val_data\.small\.jsonl\."):
        read_llara(llara, variant="full")
    assert read_llara(llara).examples["validation"].equals(read_llara(llara, variant="small").examples["validation"])
    (llara / "Val_data.small.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no file of variant 'full', only train_data\.jsonl\."):
        read_llara(llara, variant="full")
    (llara / "train_data.jsonl").rename(llara / "train_data.small.jsonl")
    with pytest.raises(ValueError, match=r"no train_data\.full\.jsonl, .*, only train_data\.small\.jsonl\."):
        read_llara(llara, variant="full")


def test_llara_items_with_one_title_are_one_item(llara):
    (llara / "id2name.txt").write_text("0::A\n1::B\n2::C\n3::A\n4::E\n5::F\n", encoding="utf-8")
    data, examples = read_llara(llara)
    assert examples["train"].row(4) == ("train-0", ["1", "2", "0"], "4")
    assert examples["validation"].rows() == [("validation-0", ["5", "4"], "0"), ("validation-1", ["0"], "2")]
    assert data.dropped == {"items merged into another of the same title": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (llara_row([0], 99), "row 2: .* next 99"),
        (llara_row([0], 1, pad=7), "names that belongs"),
        ({"seq": [0, 1, 6], "len_seq": 3, "next": 2}, "does not fit len_seq 3"),
        ({"seq": ["x"], "len_seq": 1, "next": 2}, "must hold JSON lines with seq"),
    ],
)
def test_llara_rows_in_another_format_are_named(llara, row, message):
    write_lines(llara / "Val_data.jsonl", [llara_row([], 0), llara_row([0], 1), row])
    with pytest.raises(ValueError, match=message):
        read_llara(llara)


def test_llara_without_names_or_rows(llara, tmp_path):
    (llara / "train_data.jsonl").unlink()
    (llara / "Val_data.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="train_data"):
        read_llara(llara)
    with pytest.raises(FileNotFoundError, match=r"id2name\.txt"):
        read_llara(tmp_path)
    for line in ("B", "99999999999999999999::B"):
        (llara / "id2name.txt").write_text(f"0::A\n{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match="line 2: expected id::name"):
            read_llara(llara)


def sdpo_row(history: list[str], candidates: list[str], target: str) -> dict:
    return {"historyList": "::".join(history), "itemList": candidates, "trueSelection": target}


SDPO_ROWS = [
    sdpo_row(["Moby", "Air"], ["Enigma", ":wumpscut:", "Abba"], ":wumpscut:"),
    sdpo_row(["Moby", "Air", ":wumpscut:"], ["Abba", "Enigma"], "Abba"),
    sdpo_row([":wumpscut:", "Moby", "Air"], ["Enigma", "Zappa"], "Zappa"),
]


def test_sdpo_keeps_the_order_of_the_candidates(tmp_path):
    (tmp_path / "lastfm-test.json").write_text(json.dumps(SDPO_ROWS), encoding="utf-8")
    with lzma.open(tmp_path / "lastfm-train.again.json.xz", "wt", encoding="utf-8") as file:
        json.dump(SDPO_ROWS[:2], file)
    (tmp_path / "lastfm-sft.json").write_text("{}", encoding="utf-8")
    data, examples = read_sdpo(tmp_path)
    assert list(examples) == ["train", "test"]
    assert examples["test"].select("user", "history", "target", "candidates", "negatives").rows() == [
        ("test-0", ["Moby", "Air"], ":wumpscut:", ["Enigma", ":wumpscut:", "Abba"], ["Enigma", "Abba"]),
        ("test-0", ["Moby", "Air", ":wumpscut:"], "Abba", ["Abba", "Enigma"], ["Enigma"]),
        ("test-1", [":wumpscut:", "Moby", "Air"], "Zappa", ["Enigma", "Zappa"], ["Enigma"]),
    ]
    assert data.items["item"].to_list() == data.items["title"].to_list()
    assert set(data.items["item"]) == {"Moby", "Air", "Enigma", ":wumpscut:", "Abba", "Zappa"}
    only_test = read_sdpo(tmp_path / "lastfm-test.json")
    assert only_test.examples["test"].equals(examples["test"])


@given(st.lists(st.sampled_from(["Moby", ":wumpscut:", ":of the wand & the moon:", "Death::Life"]), min_size=1))
def test_sdpo_tells_any_neighbours_apart_that_the_candidates_name(history):
    titles = [":wumpscut:", ":of the wand & the moon:", "Death::Life", "Enigma"]
    rows = pl.DataFrame([sdpo_row(history, titles, "Enigma")])
    assert sdpo_examples(rows, pl.Series(titles))["history"].to_list() == [history]


def test_sdpo_warns_of_titles_it_cannot_tell_apart(tmp_path, caplog):
    path = tmp_path / "lastfm-val.json"
    path.write_text(json.dumps([sdpo_row([":wumpscut:", "Air"], ["A", "B"], "A")]), encoding="utf-8")
    read_sdpo(path)
    assert ":wumpscut" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (sdpo_row(["Air"], ["A", "B"], "C"), "lastfm-val.json, row 1: trueSelection 'C' must be in itemList"),
        (sdpo_row(["Air"], ["A", "A"], "A"), "row 1: .*no item twice"),
        ({"historyList": "Air"}, "row 1"),
    ],
)
def test_sdpo_rows_in_another_format_are_named(tmp_path, row, message):
    path = tmp_path / "lastfm-val.json"
    path.write_text(json.dumps([SDPO_ROWS[0], row]), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_sdpo(path)


def test_sdpo_files_must_be_one_a_part(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file like lastfm-train\.json"):
        read_sdpo(tmp_path)
    for name in ("lastfm-val.json", "steam-val.json"):
        (tmp_path / name).write_text(json.dumps(SDPO_ROWS), encoding="utf-8")
    with pytest.raises(ValueError, match="second file of 'validation'"):
        read_sdpo(tmp_path)


def dmpo_row(history: list[str], first: str, second: str, target: str, sft: bool = False) -> dict:
    other = second if target == first else first
    orders = [f" <Title:{target}> ,  <Title:{other}> ", f" <Title:{other}> ,  <Title:{target}> "]
    titles = "".join(f" <Title:{title}> " for title in history)
    instruction = (
        "You are an assistant working on movie recommendations. Here is the user's history of movies they have "
        f"watched: {titles}. Rank the likelihood of the user watching the two movies  <Title:{first}>  and  "
        f"<Title:{second}> ."
    )
    return {"instruction": instruction, "input": "", "output": orders[0] if sft else orders}


GIGI = ["Miracle on 34th Street ", "Romeo > Juliet", "Girl"]
BIG = ["Big ", "Girl", "Big "]


@pytest.fixture
def dmpo(tmp_path: Path) -> Path:
    files = {
        "dpo_ranking_2": [
            dmpo_row(GIGI, "Tarzan ", "Gigi ", "Gigi "),
            dmpo_row(GIGI, "Gigi ", "Thelma and Louise ", "Gigi "),
            dmpo_row(BIG, "Antz ", "Gigi ", "Antz "),
        ],
        "sft_ranking": [dmpo_row(GIGI, "Gigi ", "Tarzan ", "Gigi ", sft=True)],
        "eval_ranking": [dmpo_row(["Alien &amp; co"], "Fargo (1996)", "Edge, The (1997)", "Fargo (1996)")],
    }
    for name, rows in files.items():
        (tmp_path / f"rec_tiny_{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


def test_dmpo_pairs_are_folded(dmpo):
    data, examples = read_dmpo(dmpo, "tiny")
    assert set(examples) == {"dpo_2", "sft", "eval"}
    columns = ("history", "target", "negatives", "target_first")
    assert examples["dpo_2"].select(columns).rows() == [
        (GIGI, "Gigi ", ["Tarzan ", "Thelma and Louise "], [False, True]),
        (BIG, "Antz ", ["Gigi "], [True]),
    ]
    assert examples["sft"].select(columns).rows() == [(GIGI, "Gigi ", ["Tarzan "], [True])]
    assert examples["eval"].row(0)[1:] == (["Alien &amp; co"], "Fargo (1996)", ["Edge, The (1997)"], [True])
    assert examples["sft"]["user"][0] == examples["dpo_2"]["user"][0] != examples["dpo_2"]["user"][1]
    assert data.dropped == {"titles repeated within a history": 1}
    assert data.order == "position"
    assert data.interactions.height == 4 + 3 + 2
    # "Big " is twice in the history: the latest place counts
    had = data.interactions.filter(pl.col("user") == examples["dpo_2"]["user"][1]).sort("timestamp")
    assert had["item"].cast(pl.String).to_list() == ["Girl", "Big ", "Antz "]


def test_dmpo_leaves_out_and_counts_what_is_not_json(dmpo, caplog):
    row = json.dumps(dmpo_row(BIG, "Antz ", "Gigi ", "Antz "))
    (dmpo / "rec_tiny_eval_ranking_old.json").write_text(row + row, encoding="utf-8")
    data, examples = read_dmpo(dmpo, "tiny")
    assert set(examples) == {"dpo_2", "sft", "eval"}
    assert data.dropped["files that are not JSON"] == 1
    assert "rec_tiny_eval_ranking_old.json is left out" in caplog.text


@pytest.mark.parametrize(
    "change",
    [{"instruction": "Say hello."}, {"output": [" <Title:Other> ,  <Title:Gigi > ", ""]}, {"output": None}],
)
def test_dmpo_rows_in_another_format_are_named(dmpo, change):
    good = dmpo_row(BIG, "Antz ", "Gigi ", "Antz ")
    (dmpo / "rec_tiny_dpo_ranking_1.json").write_text(json.dumps([good, good | change]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"rec_tiny_dpo_ranking_1\.json, row 1"):
        read_dmpo(dmpo, "tiny")


def test_dmpo_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="rec_Amazon_Game_dpo_ranking_1"):
        read_dmpo(tmp_path, "Amazon_Game")


@pytest.mark.parametrize("variant", ["full", "llara122"])
def test_real_llara(shared, variant):
    folder = shared / "lastfm-llm-splits"
    data, examples = read_llara(folder, variant=variant, names="id2name.napo.txt")
    names = [line.split("::", 1) for line in (folder / "id2name.napo.txt").read_text("utf-8").splitlines()]
    assert data.titles() == dict(names)
    had = 0
    for part, stem in (
        ("train", "train_data"),
        ("validation", f"Val_data.{variant}"),
        ("test", f"Test_data.{variant}"),
    ):
        rows = [json.loads(line) for line in (folder / f"{stem}.jsonl").read_text("utf-8").splitlines()]
        plain = [([str(i) for i in row["seq"] if i != len(names)], str(row["next"])) for row in rows]
        assert examples[part].select("history", "target").rows() == plain
        starts = [not history or ("full" not in stem and part != "train") for history, _ in plain]
        users = [f"{part}-{sum(starts[: n + 1]) - 1}" for n in range(0, len(starts), 97)]
        assert examples[part]["user"].gather_every(97).to_list() == users
        had += sum(len(history) + 1 for history, _ in plain) if "llara122" in stem else len(plain)
    assert data.interactions.height == had


def test_real_sdpo(shared):
    folder = shared / "lastfm-llm-splits"
    data, examples = read_sdpo(folder)
    assert {part: frame.height for part, frame in examples.items()} == {
        "train": 47_872,
        "validation": 2_767,
        "test": 2_495,
    }
    assert [frame["user"].n_unique() for frame in examples.values()] == [976, 122, 122]
    assert data.items.height == 4_606
    for part, name in (("validation", "lastfm-val.json"), ("test", "lastfm-test.json")):
        plain = [
            (
                row["historyList"],
                row["trueSelection"],
                row["itemList"],
                [item for item in row["itemList"] if item != row["trueSelection"]],
            )
            for row in json.loads((folder / name).read_text("utf-8"))
        ]
        joined = examples[part].with_columns(examples[part]["history"].list.join("::"))
        assert joined.select("history", "target", "candidates", "negatives").rows() == plain
    # The same people as LLaRA's, whose rows with at least three items these are
    llara = read_llara(folder, variant="full", names="id2name.napo.txt")
    title = llara.interactions.titles()
    for part, frame in examples.items():
        same = llara.examples[part].filter(llara.examples[part]["history"].list.len() >= 3)
        expected = [([title[item] for item in history], title[target]) for _, history, target in same.iter_rows()]
        assert frame.select("history", "target").rows() == expected


@pytest.mark.parametrize("dataset", ["Amazon_Game", "Amazon_Movie", "data_ml_1m"])
def test_real_dmpo(shared, dataset):
    data, examples = read_dmpo(shared / "dmpo", dataset)
    files = sorted((shared / "dmpo").glob(f"rec_{dataset}_*.json"))
    assert len(examples) == len(files)
    titles = set()
    for path in files:
        part = path.stem.removeprefix(f"rec_{dataset}_").replace("_ranking", "")
        rows = json.loads(path.read_text("utf-8"))
        plain: dict[str, list] = {}  # by the history's text; rows of one history are adjacent
        for row in rows:
            before, _, question = row["instruction"].partition(" . Rank the likelihood of ")
            answer = row["output"] if isinstance(row["output"], str) else row["output"][0]
            chosen, rejected = answer[len(" <Title:") : -len("> ")].split("> ,  <Title:")
            plain.setdefault(before, []).append((chosen, rejected, question.index(f"<Title:{chosen}>")))
            titles |= {chosen, rejected}
        assert examples[part].height == len(plain)
        assert examples[part]["negatives"].list.len().sum() == len(rows)
        for (_, history, target, negatives, first), (text, pairs) in zip(
            examples[part].iter_rows(), plain.items(), strict=True
        ):
            assert text.endswith(
                ":" + " ".join(f"  <Title:{title}>" for title in history)[0:].replace(">   <", ">  <")
            )
            assert [(target, negative) for negative in negatives] == [pair[:2] for pair in pairs]
            assert len(first) == len(pairs)
            titles |= set(history)
    assert set(data.items["item"]) == titles


def test_llara_with_ratings_is_read_beside_plain_numbers(llara):
    plain = read_llara(llara)
    pad = len(NAMES)
    for path in llara.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["seq"] = [[item, 0 if item == pad else 5] for item in row["seq"]]
            row["next"] = [row["next"], 3]
        write_lines(path, rows)
    rated = read_llara(llara)
    assert all(rated.examples[part].equals(plain.examples[part]) for part in plain.examples)
    assert rated.interactions.interactions.equals(plain.interactions.interactions)


def test_llaras_movielens_takes_its_titles_from_u_item(llara):
    flags = "|".join(["0"] * 19)
    films = "".join(f"{number + 1}|{name}, The (1995)|01-Jan-1995|||{flags}\n" for number, name in enumerate(NAMES))
    (llara / "u.item").write_text(films, encoding="latin-1")
    assert read_llara(llara).interactions.titles()["0"] == "Morcheeba"  # its own names come first
    (llara / "id2name.txt").unlink()
    data, examples = read_llara(llara)
    assert data.titles()["5"] == "The Air (1995)"
    assert examples["train"]["target"].to_list() == ["0", "1", "2", "3", "4", "0", "5"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"seq": [[1, 5], [6, 0]], "len_seq": 1, "next": [2]}', None),
        ('{"seq": [[1, 5], []], "len_seq": 2, "next": [2, 1]}', "row 0: "),
        ('{"seq": null, "len_seq": 1, "next": null}', "row 0: "),
        ('{"seq": [1, [2, 3]], "len_seq": 2, "next": 2}', "must hold JSON lines with seq"),
        ("[" * 50_000, r"line 1 (is not JSON|is b)"),
        ("{'seq': [1]}", r"line 1 is not JSON in UTF-8"),
        ("\xff", r"line 1 is not JSON in UTF-8"),
    ],
)
def test_llara_lines_are_read_or_named(llara, line, message):
    (llara / "Val_data.jsonl").write_bytes(line.encode("latin-1"))
    if message is None:
        assert read_llara(llara).examples["validation"].rows() == [("validation-0", ["1"], "2")]
        return
    with pytest.raises(ValueError, match=rf"Val_data\.jsonl.*{message}"):
        read_llara(llara)


def test_names_that_are_not_utf_8_are_named(llara):
    (llara / "id2name.txt").write_bytes(b"0::A\n1::Caf\xe9\n")
    with pytest.raises(ValueError, match=r"id2name\.txt, line 2: the text is not UTF-8"):
        read_llara(llara)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nests too deeply"),
        ('[{"historyList": "A", "itemList": ["B"], "trueSelection": "B"}, {"historyList": ["A"]}]', "not of one form"),
        ('[{"historyList": 5, "itemList": ["B"], "trueSelection": "B"}]', "test.json"),
        ('[{"historyList": "A", "itemList": "B", "trueSelection": "B"}]', "test.json"),
        ("\xff", "is not one JSON value in UTF-8"),
        ('[{"historyList": "A"', "is not one JSON value in UTF-8"),
        (
            '[{"historyList": "\\ud83d", "itemList": ["B"], "trueSelection": "B"}]',
            r"test\.json holds half of a character",
        ),
        ('[{"historyList": "\xed\xa0\x80", "itemList": ["B"], "trueSelection": "B"}]', r"test\.json holds half"),
    ],
)
def test_json_of_another_form_is_named(tmp_path, content, message):
    (tmp_path / "test.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_sdpo(tmp_path)


@pytest.mark.parametrize("row", [{"instruction": 5, "output": "x"}, {"instruction": "x", "output": [1]}, {"a": "b"}])
def test_dmpo_rows_of_another_form_are_named(tmp_path, row):
    (tmp_path / "rec_X_dpo_ranking_1.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=r"rec_X_dpo_ranking_1\.json, (instruction must be text|rows must have)"):
        read_dmpo(tmp_path, "X")
