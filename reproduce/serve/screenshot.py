"""Pictures of the page of `latentwire serve` for README, light and dark: the shipped wire and a
question about docs/titicaca.txt, in a headless Chromium (Debian: chromium-driver).

    python reproduce/serve/screenshot.py docs
"""

import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

TEXT = Path(__file__).parents[2] / "docs/titicaca.txt"
QUESTION = "Which river carries water out of the lake?"
BAR = 150
"""Pixels of the window that are the browser's own."""


def main(folder: str) -> None:
    command = [sys.executable, "-m", "latentwire", "serve", "--port", "0"]
    with tempfile.TemporaryDirectory() as store:
        server = subprocess.Popen([*command, "--store", store], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            for scheme in ("light", "dark"):
                picture(url, scheme, Path(folder) / f"page-{scheme}.webp")
        finally:
            server.kill()


def picture(url: str, scheme: str, path: Path) -> None:
    """Compress, ask, and photograph what the page shows once all three answers are there."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.set_window_size(1000, 1000)
        browser.get(url)
        wait = WebDriverWait(browser, 600)

        def one(selector: str):
            return browser.find_element(By.CSS_SELECTOR, selector)

        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#model option"))
        one("#text").send_keys(TEXT.read_text())
        one("#compress").click()
        wait.until(lambda _: one("#cost").text and one("#compress").is_enabled())
        one("#question").send_keys(QUESTION)
        one("#send").click()
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".answer"))
        wait.until(lambda _: one("#send").is_enabled())
        browser.set_window_size(1000, one("html").get_property("scrollHeight") + BAR)
        taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 80})
        path.write_bytes(base64.b64decode(taken["data"]))
    finally:
        browser.quit()


if __name__ == "__main__":
    main(sys.argv[1])
