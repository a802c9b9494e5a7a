"""The page in headless Chromium: what it shows, and that its buttons and keys ask for the right things."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from visuomotor.data.errors import ConfigError
from visuomotor.sim2real.runtime.keyboard import KEYS
from visuomotor.sim2real.runtime.types import Request, State

SHOTS = os.environ.get("PAGE_SHOTS")  # a folder: pictures of the page are left there to look at


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def shot(tab, name):
    if SHOTS:
        tab.screenshot(Path(SHOTS) / f"{name}.png")


@pytest.fixture
def opened(tab, page):
    """The page, once it shows the state."""
    tab.call("Page.navigate", url=page.url)
    tab.until("document.getElementById('state')?.textContent === 'run'")
    return tab


def test_it_shows_what_is_on_the_board(opened, board):
    opened.until("document.querySelectorAll('#cameras img').length === 2")
    opened.until("[...document.querySelectorAll('#cameras img')].every(i => i.naturalWidth === 160)")
    assert opened.evaluate("document.title") == "a <test> & more"
    assert opened.evaluate("[...document.querySelectorAll('.joint b')].map(b => b.textContent)") == [
        f"joint_{i}" for i in range(1, 7)
    ]
    assert opened.evaluate("document.querySelectorAll('figcaption')[1].textContent") == "wrist <2>"
    newest = opened.evaluate("document.querySelector('#log li').textContent")
    assert newest == "    1.250 s  <b>ready</b> -> ramp: start"  # as text: nothing of a message is markup
    assert opened.evaluate("document.getElementById('box-run').getAttribute('class')") == "on run"
    cells = opened.evaluate("[...document.querySelectorAll('#streams td')].map(c => c.textContent)")
    assert cells == ["joint states", "4", "499.8", "camera front", "710", "29.9", "policy", "never", "0.0"]
    assert opened.evaluate("document.querySelectorAll('#streams .late').length") == 2
    assert "episode 3" in opened.evaluate("document.getElementById('numbers').textContent")
    time.sleep(3)
    drawn = """(() => { const c = document.querySelector('canvas'), d = c.getContext('2d').getImageData(0, 0, c.width,
        c.height).data, seen = new Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 250)
        seen.add(d[i] + ',' + d[i + 1] + ',' + d[i + 2]); return [...seen]; })()"""
    colours = opened.evaluate(drawn)
    for rgb in ("47,111,237", "217,130,43", "22,151,107"):  # measured, commanded, ahead
        assert rgb in colours
    shot(opened, "run")
    board.changes = {"state": State.FAULT, "fault": "joint states are 0.312 s old; limit 0.100 s"}
    opened.until("document.getElementById('state').textContent === 'fault'")
    assert "0.312 s old" in opened.evaluate("document.getElementById('fault').textContent")
    shot(opened, "fault")
    board.changes = {"state": State.IDLE, "waiting": ["/front/image_raw: no message yet"]}
    opened.until("document.getElementById('waiting').textContent === 'waiting: /front/image_raw: no message yet'")
    assert opened.failures == []


def test_every_button_and_key_asks_for_its_request(opened, board, box):
    enabled = (
        "[...document.querySelectorAll('#keys button')].filter(b => !b.disabled).map(b => b.firstChild.textContent)"
    )
    assert opened.evaluate(enabled) == [
        "Hold", "Take over", "Success", "Failure", "Home", "End session", "Hold to run",
    ]  # fmt: skip
    for text, request in (("Hold", "hold"), ("Take over", "take_over"), ("Home", "home"), ("End session", "quit")):
        opened.click(f"[...document.querySelectorAll('#keys button')].find(b => b.firstChild.textContent === '{text}')")
        wait_for(lambda request=request: [*map(str, box.got)][-1:] == [request])
    box.got.clear()
    for key in "htyngr":
        opened.press(key, text=key)
    wait_for(lambda: len(box.got) >= 5)
    assert [*map(str, box.got)] == ["hold", "take_over", "success", "failure", "home"]  # no reset in RUN
    board.changes = {"state": State.READY}
    opened.until("document.getElementById('state').textContent === 'ready'")
    box.got.clear()
    opened.press("s", text="s")
    wait_for(lambda: box.got == [Request.START])
    assert opened.failures == []


def test_keys_are_those_of_the_terminal(opened):
    shown = opened.evaluate("KEYS.map(([request, , key]) => [request, key])")
    assert {(r, k) for r, k in shown if k} == {
        (str(request), key)
        for key, (request, _) in KEYS.items()
        if request not in (Request.STOP, Request.HELD, Request.QUIT)
    }
    assert KEYS[" "][0] is Request.STOP


def test_stop_is_sent_by_button_and_key_until_the_bridge_has_stopped(opened, board, box):
    opened.click("document.getElementById('stop')")
    wait_for(lambda: len(box.got) >= 3)
    assert set(box.got) == {Request.STOP}
    board.changes = {"state": State.FAULT, "fault": "stopped by the operator"}
    opened.until("document.getElementById('state').textContent === 'fault' && !stopping")
    assert opened.evaluate("document.getElementById('alarm').className") == ""
    board.changes = {}
    opened.until("document.getElementById('state').textContent === 'run'")
    for key, code in ((" ", "Space"), ("Escape", "Escape")):
        opened.until("!stopping")
        box.got.clear()
        opened.press(key, code)
        wait_for(lambda: Request.STOP in box.got)
        board.changes = {"state": State.FAULT}
        opened.until("!stopping")
        board.changes = {}
        opened.until("document.getElementById('state').textContent === 'run'")


def test_a_stop_that_does_not_arrive_is_said_in_red(opened, box):
    box.fails = ConfigError("the bridge has ended")
    opened.press("Escape", "Escape")
    opened.until("document.getElementById('alarm').textContent.includes('STOP WAS NOT DELIVERED')")
    shot(opened, "undelivered")
    box.fails = None
    wait_for(lambda: Request.STOP in box.got)


def test_hold_to_run_repeats_while_it_is_held_and_ends_with_it(opened, box):
    pad = "[...document.querySelectorAll('#keys button')].at(-1)"
    opened.mouse("mousePressed", pad)
    wait_for(lambda: box.got.count(Request.HELD) >= 3)
    opened.mouse("mouseReleased", pad)
    n, end = -1, time.monotonic() + 20
    while len(box.got) != n:  # a busy machine delivers late what was asked for before
        assert time.monotonic() < end
        n = len(box.got)
        time.sleep(0.6)
    opened.call("Input.dispatchKeyEvent", type="keyDown", key="k", code="KeyK", text="k")
    wait_for(lambda: len(box.got) >= n + 3)
    opened.call("Input.dispatchKeyEvent", type="keyUp", key="k", code="KeyK")


def test_silence_of_the_bridge_and_of_the_server_is_said(opened, board, page):
    board.frozen = True
    opened.until("document.getElementById('alarm').textContent.includes('the bridge has said nothing')")
    shot(opened, "silent")
    board.frozen = False
    opened.until("document.getElementById('alarm').textContent === ''")
    page.close()
    opened.until("document.getElementById('alarm').textContent.startsWith('no contact')")
    assert opened.evaluate("document.getElementById('state').textContent") == "?"


def test_the_page_of_another_site_gets_nothing(tab, page, box):
    """A form and a fetch of another origin, which knows even the address."""
    tab.call("Page.navigate", url="data:text/html,<title>evil</title>")
    tab.until("document.title === 'evil'")
    attack = f"""Promise.allSettled([
        fetch('{page.url}request', {{method: 'POST', headers: {{'Content-Type': 'application/json'}},
            body: '{{"request": "start"}}'}}),
        fetch('{page.url}request', {{method: 'POST', mode: 'no-cors', body: '{{"request": "start"}}'}}),
        fetch('{page.url}status').then(r => r.text())]).then(r => r.map(x => x.status + (x.value?.type ?? '')))"""
    assert tab.evaluate(attack) == ["rejected"] * 3
    frame = f"""new Promise(done => {{ const f = document.createElement('iframe'); f.src = '{page.url}';
        f.onload = () => done('loaded'); document.body.append(f); }})"""
    tab.evaluate(frame)
    time.sleep(1.0)
    assert box.got == []
