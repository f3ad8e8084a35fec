"""The page in a headless Chromium, against a real server."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from dit_cache_backends.compare import measures
from tests.serve.conftest import Served
from tests.serve.held import Held, until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="THE PAGE IS NOT TESTED: no Chromium with a ChromeDriver is installed"
    " (Debian: apt-get install chromium chromium-driver)",
)

# Without these Chromium asks for updates and name servers all the while.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1500",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    def __init__(self, browser: webdriver.Chrome, served: Served) -> None:
        self.browser = browser
        browser.get(served.url)
        self.wait(lambda: self.find("#backend option") or self.find("#problem").is_displayed())

    def find(self, selector: str) -> Any:
        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    def wait(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 60).until(lambda _: condition())

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self.find(f"#{name}").clear()
            self.find(f"#{name}").send_keys(text)

    def draw(self) -> None:
        self.find("#draw").click()

    def ended(self) -> None:
        self.wait(lambda: self.find("#draw").is_enabled())

    def problem(self) -> str:
        self.wait(lambda: self.find("#problem").is_displayed())
        return str(self.find("#problem").text)

    def picture(self, name: str) -> Any:
        import io

        from PIL import Image

        source = self.find(f"#{name} img").get_attribute("src")
        return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_a_prompt_gives_both_pictures_their_speed_and_the_map_of_what_was_skipped(
    browser: webdriver.Chrome, serve: Callable[..., Served]
) -> None:
    served = serve(cache_backend="cache_dit")
    page = Page(browser, served)
    page.fill(prompt="a small orange triangle on a green background", steps="10", seed="4")
    page.fill(config='{"residual_diff_threshold": 0.5, "max_warmup_steps": 3}')
    page.draw()
    page.wait(lambda: page.find("#verdict").is_displayed() or page.find("#problem").is_displayed())
    assert page.find("#problem").text == ""
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / "page.png"))

    # Both are the server's, and the page measures between them what we do.
    dense, cached = page.picture("dense"), page.picture("cached")
    assert dense.size == cached.size == (64, 64)
    assert all(page.find(f"#{name} img").is_displayed() for name in ("dense", "cached"))
    psnr = float(re.fullmatch(r"([\d.]+) dB", page.find("#psnr").text)[1])
    assert psnr == pytest.approx(measures.psnr(dense, cached), abs=0.051)
    assert re.fullmatch(r"\d+\.\d\dx", page.find("#speed-up").text)

    # The map has a cell for each block of each step, and says what the server counted.
    asked = {"cache_backend": "cache_dit", "num_inference_steps": 10, "seed": 4}
    told = served.ask(
        prompt="a small orange triangle on a green background",
        cache_config={"residual_diff_threshold": 0.5, "max_warmup_steps": 3},
        **asked,
    ).json()["cache"]
    cells = {
        kind: len(browser.find_elements(By.CSS_SELECTOR, f"#skip-map rect.{kind}"))
        for kind in ("run", "skip")
    }
    assert cells == {"run": told["blocks_run"], "skip": told["blocks_skipped"]}
    # Fn_compute_blocks is 1, so the first block runs at every step and the other eleven are skipped together.
    find_titles = (
        "return [...document.querySelectorAll('#skip-map rect.skip title')].map((each) => each.textContent)"
    )
    titles = [
        re.match(r"step (\d+), block (\d+): skipped", each) for each in browser.execute_script(find_titles)
    ]
    assert {int(each[2]) for each in titles if each} == set(range(2, 13))
    assert all(titles)
    assert told["blocks_skipped"] > 0
    steps = ", ".join(map(str, told["images"][0]["cached_steps"]))
    assert page.find("#skip-map").get_attribute("aria-label") == (
        f"10 steps of 12 blocks: {told['blocks_run']} blocks ran, {told['blocks_skipped']} were skipped,"
        f" in steps {steps}"
    )
    assert page.find("#skipped").text == f"{told['blocks_skipped']} of 120"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#map tbody tr")) == 10
    assert browser.get_log("browser") == []


def test_progress_is_shown_and_stop_frees_the_server(
    browser: webdriver.Chrome, serve: Callable[..., Served], held: Held
) -> None:
    served = serve(cache_backend="cache_dit")
    page = Page(browser, served)
    page.draw()
    held.reached()
    assert not page.find("#draw").is_enabled()
    page.find("#stop").click()
    assert page.problem() == "Stopped."
    assert page.find("#cached .told").text == "Not drawn."
    until(lambda: served.engine.stats().cancelled == 1)
    held.let_go()
    served.free()
    page.draw()
    page.wait(lambda: page.find("#verdict").is_displayed())
    bar = page.find("#dense progress")
    assert bar.get_attribute("value") == bar.get_attribute("max") == "28"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{residual", "not valid JSON"),
        ("[1]", "a JSON object"),
        ('{"residual_diff_treshold": 1}', "Did you mean 'residual_diff_threshold'"),
    ],
)
def test_a_mistake_is_told_where_a_reader_sees_it(
    browser: webdriver.Chrome, served: Served, config: str, words: str
) -> None:
    page = Page(browser, served)
    page.fill(config=config, steps="2")
    page.draw()
    assert words in page.problem()
    page.ended()
    assert page.find("#problem").get_attribute("role") == "alert"
    assert not page.find("#verdict").is_displayed()
    browser.get_log("browser")  # Chromium notes the refusal there


def test_another_backend_brings_its_own_options(browser: webdriver.Chrome, served: Served) -> None:
    page = Page(browser, served)
    assert page.find("#config").get_attribute("value") == '{"max_warmup_steps":2}'
    Select(page.find("#backend")).select_by_value("tea_cache")
    assert page.find("#config").get_attribute("value") == ""
    page.find("#options summary").click()
    assert "rel_l1_thresh" in page.find("#options dl").text


def test_a_locked_server_is_opened_with_the_key(
    browser: webdriver.Chrome, serve: Callable[..., Served]
) -> None:
    served = serve(api_key="sesame")
    page = Page(browser, served)
    assert "wants an API key" in page.problem()
    page.fill(key="sesame")
    page.find("#key").send_keys("\t")
    page.wait(lambda: page.find("#backend option"))
    page.fill(steps="2")
    page.draw()
    page.wait(lambda: page.find("#verdict").is_displayed())
    browser.get_log("browser")


def test_everything_on_the_page_has_a_name_for_who_cannot_see_it(
    browser: webdriver.Chrome, served: Served
) -> None:
    page = Page(browser, served)
    for control in browser.find_elements(
        By.CSS_SELECTOR, "input, select, textarea, button, progress, form, svg"
    ):
        if control.tag_name == "svg":
            continue  # named once it is drawn, as another test sees
        hidden = control.get_attribute("id") == "key"
        assert control.accessible_name or hidden, control.get_attribute("outerHTML")
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    assert page.find("h1").text
