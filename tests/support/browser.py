"""A headless Chromium, where chromium and chromedriver are installed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs chromium-driver"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Gives a browser; at the end nothing may have been written to its console as an error."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as browser:
        yield browser
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def colours_seen(element: Any) -> set[str]:
    """The colours of a screenshot of the element, without those of fewer than ten pixels."""
    image = Image.open(BytesIO(element.screenshot_as_png)).convert("RGB")
    counted = image.getcolors(image.width * image.height)
    return {f"#{red:02x}{green:02x}{blue:02x}" for count, (red, green, blue) in counted if count >= 10}


def hosts_asked(browser: Any) -> set[str]:
    """The hosts that pages asked for something since this was called last."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    urls = [urlsplit(one["request"]["url"]) for one in sent]
    return {url.hostname for url in urls if url.scheme not in ("data", "blob", "chrome") and url.hostname}
