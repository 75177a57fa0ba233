"""The page in a real Chromium, headless: what a person does with it, and what they read."""

import base64
import io
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from hippo.bench.world import make_scene, write_clip
from hippo.checkpoints import BUNDLED
from hippo.engine import State
from hippo.pruning import RATIOS
from hippo.serve.media import MediaPolicy
from hippo.serve.service import Service
from tests.serve.conftest import serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service as Driver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CLIP = BUNDLED / "demo.mp4"
QUESTION = "Describe the video in detail."
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver")

DROP = """
const [name, data] = arguments, bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, {type: "video/mp4"}));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: carried}));
"""
STOP_AT_THE_FIRST_WORD = """
new MutationObserver((_, observer) => {
  if (!document.querySelector(".turn .token")) return;
  observer.disconnect();
  document.getElementById("stop").click();
}).observe(document.getElementById("turns"), {childList: true, subtree: true});
"""


class Browser:
    """A person at the page."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        driver.get(url)
        self.until(lambda: self.text("model") not in ("", "Connecting"))

    def by(self, id):
        return self.driver.find_element(By.ID, id)

    def text(self, id):
        return self.by(id).text

    def until(self, condition, seconds=60):
        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def sample(self):
        self.by("sample").click()
        self.until(lambda: self.text("chosen") == "The sample clip")

    def ask(self, question=QUESTION, keys=Keys.ENTER):
        turns = len(self.all(".turn"))
        self.by("question").clear()
        self.by("question").send_keys(question + keys)
        self.until(lambda: len(self.all(".turn")) > turns)

    def answered(self):
        self.until(lambda: self.text("status") in ("Done", "Stopped") or self.text("error"))
        assert self.text("error") == ""

    def words(self):
        return [one.get_property("textContent") for one in self.all(".words")]

    def numbers(self):
        """Those of the last answer, by their names."""
        rows = [one.text.splitlines() for one in self.all(".turn:last-child .answer:last-child .numbers div")]
        return dict(rows)

    def picture(self, element=None):
        png = self.driver.get_screenshot_as_png() if element is None else element.screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def narrow(self, dark=False):
        size = {"width": 400, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def violations(self):
        axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
        self.driver.execute_script(Path(axe.__file__).with_name("axe.min.js").read_text())
        found = self.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")["violations"]
        return [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


@contextmanager
def served(llm, *keys, **options):
    """A server's URL."""
    with serving(Service(llm, "tiny", MediaPolicy()), keys=keys, **options) as url:
        yield f"{url}/"


@pytest.fixture(scope="module")
def url(tiny):
    with served(tiny) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1100"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium, url):
    yield Browser(chromium, url)
    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        chromium.execute_cdp_cmd(command, {})
    problems = [line["message"] for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in problems if "/v1/" not in line] == []  # refused requests are logged, and shown


def test_the_sample_clip_answered_in_generates_words(page, tiny):
    page.sample()
    page.ask()
    page.answered()
    expected = tiny.generate(CLIP)
    assert page.words() == [expected.text]
    drafted, own = page.all(".turn .token.drafted"), page.all(".turn .token:not(.drafted)")
    assert drafted and own
    lines = [one.value_of_css_property("text-decoration-line") for one in (drafted[0], own[0])]
    assert lines == ["underline", "none"]  # not by colour alone
    assert "Shaded and underlined" in page.text("legend")
    numbers = page.numbers()
    assert numbers["tokens"] == str(len(expected.token_ids))
    assert float(numbers["tokens a second"]) > 1 and 0 < float(numbers["time to first token"].split()[0]) < 60
    accepted, checked = map(int, numbers["accepted of checked"].split(" / "))
    assert 0 < accepted <= checked
    assert numbers["from the draft"] == f"{round(100 * accepted / len(expected.token_ids))} %"
    tokens = expected.stats.video_tokens
    assert numbers["video tokens kept"] in {f"{round(ratio * tokens)} / {tokens}" for ratio in RATIOS}


def test_a_dropped_clip(page, tiny, tmp_path):
    write_clip(make_scene(90020), tmp_path / "own.mp4")
    data = base64.b64encode((tmp_path / "own.mp4").read_bytes()).decode()
    page.driver.execute_script(DROP, "own.mp4", data)
    page.until(lambda: page.text("chosen") == "own.mp4")
    page.ask()
    page.answered()
    assert page.words() == [tiny.generate(tmp_path / "own.mp4").text]


def test_a_chosen_file_and_a_follow_up_on_it(page, tiny, tmp_path):
    write_clip(make_scene(90002), tmp_path / "file.mp4")
    page.by("file").send_keys(str(tmp_path / "file.mp4"))
    page.until(lambda: page.text("chosen") == "file.mp4")
    chat = tiny.open(tmp_path / "file.mp4")
    for question in (QUESTION, "What moves?"):
        page.ask(question)
        page.answered()
        assert page.words()[-1] == chat.ask(question).text
    known, prompt = map(int, page.numbers()["prompt tokens cached"].split(" / "))
    assert known > prompt // 2
    page.by("clear").click()
    assert page.all(".turn") == []


def test_compare_shows_both_with_the_same_words(page, tiny):
    page.sample()
    page.by("compare").click()
    page.ask()
    page.answered()
    alone, both = page.words()
    assert alone == both == tiny.generate(CLIP, method="ar").text
    assert [one.get_attribute("data-method") for one in page.all(".answer")] == ["ar", "hippo"]
    assert page.all(".answer")[0].find_elements(By.CSS_SELECTOR, ".drafted") == []
    verdict = page.all(".verdict")[0].text
    assert verdict.startswith("The words are the same. hippo made ") and "one after the other" in verdict
    left, right = (one.rect for one in page.all(".answer"))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]


def test_frames_with_kept_tokens_lit_and_a_slider(page, tiny):
    page.sample()
    page.ask()
    page.answered()
    frame, slider = page.by("frame"), page.by("slider")
    page.until(frame.is_displayed)
    (grid,) = tiny.generate(CLIP, max_new_tokens=2).kept.grids
    assert int(slider.get_attribute("max")) == grid.frames - 1
    texts = []
    for _ in range(grid.frames):
        texts.append(page.text("frame-text"))
        slider.send_keys(Keys.ARROW_RIGHT)
    counts = [int(text.split("sees ")[1].split()[0]) for text in texts]
    assert len(set(texts)) == len(texts) and f"({sum(counts)} in all frames)" in texts[0]
    assert sum(counts) in {round(ratio * grid.tokens) for ratio in RATIOS}
    small = page.by("all-frames")  # two lines of four
    x, y = small.size["width"] // 8, small.size["height"] // 4  # from its middle
    ActionChains(page.driver).move_to_element_with_offset(small, x, y).click().perform()
    assert page.text("frame-text") == texts[6]
    dark = page.picture(frame).mean()
    page.by("clear").click()
    page.by("method").send_keys("ar")
    page.ask()
    page.answered()
    page.until(frame.is_displayed)
    assert dark < 0.8 * page.picture(frame).mean()


def test_the_strip_is_drawn(page):
    page.sample()
    page.ask()
    page.answered()
    (strip,) = page.all(".strip canvas")
    assert "the target made" in strip.get_attribute("aria-label")
    colours = {tuple(pixel) for pixel in page.picture(strip).reshape(-1, 3)}
    assert (0x3D, 0x4C, 0x94) in colours and (0x0B, 0x6E, 0x5F) in colours  # both lanes, in light mode


def test_stop_ends_the_answer(page, tiny, monkeypatch):
    cancel, found = tiny.engine.cancel, []
    monkeypatch.setattr(tiny.engine, "cancel", lambda job, **how: [found.append(job.state), cancel(job, **how)])
    step = tiny.engine.step
    monkeypatch.setattr(tiny.engine, "step", lambda: (time.sleep(0.1), step()))  # it does not end before
    page.sample()
    page.driver.execute_script(STOP_AT_THE_FIRST_WORD)
    page.ask()
    page.answered()
    assert page.text("status") == "Stopped"
    page.until(lambda: not tiny.engine.scheduler.jobs)
    assert State.DECODING in found, "the server cancelled it"
    begun = page.words()[0]
    page.ask()
    page.answered()
    whole = page.words()[1]
    assert whole.startswith(begun) and 0 < len(begun) < len(whole)


def test_by_keyboard_alone(page):
    """Every control is reached by the Tab key, and an answer is asked for without a pointer."""
    reached = set()
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.add(page.driver.switch_to.active_element.get_attribute("id"))
    assert {"file", "sample", "question", "send", "compare", "method", "keep", "clear"} <= reached
    page.by("sample").send_keys(Keys.ENTER)
    page.until(lambda: page.text("chosen") == "The sample clip")
    page.by("send").send_keys(Keys.ENTER)
    page.answered()


def test_a_question_without_a_video_says_what_is_missing(page):
    page.by("question").send_keys(Keys.ENTER)
    assert "Choose a video" in page.text("error") and page.all(".turn") == []


def test_what_the_server_refuses_is_shown_as_text(page):
    page.driver.execute_script(DROP, "<b>x</b>.mp4", base64.b64encode(b"no video at all").decode())
    page.until(lambda: page.text("chosen") == "<b>x</b>.mp4")
    page.ask("<img src=x onerror=alert(1)>")
    page.until(lambda: page.text("error"))
    assert page.all(".turn img") == [] and page.all(".turn h3")[0].text == "<img src=x onerror=alert(1)>"


def test_an_api_key_is_asked_for_and_kept_in_memory_only(chromium, tiny):
    with served(tiny, "secret") as url:
        use_a_key(Browser(chromium, url))
    chromium.get_log("browser")  # holds the refusals


def use_a_key(page):
    assert page.by("key-form").is_displayed()
    page.by("key").send_keys("wrong" + Keys.ENTER)
    page.until(lambda: page.text("model") == "Not connected" and page.by("key-form").is_displayed())
    page.by("key").send_keys("secret" + Keys.ENTER)
    page.until(lambda: not page.by("key-form").is_displayed())
    page.sample()
    page.ask()
    page.answered()
    assert page.driver.execute_script("return [localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    assert page.by("key").get_property("value") == ""


def test_the_files_have_a_strict_policy_and_there_are_no_others(url):
    with urlopen(url) as answer:
        policy, body = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "http" not in body and "style=" not in body and "<script>" not in body
    for name in ("page/__init__.py", "page/..%2f__init__.py", "page/%2e%2e/__init__.py", "page/index.html/x", "page/"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(url + name)


def test_a_server_without_the_page(tiny):
    with served(tiny, with_page=False) as url:
        for name in ("", "page/style.css", "page/sample.mp4"):
            with pytest.raises(HTTPError, match="404"):
                urlopen(url + name)


@pytest.mark.parametrize("dark", [False, True])
def test_narrow_and_dark_it_is_readable_and_accessible(page, dark):
    page.narrow(dark)
    page.sample()
    page.by("compare").click()
    page.ask()
    page.answered()
    page.until(page.by("frame").is_displayed)
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth && innerWidth == 400")
    assert page.violations() == []
    picture = page.picture()
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    assert (picture.mean() < 100) == dark
    if folder := os.environ.get("HIPPO_SCREENSHOTS"):
        Image.fromarray(picture).save(Path(folder) / f"narrow-{dark}.png")


def test_wide_it_is_accessible_and_not_blank(page):
    page.sample()
    page.by("compare").click()
    page.ask()
    page.answered()
    assert page.violations() == []
    assert len(np.unique(page.picture().reshape(-1, 3), axis=0)) > 500
