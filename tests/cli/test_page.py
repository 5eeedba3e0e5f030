"""The page of an evaluation: it has every figure, titles are text in it, and it works in a browser."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset
from support.browser import chromium, colours_seen, needs_browser
from support.prepared import model_and_data

from dmpo_trl.cli import main
from dmpo_trl.cli._evaluation import EvaluationReport
from dmpo_trl.cli._groups import Division, GroupTable
from dmpo_trl.cli._page import page, user_lists
from dmpo_trl.evaluation import Difference, Interval, RankingResult

ODD = '<script>document.title = "changed"</script> "quoted" & \'it\' {{ 7 * 7 }}'
TITLES = {"a": "Alien", "b": "Babe", "odd": ODD}


class Text(HTMLParser):
    """The text of a page, and the names of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.elements = "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report():
    interval = Interval(0.5, 0.25, 0.75)
    ranking = {"model <b>": {"hr@1": interval, "auc": interval}, "popularity": {"hr@1": Interval(0.25, 0.0, 1.0)}}
    difference = {("model <b>", "popularity"): {"hr@1": Difference(0.25, -0.5, 0.75, p_value=0.4)}}
    groups = {
        "by_age": GroupTable(
            Division("by age", {"young": np.arange(3), "old": np.arange(2)}),
            {"young": {"popularity": {"auc": Interval(0.1, 0.0, 0.2)}}, "old": {"popularity": {"auc": interval}}},
            {"model <b> - popularity": {"young": Difference(0.1, -0.4, 0.2, p_value=0.5)}},
        )
    }
    return EvaluationReport(
        {"top_k": 5}, "About.", ranking, difference, {"popularity": {"coverage@5": 0.125}}, {}, groups
    )


@pytest.fixture
def users():
    rows = [
        {"user": "ann", "history": ["a"], "items": ["b", "odd", "a"], "positive": 1},
        {"user": "bob", "history": ["odd"], "items": ["a", "b", "odd"], "positive": 0},
    ]
    scores = {"model": [[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]], "counts": [[3.0, 1.0, 2.0], [1.0, 0.0, 0.0]]}
    items = [row["items"] for row in rows]
    results = {
        name: RankingResult(name, ["ann", "bob"], [np.array(row) for row in own], [1, 0], items)
        for name, own in scores.items()
    }
    return user_lists(Dataset.from_list(rows), TITLES, results)


def test_lists_have_the_best_first_and_say_where_the_target_is(users):
    ann, bob = users
    assert (ann.history, ann.target) == (["Alien"], ODD)
    assert ann.lists == {"model": [ODD, "Babe", "Alien"], "counts": ["Babe", "Alien", ODD]}
    assert ann.places == {"model": 1.0, "counts": 3.0}
    assert bob.places == {"model": 2.5, "counts": 1.0}  # tied for the second and third place


def test_the_page_has_every_figure_and_titles_are_text(report, users):
    found = Text(page(report, users))
    for figure in ("0.500 [0.250, 0.750]", "0.250 [0.000, 1.000]", "+0.250 [-0.500, +0.750], p = 0.4", "0.125"):
        assert figure in found.text
    assert "model <b> and popularity cannot be told apart" in found.text
    assert "auc by age" in found.text
    assert found.text.count(ODD) == 6  # ann's target, bob's history, and two lists of each
    assert found.elements.count("script") == 1
    assert found.elements.count("b") == 2 + 4  # the users' and the lists' names, none of a ranker's
    assert "49" not in re.sub(r"[\d.]+%", "", found.text)


def test_bars_stand_for_the_intervals(report):
    text = page(report, [])
    assert "<h2>Users</h2>" not in text
    # On a scale to 1, the highest end of an interval of hr@1
    assert 'style="left:25.0%;width:50.0%"' in text
    assert 'style="left:0.0%;width:100.0%"' in text


def test_groups_are_headings_on_one_scale(report):
    text = page(report, [])
    picture = text[text.index("auc by age") : text.index("auc, model")]
    assert re.findall(r"<small>(.*?)</small>|<h4>(.*?)</h4>|<span>(.*?)</span>", picture) == [
        ("0 to 0.750", "", ""),
        ("", "young (3 users)", ""),
        ("", "", "popularity"),
        ("", "old (2 users)", ""),
        ("", "", "popularity"),
    ]
    assert re.findall(r'class="mean" style="left:(.*?)%"', picture) == ["13.33", "66.67"]  # of 0.75


def test_gains_are_on_both_sides_of_the_middle(report):
    text = page(report, [])
    picture = text[text.index("auc, model") : text.index("<h2>Figures")]
    assert picture.startswith("auc, model &lt;b&gt; - popularity, by age <small>-0.400 to +0.400</small>")
    assert "young (3): +0.100 [-0.400, +0.200], p = 0.5" in picture
    assert 'class="track signed"><div class="range" style="left:0.0%;width:75.0%"' in picture
    assert 'class="mean" style="left:62.5%"' in picture


def test_nothing_is_loaded_from_elsewhere(report, users):
    text = page(report, users)
    assert not re.search(r"(src|href)=|https?:|url\(|@import", text)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return model_and_data(tmp_path_factory.mktemp("given"))


def test_evaluate_writes_a_page(given, tmp_path, capsys):
    arguments = [
        "evaluate",
        "--model",
        f"{given}/model",
        "--data",
        f"{given}/data",
        "--report",
        f"{tmp_path}/report.html",
    ]
    main(arguments)
    assert f"A page to look at is in {tmp_path}/report.html." in capsys.readouterr().out
    text = Text((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "The first 4 users: what they had" in text
    assert "model (sum)" in text
    with pytest.raises(SystemExit, match=r"report\.html"):
        main(arguments)
    main([*arguments, "--overwrite"])


def test_a_report_must_be_a_page(given):
    with pytest.raises(SystemExit, match=r"--report writes a page for a browser, FILE\.html, not 'report\.pdf'"):
        main(["evaluate", "--model", f"{given}/model", "--data", f"{given}/data", "--report", "report.pdf"])


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(report, users, tmp_path):
    from selenium.webdriver.common.by import By

    (tmp_path / "report.html").write_text(page(report, users), encoding="utf-8")
    with chromium() as browser:
        browser.get((tmp_path / "report.html").as_uri())
        assert browser.title == "dmpo-trl: evaluation"  # which a title of the data tries to change

        def shown() -> list[str]:
            own = browser.find_elements(By.CSS_SELECTOR, "#users details")
            return [user.find_element(By.TAG_NAME, "b").text for user in own if user.is_displayed()]

        assert shown() == ["ann", "bob"]
        search, count = browser.find_element(By.ID, "search"), browser.find_element(By.ID, "count")
        search.send_keys("bob")
        assert shown() == ["bob"]
        assert count.text == "1 of 2 users"
        search.clear()
        search.send_keys('"QUOTED"')
        assert shown() == ["ann", "bob"]
        ann = browser.find_elements(By.CSS_SELECTOR, "#users details")[0]
        assert not ann.find_element(By.TAG_NAME, "ol").is_displayed()
        ann.find_element(By.TAG_NAME, "summary").click()
        assert ann.find_element(By.TAG_NAME, "ol").is_displayed()
        assert [entry.text for entry in ann.find_elements(By.CSS_SELECTOR, ".hit")] == [ODD, ODD]
        track = browser.find_element(By.CSS_SELECTOR, ".track")
        mean = browser.find_element(By.CSS_SELECTOR, ".mean")
        middle = mean.rect["x"] + mean.rect["width"] / 2 - track.rect["x"]
        assert middle == pytest.approx(track.rect["width"] / 2, abs=3)  # 0.5 of 1
        assert "#2a6fdb" in colours_seen(track)  # the mark of the mean
