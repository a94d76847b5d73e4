"""The page in a real browser: paste, ask, read, search, by keyboard, on a phone, when things go
wrong. Needs Chromium or Chrome with its driver (Debian: chromium-driver); where there is none,
Selenium fetches one, and where it cannot, these tests are left out and pytest's last line tells."""

import shutil
import time

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_lens import make as make_lens
from test_serve import serving
from test_store import make_wire, pdf

from latentwire.lens.lens import Lens
from latentwire.serve import decoding, searching
from latentwire.serve.api import SearchAsked
from latentwire.serve.context import Contexts
from latentwire.serve.searching import last_step, outcome, searched
from latentwire.serve.store import Store
from latentwire.tasks.qa import ask

WIDER = """return [...document.querySelectorAll("*")]
    .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth)
    .map((e) => e.outerHTML.slice(0, 80))"""
"""Elements that stand out on the right."""
TEXT = "The lighthouse was finished in 1759 by John Smeaton."


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    try:
        browser = webdriver.Chrome(options, service)
    except WebDriverException as error:
        pytest.skip(f"no browser: {str(error.msg).splitlines()[0]}")
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    return Contexts(make_wire(), Store(tmp_path_factory.mktemp("page") / "store"))


@pytest.fixture(scope="module")
def url(contexts):
    with serving(contexts) as url:
        yield url


class Page:
    """What a user sees and does."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.set_window_size(1100, 900)
        browser.get("about:blank")  # else another fragment alone is no load
        browser.get(url)
        self.until(lambda: self("#model option") or self("#error").text)

    def __call__(self, selector):
        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, what):
        return WebDriverWait(self.browser, 300, poll_frequency=0.1).until(lambda _: what())

    def press(self, *keys):
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def compress(self, text=TEXT):
        self("#text").clear()
        self("#text").send_keys(text)
        self("#compress").click()
        self.until(lambda: self("#compress").is_enabled())

    def answers(self):
        """The three of the last question, when all are there."""
        self.until(lambda: self(".answer") and self("#send").is_enabled())
        cells = self.all(".turn:first-child .said")
        return [cell.get_property("textContent") for cell in cells]


@pytest.fixture
def page(browser, url):
    page = Page(browser, url)
    yield page
    noise = [e for e in browser.get_log("browser") if "status of" not in e["message"]]
    assert not noise


def test_paste_ask_and_read_three_answers(page, contexts):
    page.compress()
    assert page("#cost").text.startswith("52 tokens as 13 latents at 4x; message of ")
    spans = page.all("#tokens span")
    assert "".join(span.get_property("textContent") for span in spans) == TEXT
    shares = {span.value_of_css_property("background-color") for span in spans}
    assert len(shares) > 3
    page("#question").send_keys("Who?" + Keys.ENTER)
    latents, full, cut = page.answers()
    (message,) = contexts.wire.send([TEXT])
    expected = ask(contexts.wire, message, ["Who?"])[0]
    assert latents.startswith(expected.rstrip("\N{REPLACEMENT CHARACTER} "))
    assert len({latents, full, cut}) == 3
    figures = [figure.text for figure in page.all(".turn .figures")]
    assert figures[0].startswith("13 latents, ") and "tokens read" in figures[1]
    assert all("ms to the first word" in figure for figure in figures)


def test_the_keyboard_alone_is_enough(page):
    page("#text").send_keys(TEXT, Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page("#cost").text)
    page.until(lambda: page.browser.switch_to.active_element.get_attribute("id") == "question")
    page.press("Who?", Keys.ENTER)
    assert len(page.answers()) == 3
    page("#tab-ask").send_keys(Keys.ARROW_RIGHT)
    assert page("#lens").is_displayed() and not page("#ask").is_displayed()
    assert page.browser.switch_to.active_element.get_attribute("id") == "tab-lens"
    page.press(Keys.ARROW_RIGHT)
    assert page("#search").is_displayed() and not page("#lens").is_displayed()
    page.press(Keys.ARROW_RIGHT)
    assert page("#ask").is_displayed()


def test_a_pdf_is_uploaded_and_a_stored_document_is_asked_without_its_text(page, tmp_path):
    (tmp_path / "it.pdf").write_bytes(pdf("John Smeaton built it."))
    page("#file").send_keys(str(tmp_path / "it.pdf"))
    page("#compress").click()
    page.until(lambda: "John Smeaton built it." in page("#tokens").text)
    page("#question").send_keys("Who?" + Keys.ENTER)
    assert len(page.answers()) == 3
    again = Page(page.browser, page.browser.current_url)
    again.until(lambda: len(again.all("#stored option")) > 1)
    for option in again.all("#stored option"):
        if option.text == "it.pdf":
            option.click()
    again("#question").send_keys("Who?" + Keys.ENTER)
    assert len(again.answers()) == 1 and not again("#tokens").is_displayed()


@pytest.mark.parametrize("text", ["", "word " * 300])
def test_what_is_wrong_is_told_in_words(page, text):
    if text:
        page.compress(text)
        assert "1500 tokens; at most" in page("#error").text
    else:
        page("#compress").click()
        assert page("#error").text == "There is no text yet: paste one, or upload a document."
    assert page("#error").get_attribute("role") == "alert"
    page.compress()
    assert not page("#error").is_displayed() and page("#cost").text


def test_answers_stream_and_can_be_stopped(page, monkeypatch):
    advance = decoding.advance
    monkeypatch.setattr(decoding, "advance", lambda lm, p: time.sleep(0.1) or advance(lm, p))
    page.compress()
    page("#soft").click()
    page("#question").send_keys("Who?" + Keys.ENTER)
    lengths = set()
    page.until(lambda: lengths.add(len(page(".said").text)) or len(lengths) > 4)
    page("#stop").click()
    answers = page.answers()
    assert answers[0].endswith("(stopped)") and len(answers[0]) < 250


def test_a_key_is_taken_from_the_address(browser, contexts):
    with serving(contexts, api_key="secret") as url:
        page = Page(browser, url)
        assert "This server has a key" in page("#error").text
        page = Page(browser, f"{url}/#key=secret")
        page.compress()
        assert page("#cost").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phones_width_and_both_schemes(page, scheme):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.compress()
        page("#question").send_keys("Who?" + Keys.ENTER)
        page.answers()
        for tab in ("ask", "lens", "search"):
            page(f"#tab-{tab}").click()
            assert page.browser.execute_script(WIDER) == []
        back = page("body").value_of_css_property("background-color")
        assert back == {"light": "rgba(251, 250, 247, 1)", "dark": "rgba(20, 23, 27, 1)"}[scheme]
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_word_is_looked_at_and_its_words_are_edited(page, monkeypatch):
    lens = make_lens()
    monkeypatch.setattr(Lens, "from_pretrained", classmethod(lambda *_: lens))
    page("#tab-lens").click()
    page("#sentence").clear()
    page("#sentence").send_keys("Danube" + Keys.ENTER)
    page.until(lambda: len(page.all("#pieces button")) == 6)
    page.all("#pieces button")[4].click()
    page.until(lambda: page("#explained").is_displayed())
    assert page("#at").text == "b" and "% of the activation's variance" in page("#variance").text
    before = page("#before").text
    assert len(page.all("#before li")) == len(page.all("#after li")) == 5
    page("#edited").clear()
    page("#edited").send_keys("a river" + Keys.ENTER)
    page.until(lambda: page("#edit-form button").is_enabled())
    assert page("#before").text == before and len(page.all("#after li")) == 5


def test_a_search_shows_its_steps_as_they_are_made(page, contexts):
    page("#tab-search").click()
    page("#wanted").clear()
    page("#wanted").send_keys("Who?")
    page("#count").clear()
    page("#count").send_keys("3" + Keys.ENTER)
    page.until(lambda: page("#best").text)
    asked = SearchAsked(model="tiny-llama", question="Who?", steps=3)
    seen = []
    found = searched(
        contexts.lm(), asked, lambda found: seen.append(last_step(contexts.lm(), found))
    )
    figures = [line.text for line in page.all("#steps .figures")]
    assert len(figures) == len(seen) == len(found.trace) > 1
    for told, step in zip(figures, seen, strict=True):
        assert told.startswith(f"step {step['step']}: reward {step['reward']:.3f}, ")
    assert [len(item.find_elements(By.CSS_SELECTOR, "mark")) for item in page.all("#steps li")] == [
        sum(flipped for _, flipped in step["pieces"]) for step in seen
    ]
    words = "".join(piece for piece, _ in seen[0]["pieces"])
    assert page("#steps .said").get_property("textContent") == words
    best = outcome(found)["best"]
    assert page(".best").get_attribute("data-step") == str(best)
    assert page("#best").text.startswith(f"The best answer is that of step {best}, with reward ")


def test_a_search_is_stopped_rates_an_answer_and_tells_what_is_wrong(page, monkeypatch):
    page("#tab-search").click()
    page("#wanted").clear()
    page("#search-form [type=submit]").click()
    assert page("#error").text == "There is no question yet."
    page("#wanted").send_keys("Who?")
    page("#gold").send_keys("nobody says this" + Keys.ENTER)
    page.until(lambda: page("#best").text)
    assert {line.text.split(",")[0].split()[-1] for line in page.all("#steps .figures")} == {
        "-1.000"
    }
    make = searching.last_step
    monkeypatch.setattr(searching, "last_step", lambda *a: time.sleep(0.5) or make(*a))
    page("#gold").send_keys(Keys.ENTER)
    page.until(lambda: page.all("#steps li"))
    page("#halt").click()
    page.until(lambda: page("#best").text == "Stopped.")
    assert len(page.all("#steps li")) < 6 and page("#search-form [type=submit]").is_enabled()
