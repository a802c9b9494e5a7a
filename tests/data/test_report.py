"""The report of a store: what its figures are, that nothing in it runs, that a damaged store has one too."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.viewing.pictures import Camera, colour_depth, colour_segments, metres_per_unit, picture_kind
from visuomotor.data.viewing.report import write_report
from visuomotor.data.viewing.strips import choose_episodes, make_strips
from visuomotor.data.viewing.survey import BINS, GRID, position_pairs, survey

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PUSHT = Path(__file__).parents[2].parent / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"
EVIL = "</title><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">"
SPECS = {
    "front": ArraySpec(shape=(24, 32, 3), dtype="uint8", role="observation", source=EVIL),
    "depth": ArraySpec(shape=(16, 16), dtype="uint16", unit="mm", role="observation"),
    "ids": ArraySpec(shape=(16, 16), dtype="int32", role="observation"),
    "tcp": ArraySpec(shape=(3,), role="observation", unit="m", names=("tcp_x", "tcp_y", EVIL)),
    "action": ArraySpec(shape=(2,), role="action"),
    "reward": ArraySpec(shape=(), role="reward"),
}


def fill(path, lengths=(30, 12, 21)):
    """A store whose ``tcp`` goes from (0, 0) to (1, 2) and whose reward is 1 in every step."""
    columns = {"task": "str", "success": "bool"}
    with DemoStore.create(path, SPECS, fps=10, episode_columns=columns, origin={"by": EVIL}) as store:
        for e, n in enumerate(lengths):
            t = np.linspace(0, 1, n, dtype=np.float32)
            front = np.zeros((n, 24, 32, 3), np.uint8)
            front[..., 0] = np.arange(n)[:, None, None]
            steps = {
                "front": front,
                "depth": np.full((n, 16, 16), 500, np.uint16),
                "ids": np.full((n, 16, 16), e, np.int32),
                "tcp": np.stack([t, 2 * t, np.full(n, 5, np.float32)], axis=1),
                "action": np.stack([t, -t], axis=1),
                "reward": np.ones(n, np.float32),
            }
            store.append_episode(steps, {"task": f"task {e} {EVIL}", "success": e > 0})
    return path


@pytest.fixture
def path(tmp_path):
    return fill(tmp_path / "demos.zarr")


def report(path, out, **settings):
    with DemoStore.open(path) as store:
        made = write_report(store, out, **settings)
    return made, Path(out).read_text(encoding="utf-8")


def test_histograms_count_every_step_and_places_are_where_they_were(path):
    with DemoStore.open(path) as store:
        figures = survey(store)
    x, y, constant = figures.distributions["tcp"]
    assert (x.low, x.high, y.high) == (0, 1, 2)
    assert x.counts.sum() == 63
    assert x.mean == pytest.approx(0.5)
    assert constant.low == constant.high == 5
    assert constant.counts[BINS // 2] == 63
    (plane,) = [c for c in figures.coverages if c.key == "tcp"]
    assert plane.names == ("tcp_x", "tcp_y")
    assert not plane.guessed
    assert plane.counts.sum() == 63
    assert plane.side == pytest.approx(2 * 1.04)  # the longer side, with a margin, so that the plane is a square
    assert plane.starts.tolist() == [[0, 0]] * 3
    corner = plane.counts[: GRID // 2, : GRID // 2].sum()
    assert corner == plane.counts[: GRID // 2].sum()  # y grows twice as fast as x: nothing low lies to the right
    assert figures.returns is not None
    assert figures.returns.tolist() == [30, 12, 21]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.integers(0, 5))
def test_moments_are_those_of_all_values_whatever_the_blocks(values, n_lost):
    from visuomotor.data.viewing.survey import _Histogram, _Ranges

    x = np.array([*values, *[np.nan] * n_lost])[:, None]
    stats = _Ranges(1)
    for block in np.array_split(x, 3):
        stats.add(block)
    good = np.array(values, np.float64)
    assert (stats.low[0], stats.high[0], stats.lost[0]) == (good.min(), good.max(), n_lost)
    assert stats.mean[0] == pytest.approx(good.mean(), rel=1e-9, abs=1e-6)
    assert np.sqrt(stats.squares[0] / stats.n[0]) == pytest.approx(good.std(), rel=1e-6, abs=1e-5)
    histogram = _Histogram(stats, 1)
    histogram.add(x)
    (made,) = histogram.result("x", ArraySpec(shape=(1,)))
    assert made.counts.sum() == len(values)


def test_a_plane_is_told_by_names_and_guessed_without_them():
    specs = {
        "pose": ArraySpec(shape=(7,), role="observation", names=("x", "y", "z", "qx", "qy", "qz", "qw")),
        "speed": ArraySpec(shape=(2,), role="observation", unit="m/s", names=("x", "y")),
        "joints": ArraySpec(shape=(7,), role="observation"),
        "agent_pos": ArraySpec(shape=(4,), role="observation"),
        "action": ArraySpec(shape=(2,), role="action"),
    }
    assert position_pairs(specs) == {
        "pose": [((0, 1), False)],
        "agent_pos": [((0, 1), True)],
        "action": [((0, 1), True)],
    }


@given(st.integers(0, 300), st.integers(0, 40), st.sets(st.integers(0, 400), max_size=20))
def test_chosen_episodes_exist_and_are_no_more_than_asked_for(n, limit, flagged):
    chosen = choose_episodes(n, limit, flagged)
    assert len(chosen) == len(set(chosen)) <= max(limit, 0)
    assert chosen == sorted(chosen)
    assert all(0 <= e < n for e in chosen)
    assert len(chosen) == min(n, limit)
    if chosen and n > limit >= 3:
        assert sum(e in flagged for e in chosen) >= min(limit // 3, sum(e < n for e in flagged))


def test_strips_show_the_steps_that_they_name_and_keep_to_the_budget(path):
    with DemoStore.open(path) as store:
        strips = make_strips(store, limit=3, frames=4, budget_bytes=1 << 20)
        assert [(s.episode, s.camera) for s in strips] == [(e, c) for e in range(3) for c in ("depth", "front", "ids")]
        front = next(s for s in strips if s.camera == "front")
        assert front.steps == (0, 10, 19, 29)
        picture = cv2.imdecode(np.frombuffer(front.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (24, 4 * 34 - 2, 3)
        for i, step in enumerate(front.steps):
            assert picture[12, i * 34 + 16, 2] == pytest.approx(step, abs=3)  # red is the step; JPEG is lossy
        each = sum(len(s.jpeg) for s in strips if s.episode == 0)
        few = make_strips(store, limit=3, frames=4, budget_bytes=each)
        assert {s.episode for s in few} == {0}


def test_depth_is_in_metres_and_what_was_not_measured_is_black(path):
    with DemoStore.open(path) as store:
        camera = Camera(store, "depth")
        assert camera.metres(store.read("depth", 0, 1))[0, 0, 0] == np.float32(0.5)
    assert metres_per_unit(ArraySpec(shape=(8, 8, 1), dtype="float32")) == 1
    rgb = colour_depth(np.array([[0.0, np.nan, 0.5, 2.0]]), 0.5, 2.0)
    assert (rgb[0, :2] == 0).all()
    assert rgb[0, 2].sum() > rgb[0, 3].sum() > 0  # near is brighter
    ids = colour_segments(np.array([[-1, 0, 1, 2]]))
    assert len(np.unique(ids[0], axis=0)) == 4
    assert ids[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("key", "shape", "dtype", "kind"),
    [
        ("cam", (96, 96, 3), "uint8", "image"),
        ("cam", (96, 96), "uint8", "image"),
        ("cam", (96, 96), "uint16", "depth"),
        ("cam", (96, 96, 1), "float32", "depth"),
        ("cam_segmentation", (96, 96), "uint8", "segmentation"),
        ("cam", (96, 96), "int32", "segmentation"),
        ("keypoint", (9, 2), "float32", None),
        ("matrix", (16, 16), "float32", None),
    ],
)
def test_the_kind_of_a_picture(key, shape, dtype, kind):
    assert picture_kind(key, ArraySpec(shape=shape, dtype=dtype)) == kind


def test_what_is_no_camera_is_refused_by_name(path):
    with (
        DemoStore.open(path) as store,
        pytest.raises(DataError, match=r"'tcp' is no camera.*Cameras: depth, front, ids"),
    ):
        Camera(store, "tcp")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.ids, self.targets = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        known = dict(attrs)
        assert not [name for name in known if name.startswith("on")], attrs
        self.sources += [known[n] for n in ("src", "href") if n in known and tag != "a"]
        self.targets += [known["href"] for _ in [0] if tag == "a"]
        self.ids += [known["id"] for _ in [0] if "id" in known]


def test_the_page_holds_one_script_its_own_and_reaches_for_nothing(path, tmp_path):
    made, page = report(path, tmp_path / "out" / "report.html")
    assert made.pictured == (0, 1, 2)
    tags = Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 1
    assert tags.tags.count("img") == 9  # three cameras of three episodes
    assert all(s.startswith("data:image/") for s in tags.sources)
    assert all(t.startswith("#") and t[1:] in tags.ids for t in tags.targets)
    assert "task 2 &lt;/title&gt;&lt;script&gt;" in page
    assert not list(tmp_path.glob("out/.*"))  # no draft is left


def test_findings_are_grouped_and_lead_to_their_episode(path, tmp_path):
    array = zarr.open_array(path, path="data/tcp", mode="r+")
    array[35, 1] = np.nan
    made, page = report(path, tmp_path / "report.html")
    assert made.n_findings
    assert re.search(r'badge error">error</span>tcp.*?<a href="#e1">episode 1, step 5</a>', page, re.DOTALL)
    assert "1 not finite" in page
    _, unchecked = report(path, tmp_path / "report.html", check=False)
    assert "Values were not checked" in unchecked


def test_a_damaged_store_has_a_report_that_says_what_is_missing(path, tmp_path):
    for key in ("front", "action"):
        chunk = next(p for p in sorted((path / "data" / key).rglob("*")) if p.is_file() and p.name != "zarr.json")
        code = bytearray(chunk.read_bytes())
        code[len(code) // 2] ^= 0xFF
        code[5] ^= 0xFF
        chunk.write_bytes(bytes(code))
    made, page = report(path, tmp_path / "report.html")
    assert made.n_findings >= 2
    assert "cannot be read and are not in the figures" in page
    assert page.count('class="note"') >= 1  # the strips of the damaged camera
    assert "tcp_x" in page


def test_an_empty_store_has_a_report(tmp_path):
    with DemoStore.create(tmp_path / "empty.zarr", SPECS):
        pass
    made, page = report(tmp_path / "empty.zarr", tmp_path / "report.html")
    assert made.pictured == ()
    assert "the store is empty" in page


def test_what_cannot_be_written_is_one_error(path, tmp_path):
    (tmp_path / "file").write_text("")
    with DemoStore.open(path) as store, pytest.raises(DataError, match="cannot be written"):
        write_report(store, tmp_path / "file" / "report.html", check=False)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)")
def test_in_a_browser_nothing_from_the_store_runs_and_the_table_sorts(path, tmp_path):
    _, page = report(path, tmp_path / "report.html")
    click = "<script>document.querySelectorAll('.sortable th button')[1].click()</script></body>"
    # the policy of the page allows its own script only: for the click it is taken out, as nobody but a test can do
    tried = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", click)
    for name, text, order in (("as_is", page, ["30", "12", "21"]), ("sorted", tried, ["12", "21", "30"])):
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
        assert "<title>demos.zarr</title>" in dom
        rows = re.findall(r'<tr id="e\d+"><td>.*?</td><td>(\d+)</td>', dom)
        assert rows == order
        assert dom.count("<script>") == text.count("<script>")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)")
def test_the_policy_of_the_page_stops_a_script_that_got_through(path, tmp_path):
    _, page = report(path, tmp_path / "report.html", check=False)
    (tmp_path / "evil.html").write_text(page.replace("</main>", "<script>document.title='hacked'</script></main>"))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "evil.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=90).stdout
    assert "<title>demos.zarr</title>" in dom


@pytest.mark.skipif(not PUSHT.exists(), reason="needs the Push-T demonstrations in ../shared/data")
def test_the_report_of_real_demonstrations_is_small(tmp_path):
    made, page = report(PUSHT, tmp_path / "report.html", check=False, episodes=6)
    assert len(made.pictured) == 6
    assert made.n_bytes < 1_000_000
    assert "206" in page
    assert "25,650" in page
