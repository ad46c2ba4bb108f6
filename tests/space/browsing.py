"""What the tests in a browser and the screenshot share: the browser, and what a person does on the page."""

import re
import shutil
from contextlib import contextmanager
from pathlib import Path

SPACE = Path(__file__).resolve().parents[2] / "hub_cards" / "space"
EXAMPLES = SPACE / "examples"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds until a step is given up; a busy machine takes seconds for one


def find_browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser():
    """Playwright's browser on the system's Chromium: a package of the distribution, nothing is downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]  # root and containers have no sandbox
        opened = playwright.chromium.launch(executable_path=find_browser(), args=arguments)
        try:
            yield opened
        finally:
            opened.close()


def open_page(browser, url: str, **options):
    """The page in a context of its own: another person's browser."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_role("button", name="Describe the image").wait_for()
    return page


def upload(page, file, arrives: bool = True) -> None:
    page.set_input_files("#image input[type=file]", file)
    if arrives:
        page.wait_for_selector("#image img", state="attached")


def click(page, tab: str, button: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_role("button", name=button, exact=True).click()


def wait_for_total(page) -> str:
    """The line with the latency, once the answer is whole."""
    page.locator("#speed").filter(has_text=re.compile("total")).wait_for()
    return page.inner_text("#speed")


def ask(page, question: str) -> None:
    page.get_by_role("tab", name="Ask", exact=True).click()
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def messages(page, of: str | None = None) -> list[str]:
    """What stands in the talk; `of` is "user" or "bot", default both."""
    selector = f"#talk [data-testid={of}]" if of else "#talk [data-testid=user], #talk [data-testid=bot]"
    return [text.strip() for text in page.locator(selector).all_inner_texts()]
