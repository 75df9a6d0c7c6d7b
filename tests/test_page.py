"""chat.html in Chromium, whose microphone plays a file."""
import base64
import shutil

import numpy as np
import pytest
import soundfile
from drill import make_audio, make_speech
from test_audiobench import make_run as timed_run
from test_eval import make_run
from test_serve import ckpt, port, serve, server  # noqa: F401 (fixtures)

from recordings import read_audio


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium whose microphone plays silence, then speech."""
    found = list(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    if not found:
        pytest.skip("no Chromium here (apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    clip, wav = str(tmp_path_factory.mktemp("mic") / "mic.wav"), np.zeros(16_000 * 6)
    speech = make_speech(2)
    wav[8_000:40_000] = 0.3 * speech / np.abs(speech).max()
    soundfile.write(clip, wav, 16_000, subtype="PCM_16")
    with sync_api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=found[0], args=[
            "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={clip}"])


def open_page(browser, port, **settings):
    """-> a page with the chat in it, and the list of its errors."""
    page, errors = browser.new_context(permissions=["microphone"], **settings).new_page(), []
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.set_default_timeout(15_000)
    page.goto(f"http://127.0.0.1:{port}/")
    return page, errors


@pytest.mark.slow
def test_record_send_and_read_the_answer(browser, serve, tmp_path):  # noqa: F811
    """Broken: no answer to a recording; it isn't what was recorded; no words; a phone's page."""
    _, port = serve(f"--ckpt={timed_run(tmp_path / 'run', ctc=260)}")
    page, errors = open_page(browser, port, viewport={"width": 320, "height": 560})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    sent = []
    page.on("request", lambda r: sent.append(r.post_data_json) if "completions" in r.url else None)
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#level").wait_for()
    answers, told = page.locator("[aria-busy=false] > .assistant"), ""
    while not answers.count():
        told = told or page.locator("#live").inner_text().strip()
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Who is speaking?").click()
    page.keyboard.press("Enter")
    answers.nth(1).wait_for()
    part, _ = sent[0]["messages"][0]["content"]
    wav = read_audio(base64.b64decode(part["input_audio"]["data"].partition(",")[2]))
    assert sent[0]["messages"][2]["content"][0]["text"] == "Who is speaking?"
    assert told and 1.5 < len(wav) / 16_000 < 8
    assert np.abs(wav).max() > 0.1 and page.locator(".turn.user audio").count() == 1
    page.locator(".words button").last.click()
    page.wait_for_function("document.querySelector('.sound audio').currentTime > 0")
    page.get_by_role("textbox", name="Message").fill("how high is it")
    page.get_by_role("button", name="Send").click()
    answers.nth(2).wait_for()
    assert [m["role"] for m in sent[1]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    texts = answers.all_text_contents()
    page.reload()
    assert page.locator(".assistant").all_text_contents() == texts
    assert page.locator(".user").all_text_contents()[1:] == ["Who is speaking?", "how high is it"]
    page.get_by_role("button", name="New conversation").click()
    assert page.evaluate("messages.length") == 0
    assert not errors, errors


@pytest.mark.slow
def test_the_page_says_what_is_wrong(browser, port, tmp_path):
    """Broken: no microphone, a wrong or silent file or a busy server leave it dumb."""
    page, _ = open_page(browser, port)
    denied = "async () => { throw new DOMException('denied') }"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {denied} }}")
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#note", has_text="denied").wait_for()
    (tmp_path / "x.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 44_100)
    for name, expected in (("x.wav", "no sound"), ("silent.wav", "silent")):
        page.set_input_files("#file", str(tmp_path / name))
        page.locator("#note", has_text=expected).wait_for()
    busy = {"status": 503, "json": {"error": {"message": "x"}}}
    page.route("**/transcriptions", lambda route: route.fulfill(**busy))
    page.get_by_role("button", name="Send").click()
    page.get_by_text("The server is busy").wait_for()


@pytest.mark.slow
def test_a_model_that_only_transcribes(browser, serve, tmp_path):  # noqa: F811
    """Broken: the page has no use for a model of W2, or asks it questions."""
    page, errors = open_page(browser, serve(f"--ckpt={make_run(tmp_path / 'run')}")[1])
    page.get_by_text("it writes down what you say").wait_for()
    assert not page.locator("#text:visible, #chips:visible").count()
    (tmp_path / "clip.wav").write_bytes(make_audio(0.6, 0))
    page.set_input_files("#file", tmp_path / "clip.wav")
    page.locator("#clip audio").wait_for()
    page.get_by_role("button", name="Send").click()
    page.locator("[aria-busy=false] > .assistant").wait_for()
    assert page.locator(".turn.user audio").count() == 1 and not errors
    assert page.locator(".turn.assistant").inner_text().strip()
