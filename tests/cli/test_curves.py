"""The page of a training run: its curves are what was logged, and it opens in a browser."""

import json
import re

import pytest
from support.browser import chromium, colours_seen, hosts_asked, needs_browser
from support.prepared import model_and_data

from dmpo_trl.cli import main
from dmpo_trl.cli._curves import HEIGHT, WIDTH, page, pictures

LOG = [
    {"step": 1, "loss": 0.8, "rewards/margins": 0.0, "rewards/margins_min": -1.0, "learning_rate": 1.0},
    {"step": 2, "loss": float("nan"), "rewards/margins": 1.0, "rewards/margins_min": -1.0},
    {"step": 2, "eval_loss": 0.6, "eval_runtime": 3.0},
    {"step": 2, "eval_ndcg@5": 0.25},
    {"step": 3, "loss": 0.4, "rewards/margins": 3.0, "rewards/margins_min": -0.5},
    {"step": 3, "eval_loss": 0.5, "eval_ndcg@5": 0.5},
    {"step": 3, "train_loss": 0.6},
]
ODD = "<script>document.title='changed'</script> \"quoted\" & 'it'"


def test_curves_are_what_was_logged():
    found = {title: {curve.name: list(curve.points) for curve in own} for title, own in pictures(LOG).items()}
    assert found == {
        "Loss": {"training": [(1, 0.8), (3, 0.4)], "evaluation": [(2, 0.6), (3, 0.5)]},
        "Margins, in nats times beta": {
            "mean margin": [(1, 0.0), (2, 1.0), (3, 3.0)],
            "margin to the hardest": [(1, -1.0), (2, -1.0), (3, -0.5)],
        },
        "ndcg@5": {"ranked users": [(2, 0.25), (3, 0.5)]},
    }
    assert pictures([{"step": 1, "train_loss": 0.5}]) == {}
    assert "Nothing was logged" in page([], "")


def test_lines_go_through_the_values():
    lines = re.findall(r'<polyline [^>]*points="([^"]*)"', page(LOG, ""))
    assert lines[0] == f"0.0,0.0 {WIDTH}.0,{HEIGHT / 2}"  # 0.8 is the highest, 0.4 half of it
    # From -1 at the bottom to 3 at the top
    assert lines[2] == f"0.0,{0.75 * HEIGHT} {WIDTH / 2},{0.5 * HEIGHT} {WIDTH}.0,0.0"
    assert lines[4] == f"0.0,{HEIGHT / 2} {WIDTH}.0,0.0"


def test_text_is_text_and_nothing_is_loaded_from_elsewhere():
    text = page(LOG, ODD)
    assert "<script" not in text
    assert not re.search(r"(src|href)=|https?:|url\(|@import", text)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return model_and_data(tmp_path_factory.mktemp("given"))


def train(given, tmp_path, *more):
    main(
        [
            *("train", "--model_name_or_path", f"{given}/model", "--dataset_name", f"{given}/data"),
            *("--dataset_config", "preference", "--output_dir", f"{tmp_path}/out", "--max_steps", "4"),
            *("--use_cpu", "True", "--bf16", "False", "--report_to", "none", "--per_device_train_batch_size", "2"),
            *("--logging_steps", "1", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "no"),
            *("--ranking_data", f"{given}/data", "--report", f"{tmp_path}/report.html", "--disable_tqdm", "True"),
            *more,
        ]
    )


def test_train_writes_the_page(given, tmp_path, capsys):
    train(given, tmp_path)
    assert f"A page to look at is in {tmp_path}/report.html." in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    titles = re.findall(r"<h3>([^<]*)</h3>", text)
    assert titles[:2] == ["Loss", "Margins, in nats times beta"]
    assert "ndcg@5" in titles
    assert len(re.findall(r"<title>training, step \d", text)) == 4
    assert len(re.findall(r"<title>ranked users, step \d", text)) == 2 * (len(titles) - 2)
    train(given, tmp_path)  # its own page is replaced, as its model is
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(SystemExit, match=r"report\.html exists already, and `dmpo-trl train` did not write it"):
        train(given, tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    with pytest.raises(SystemExit, match=r"--report writes a page for a browser, FILE\.html, not 'curves\.pdf'"):
        train(given, tmp_path, "--report", "curves.pdf")


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(tmp_path):
    from selenium.webdriver.common.by import By

    (tmp_path / "report.html").write_text(page(LOG, ODD), encoding="utf-8")
    with chromium() as browser:
        browser.get((tmp_path / "report.html").as_uri())
        assert browser.title == "dmpo-trl: training"
        assert browser.find_element(By.TAG_NAME, "pre").text == ODD
        loss, margins, _ = browser.find_elements(By.TAG_NAME, "section")
        assert "training: 0.4 at the end" in loss.text
        first, last = loss.find_elements(By.CSS_SELECTOR, "circle.c0")
        picture = loss.find_element(By.TAG_NAME, "svg").rect
        height = (last.rect["y"] - first.rect["y"]) / picture["height"]
        assert height == pytest.approx(0.5, abs=0.03)  # 0.4 of 0.8
        cell = margins.find_element(By.TAG_NAME, "td")
        assert not cell.is_displayed()
        margins.find_element(By.TAG_NAME, "summary").click()
        assert cell.is_displayed()
        cells = [json.loads(cell.text) for cell in margins.find_elements(By.TAG_NAME, "td")]
        assert cells == [1, 0, 2, 1, 3, 3, 1, -1, 2, -1, 3, -0.5]
        colours = {"c0": "#2a6fdb", "c1": "#d9822b", "c2": "#2e9e5b", "c3": "#9b59b6"}
        for section in (loss, margins):  # each curve is drawn in its colour
            curves = {point.get_attribute("class") for point in section.find_elements(By.TAG_NAME, "circle")}
            assert colours_seen(section) & {*colours.values()} == {colours[curve] for curve in curves}
        assert hosts_asked(browser) == set()
