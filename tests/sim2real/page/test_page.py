"""What the page's server answers, and whom."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading

import cv2
import numpy as np
import pytest

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.sim2real.page.server import LivePage
from visuomotor.sim2real.page.snapshot import Snapshots
from visuomotor.sim2real.runtime.board import RequestBox, StatusBoard
from visuomotor.sim2real.runtime.types import Request, State, Status


def ask(page, method="GET", path="", token=None, body=None, **headers):
    """``(status, headers, body)``; headers with None are left out."""
    given = {"Host": f"127.0.0.1:{page.port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    token = page.url.split("/")[3] if token is None else token
    connection.putrequest(method, f"/{token}/{path}", skip_host=True, skip_accept_encoding=True)
    if body is not None:
        given.setdefault("Content-Length", str(len(body)))
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    out = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return out


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def post(page, request, **headers):
    body = json.dumps({"request": request}).encode() if isinstance(request, str) else request
    origin = f"http://127.0.0.1:{page.port}"
    given = {"Content_Type": "application/json", "Origin": origin, **headers}
    return ask(page, "POST", "request", body=body, **given)[0]


def test_the_status_is_json_whatever_the_numbers(page, board):
    board.changes = {"measured": [float("nan"), float("inf")] + [0.0] * 4}
    status, headers, body = ask(page, path="status")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    shown = json.loads(body, parse_constant=lambda c: pytest.fail(c))
    assert shown["measured"][:2] == [None, None]
    assert shown["ages_s"]["policy"] is None
    assert shown["cameras"] == ["front", "wrist <2>"]
    assert "pictures" not in shown
    assert shown["allowed"] == ["hold", "take_over", "home", "success", "failure", "quit"]


def test_cameras_are_jpeg_in_the_right_colours(page, board):
    status, headers, body = ask(page, path="camera/0?17")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    picture = decoded(body)[..., ::-1]
    assert np.abs(picture[110:, 20:40].astype(int) - board.picture[110:, 20:40]).max() < 20
    for other in ("camera/2", "camera/999", "camera/-1", "camera/0/..", "camera/front"):
        assert ask(page, path=other)[0] == 404


def test_a_large_picture_is_thinned_and_made_once(board):
    board.picture = np.zeros((1080, 1920, 3), np.uint8)
    snapshots = Snapshots(board, clock=lambda: 5.0)
    first = snapshots.picture(0)
    assert decoded(first).shape == (360, 640, 3)
    assert snapshots.picture(0) is first


def test_the_silence_of_the_bridge_is_measured_by_its_own_time(board):
    now = [0.0]
    snapshots = Snapshots(board, clock=lambda: now[0])
    board.frozen, board._t = True, 3.0
    assert json.loads(snapshots.status())["silent_s"] == 0.0
    now[0] = 2.5
    assert json.loads(snapshots.status())["silent_s"] == 2.5
    board._t = 3.1
    now[0] = 2.6
    assert json.loads(snapshots.status())["silent_s"] == 0.0


def test_every_request_of_the_bridge_can_be_asked_for(page, box):
    for request in Request:
        assert post(page, request.value) == 200
    assert box.got == list(Request)
    box.fails = ConfigError("the bridge has ended")
    assert post(page, "stop") == 503


@pytest.mark.parametrize(
    "body", [b"", b"stop", b"[]", b"{}", b'{"request": 3}', b'{"request": ["stop"]}', b'{"request": "fly"}', b"[" * 200]
)
def test_what_is_no_request_is_refused(page, box, body):
    assert post(page, body) == 400
    assert box.got == []


def test_the_address_is_the_key(page, box):
    assert len(page.url.split("/")[3]) >= 32
    token = page.url.split("/")[3]
    for wrong in ("", "x", token[:-1], token + "x", token[::-1], "%2e%2e"):
        assert ask(page, path="status", token=wrong)[0] == 404
        assert ask(page, "POST", "request", token=wrong, body=b"{}", Content_Type="application/json")[0] in (403, 404)
    assert box.got == []


def test_other_names_of_this_machine_are_refused_against_dns_rebinding(page):
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1", f"127.0.0.1:{page.port + 1}", "", None):
        status, _, body = ask(page, path="status", Host=host)
        assert status in (400, 403)
        assert b"joint" not in body
    assert ask(page, path="status", Host=f"localhost:{page.port}")[0] == 200


def test_requests_that_do_not_come_from_the_page_are_refused(page, box):
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{page.port}", "http://127.0.0.1:1", None):
        assert post(page, "start", Origin=origin) == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert post(page, "start", Content_Type=kind) == 403
    assert ask(page, path="status", Origin="http://evil.example")[0] == 403
    for size in ("999999", "-1", "x", None):
        assert post(page, "start", Content_Length=size) == 413
    assert ask(page, "PUT", "request")[0] == 501
    assert box.got == []


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_own_script(page):
    status, headers, body = ask(page)
    assert status == 200
    text = body.decode()
    assert "<title>a &lt;test> &amp; more</title>" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["Cache-Control"] == "no-store"


def test_it_is_served_on_this_machine_alone(page):
    assert page._server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_one_sentence(page, board, box):
    with pytest.raises(UserError, match="cannot be served at"):
        LivePage(board, box, port=page.port)


def test_many_silent_connections_are_shut_and_the_page_lives(page):
    idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(60)]
    for connection in idle:
        connection.close()
    for _ in range(100):
        try:
            if ask(page, path="status")[0] == 200:
                return
        except OSError:
            threading.Event().wait(0.05)
    pytest.fail("the page does not answer any more")


def test_with_the_board_and_the_box_of_the_bridge():
    board, box = StatusBoard(), RequestBox()
    board.write(
        Status(
            state=State.HOLD, time_s=1.5, joints=["a"], measured=[0.5], pictures={"c": np.zeros((8, 8, 3), np.uint8)}
        )
    )
    page = LivePage(board, box)
    try:
        shown = json.loads(ask(page, path="status")[2])
        assert (shown["state"], shown["measured"], shown["cameras"]) == ("hold", [0.5], ["c"])
        assert post(page, "reset") == 200
        assert box.take() is Request.RESET
    finally:
        page.close()
        board.close()
        box.close()
