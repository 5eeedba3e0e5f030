"""`dmpo-trl demo` as a process, in a real browser; its bars; and what it refuses."""

import re
import runpy
import socket
import subprocess
import sys
import tomllib

import numpy as np
import polars as pl
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from support import ROOT, cpu_environment, follow, save_model
from support.browser import chromium, colours_seen, hosts_asked, needs_browser
from support.prepared import model_and_data

from dmpo_trl.cli import main
from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Explanation, Recommender

pytest.importorskip("gradio")

ODD = "<script>document.title='changed'</script> \"quoted\" & 'it' <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models with the same catalogue, in which one title looks like HTML and two are alike."""
    folder = tmp_path_factory.mktemp("demo")
    titles = ["Alien", "Aliens", "Babe", "Heidi", ODD, "Twin", "Twin", *(f"Film {number}" for number in range(10))]
    items = pl.DataFrame({"item": [f"i{place}" for place in range(len(titles))], "title": titles})
    for name, seed in (("dmpo", 0), ("sft", 1)):
        save_model(folder / name, seed=seed)
        recommender = Recommender.from_pretrained(folder / name, items=items, template=MOVIES.plain())
        recommender.save_catalogue(folder / name)
    return folder


def test_bars_stand_for_the_effects_and_titles_are_text():
    from dmpo_trl.cli._demo import effect_bars

    effects = np.array([-0.5, 0.25])
    text = effect_bars(Explanation("7", ODD, -3.5, ("1", "2"), ("Alien", ODD), effects, words=""))
    assert "<script>" not in text
    assert "<img" not in text
    titles = re.findall(r'title="([^"]*)"', text)
    assert [title[:5] for title in titles] == ["&lt;s", "Alien"]  # from the most positive on
    # From the middle, 50, on a scale to the largest effect
    found = re.findall(r'class="(for|against)" x="([\d.]+)" y="2" width="([\d.]+)"', text)
    assert found == [("for", "50.00", "25.00"), ("against", "0.00", "50.00")]


def test_models_of_different_catalogues_are_refused(folder):
    from dmpo_trl.cli._demo import demo_page

    own = Recommender.from_pretrained(folder / "dmpo")
    items = pl.DataFrame({"item": ["1"], "title": ["Alien"]})
    other = Recommender.from_pretrained(folder / "sft", items=items, template=MOVIES.plain())
    with pytest.raises(ValueError, match="different catalogues"):
        demo_page({"a": own, "b": other})


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=rf"Nothing can listen at --host 127\.0\.0\.1 --port {port}: .*in use"):
            main(["demo", "--model", "no such model", "--port", port])


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "dmpo_trl.cli._demo", raising=False)
    with pytest.raises(SystemExit, match=r"needs gradio: pip install '\.\[demo\]'"):
        main(["demo", "--model", "no such model"])


def test_the_page_of_the_docs_does_what_it_says(folder, tmp_path, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: launched.append(options))
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: None)
    monkeypatch.chdir(tmp_path)
    given = model_and_data(tmp_path / "given")  # no catalogue lies beside this model, as beside none of `trl sft`
    save_model(given / "sft", seed=1)
    own = {"outputs/dmpo": f"{given}/model", "outputs/sft": f"{given}/sft", "--data data": f"--data {given}/data"}
    own["you/your-model"] = f"{folder}/dmpo"
    follow(ROOT / "docs" / "demo.md", own)
    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert header["sdk"] == "gradio"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (gradio,) = map(Requirement, project["optional-dependencies"]["demo"])
    assert header["sdk_version"] in gradio.specifier
    assert header["python_version"] in SpecifierSet(project["requires-python"])
    runpy.run_path(header["app_file"])
    assert [own["server_name"] for own in launched] == ["127.0.0.1", "0.0.0.0"]
    assert not any(own["share"] for own in launched)
    assert capsys.readouterr().out.count("The page is at http://") == 2


@pytest.fixture
def address(folder, tmp_path):
    """Of the page with both models, shown by a process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "dmpo_trl.cli", "demo", "--model", f"{folder}/dmpo"]
    log = tmp_path / "log"
    with log.open("w") as errors:  # a pipe that nobody reads would be full one day, and stop the process
        process = subprocess.Popen(
            [*command, "--baseline", f"{folder}/sft", "--port", port],
            env=cpu_environment() | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    said = process.stdout.readline()
    assert f"The page is at http://127.0.0.1:{port}." in said, log.read_text()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(address, folder):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    models = [Recommender.from_pretrained(folder / name) for name in ("dmpo", "sft")]
    with chromium() as browser:

        def wait(condition):
            return WebDriverWait(browser, 180).until(lambda _: condition())

        def all_of(selector):
            return browser.find_elements(By.CSS_SELECTOR, selector)

        def listed(place):
            return [one.text for one in all_of(f"#found{place} label")]

        browser.get(address)
        (field,) = wait(lambda: all_of("#history input"))

        def pick(typed, title):
            field.click()
            field.send_keys(typed)
            shown = wait(lambda: [one for one in all_of("[role=option]") if typed in one.text.lower()])
            next(one for one in shown if title in (one.text, one.text.splitlines()[-1])).click()

        pick("alie", "Alien")
        pick('"quo', ODD)
        field.send_keys(Keys.ESCAPE)
        wait(lambda: not all_of("[role=option]"))  # what closes under a click moves what is clicked
        browser.find_element(By.CSS_SELECTOR, "#ask").click()
        wait(lambda: listed(0) and listed(1))
        history = ["Alien", ODD]
        for place, model in enumerate(models):
            expected = [
                f"{number}. {one.title} ({one.score:.2f})" for number, one in enumerate(model.recommend(history, 5), 1)
            ]
            assert listed(place) == expected
        assert listed(0) != listed(1)
        all_of("#found1 label")[1].click()
        wait(lambda: all_of("#why1 .effects svg"))
        explanation = models[1].explain(history, models[1].recommend(history, 5)[1].item)
        bars = all_of("#why1 .effects div")
        shown = {bar.find_elements(By.TAG_NAME, "span")[0].get_attribute("title"): bar.text for bar in bars}
        assert list(shown) == [history[place] for place in np.argsort(-explanation.effects)]
        for title, effect in zip(history, explanation.effects, strict=True):
            assert f"{effect:+.3f}" in shown[title]
        colours = {"#2e9e5b" if effect >= 0 else "#c8553d" for effect in explanation.effects if effect}
        assert colours_seen(all_of("#why1")[0]) & {"#2e9e5b", "#c8553d"} == colours
        assert all_of("#why0 .effects") == []
        assert all_of("img[src=x]") == []
        assert browser.title == "dmpo-trl: recommendations"  # which a title tries to change
        pick("babe", "Babe")  # another history: what was recommended after the first is gone
        wait(lambda: listed(0) == listed(1) == [])
        assert all_of("#why1 .effects") == []
        assert hosts_asked(browser) == {"127.0.0.1"}


def test_a_history_that_cannot_be_asked_with_is_said_on_the_page(folder, monkeypatch):
    from dmpo_trl.cli._demo import demo_page

    own = Recommender.from_pretrained(folder / "dmpo")
    monkeypatch.setattr(own, "recommend", lambda *_, **__: (_ for _ in ()).throw(ValueError("<too long>")))
    page = demo_page({"model": own})
    (recommend,) = (one.fn for one in page.fns.values() if one.fn is not None and one.fn.__name__ == "recommend")
    assert recommend(["i0"], 3)[1] == "&lt;too long&gt;"
