"""The Space in a real browser: upload, every task, boxes, streaming, bad files, two people at once.

Without Chromium or playwright they are skipped, and say so.
"""

import re
import threading

import pytest
from browsing import EXAMPLES, ask, click, messages, open_page, upload, wait_for_total

SCENE, OTHER = EXAMPLES / "scene.png", EXAMPLES / "overlap.png"


@pytest.fixture
def page(chromium, url):
    page = open_page(chromium, url, viewport={"width": 1280, "height": 860})
    page.outside = []
    page.on("request", lambda request: page.outside.append(request.url))
    yield page
    page.context.close()


def test_every_task_on_one_image(page, url):
    upload(page, SCENE)
    click(page, "Describe", "Describe the image")
    assert "288 x 288" in wait_for_total(page) and "first token" in page.inner_text("#speed")
    assert page.input_value("#caption textarea").strip()

    click(page, "Everything", "Box and caption everything")
    page.wait_for_selector("#located img")
    names = page.locator("#located .legend-item").all_inner_texts()
    assert names and all(name.strip() for name in names)
    assert page.locator("#located img").count() == 1 + len(names)  # the picture, and a box for each name
    assert "kept" in wait_for_total(page)  # it was not encoded again
    page.get_by_role("tab", name="Labels", exact=True).locator("visible=true").click()
    page.wait_for_selector("#located-drawn img")
    page.get_by_role("tab", name="Table", exact=True).locator("visible=true").click()
    page.locator("#located-table").get_by_text(names[0].strip(), exact=True).locator("visible=true").first.wait_for()

    page.get_by_role("tab", name="Find", exact=True).click()
    page.fill("#phrases textarea", "cat, red circle")
    click(page, "Find", "Find")
    page.wait_for_selector("#found img")
    assert not [each for each in page.outside if not each.startswith((url, "data:", "blob:"))]  # nobody else is asked


def test_answers_are_streamed_in_a_talk_about_one_image(page):
    upload(page, SCENE)
    page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const said = [...document.querySelectorAll('#talk [data-testid="bot"]')].at(-1)?.innerText.trim();
                if (said && said !== window.seen.at(-1)) window.seen.push(said);
            };
            new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
        }"""
    )
    ask(page, "Describe the image.")
    wait_for_total(page)
    assert messages(page, "user") == ["Describe the image."] and len(messages(page)) == 2
    seen = page.evaluate("window.seen")
    assert len(seen) > 2 and len(seen[1]) < len(seen[-1])  # it grew before the person's eyes
    ask(page, "How many objects are there?")
    page.locator("#talk [data-testid=bot]").nth(1).wait_for()
    page.locator("#speed").filter(has_text=re.compile("total.*kept")).wait_for()
    assert len(messages(page)) == 4
    upload_again(page, OTHER)
    page.wait_for_function(
        "document.querySelectorAll('#talk [data-testid=bot]').length === 0"
    )  # another image, another talk


def upload_again(page, file):
    page.locator("#image").get_by_role("button", name="Remove Image").click()
    page.wait_for_selector("#image img", state="detached")
    upload(page, file)


@pytest.mark.parametrize("tab", ["Describe", "Ask"])
def test_an_answer_ends_when_its_image_goes(page, app, monkeypatch, tab):
    """The image is changed while words of the first one still come: none of them stays, none follows."""
    go_on, put = threading.Event(), app.Stream.on_finalized_text

    def held(self, text, stream_end=False):
        put(self, text, stream_end)
        assert not text.strip() or go_on.wait(120)

    monkeypatch.setattr(app.Stream, "on_finalized_text", held)
    upload(page, SCENE)
    if tab == "Ask":
        ask(page, "Describe the image.")
        page.locator("#talk [data-testid=bot]").wait_for()
    else:
        click(page, "Describe", "Describe the image")
        page.wait_for_function("document.querySelector('#caption textarea').value")
    upload_again(page, OTHER)
    go_on.set()
    click(page, "Everything", "Box and caption everything")  # one answer at a time: behind what is left of the first
    page.locator("#speed").filter(has_text=re.compile("total.*320 x 240")).wait_for()
    assert not page.input_value("#caption textarea") and not messages(page)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [("bad.png", b"this is no image", "not an image"), ("large.png", bytes(11_000_000), "maximum allowed size")],
)
def test_bad_files_become_messages(page, name, data, words):
    arrives = "maximum" not in words
    upload(page, {"name": name, "mimeType": "image/png", "buffer": data}, arrives)
    if arrives:
        click(page, "Describe", "Describe the image")
    page.get_by_text(re.compile(words)).first.wait_for()
    assert "Traceback" not in page.inner_text("body")
    if arrives:
        upload_again(page, SCENE)  # and the page goes on
        click(page, "Describe", "Describe the image")
        wait_for_total(page)


def test_two_people_at_once_each_have_their_own(chromium, url):
    people = [open_page(chromium, url) for _ in range(2)]
    for person, file in zip(people, (SCENE, OTHER)):
        upload(person, file)
    for person, question in zip(people, ("How many objects are there?", "What is the background?")):  # neither waits
        ask(person, question)
    lines = [wait_for_total(person) for person in people]
    assert "288 x 288" in lines[0] and "320 x 240" in lines[1]
    assert [messages(person, "user") for person in people] == [
        ["How many objects are there?"],
        ["What is the background?"],
    ]
    assert [len(messages(person)) for person in people] == [2, 2]
    for person in people:
        person.context.close()
