"""The report of a run: complete, self-contained, escaped, and a sentence instead of a traceback for what is missing."""

from __future__ import annotations

import html.parser
import json
import math
import random
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from visuomotor.data.errors import UserError
from visuomotor.policies.learn.charts import Series, histogram, human, line_chart, linear_ticks, log_ticks, smooth, thin
from visuomotor.policies.learn.report import read_metrics, write_report


def write_video(path: Path, colour: tuple[int, int, int]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for t in range(20):
            frame = np.full((96, 96, 3), 235, np.uint8)
            frame[4 * t : 4 * t + 16, 40:56] = colour
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def write_metrics(path: Path, rng: random.Random) -> None:
    with path.open("w") as f:
        for step in range(0, 20_001, 20):
            loss = 0.9 * math.exp(-step / 1500) + 0.03 * math.exp(rng.gauss(0, 0.25))
            row = {
                "step": step,
                "time_s": step * 0.021,
                "loss": loss,
                "lr": 5e-4 * (1 + math.cos(math.pi * step / 20_000)),
            }
            f.write(
                json.dumps({**row, "grad_norm": 0.3 * math.exp(rng.gauss(0, 0.4)), "samples_per_s": 21_800.0}) + "\n"
            )
            if step % 2000 == 0:
                f.write(json.dumps({"step": step, "val_loss": loss + 0.012}) + "\n")
            if step % 4000 == 0 and step:
                f.write(
                    json.dumps({"step": step, "eval_score": 0.9 - 3000 / step / 5, "eval_success": 0.6 - 300 / step})
                    + "\n"
                )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run as ``visuomotor train`` leaves it, with invented numbers."""
    rng, run = random.Random(0), tmp_path / "pusht_seed0"
    (run / "eval").mkdir(parents=True)
    (run / "config.yaml").write_text("task:\n  name: pusht\npolicy:\n  head: diffusion\n  horizon: 16\n")
    (run / "command.txt").write_text("visuomotor train task=pusht data.path='demos <raw> & more.zarr' seed=0\n")
    figures = {"min": [13.4, 32.9, 57.0, 93.4, 0.0], "max": [496.1, 510.9, 439.9, 485.6, 6.283], "n_nonfinite": [0] * 5}
    figures |= {"mean": [230.1, 293.0, 250.2, 276.3, 2.1], "std": [102.0, 99.0, 70.0, 66.0, 1.6]}
    empty = {"min": [0.0, None], "max": [4.0, None], "mean": [1.0, None], "std": [1.0, None], "n_nonfinite": [0, 25650]}
    names = ["agent_x", "agent_y", "block_x", "block_y", "block_angle"]
    common = {"dtype": "float32", "role": "observation", "unit": None, "names": None}
    keys = {
        "state": {**common, "shape": [5], "names": names, "stats": figures},
        "gauge": {**common, "shape": [2], "unit": "px", "stats": empty},
        "img": {**common, "shape": [96, 96, 3]},
    }
    dataset = {
        "path": "demos <raw> & more.zarr", "n_episodes": 206, "n_steps": 25650, "fps": 10.0,
        "windows": 24208, "keys": keys, "n_train_episodes": 202, "n_val_episodes": 4,
        "cache": {"placement": "ram", "bytes": 718200, "reason": "0.001 GB fit the budget of 8 GB"},
        "lengths": {"min": 49, "median": 122, "max": 246}, "skipped_episodes": [],
    }  # fmt: skip
    (run / "dataset.json").write_text(json.dumps(dataset))
    write_metrics(run / "metrics.jsonl", rng)
    episodes = []
    for seed in range(100_000, 100_100):
        score = min(1.0, rng.betavariate(6, 0.5))
        episodes.append({"seed": seed, "score": score, "success": score >= 0.999, "length": 200, "return": 80.0})
    videos = []
    for i, (kind, colour) in enumerate((("worst", (200, 40, 40)), ("worst", (200, 120, 40)), ("best", (40, 160, 80)))):
        write_video(run / "eval" / f"{kind}_{i}.mp4", colour)
        videos.append(
            {
                "path": f"eval/{kind}_{i}.mp4",
                "kind": kind,
                "seed": 100_000 + i,
                "score": 0.1 + 0.4 * i,
                "success": i == 2,
            }
        )
    final = {
        "task": "pusht", "checkpoint": "checkpoints/step_020000 (EMA)", "n_episodes": 100,
        "episodes": episodes, "videos": videos, "score": {"mean": 0.913, "low": 0.881, "high": 0.941},
        "success": {"rate": 0.58, "low": 0.482, "high": 0.672, "count": 58},
        "seconds": 61.2, "steps_per_s": 410.0,
    }  # fmt: skip
    (run / "eval" / "final.json").write_text(json.dumps(final))
    environment = {
        "device": "cpu",
        "threads": 2,
        "n_parameters": 1_234_567,
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
    }
    (run / "environment.json").write_text(json.dumps(environment))
    return run


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch, its visible text, and whether its tags nest."""

    VOID = frozenset({"meta", "line", "rect", "circle", "polyline", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "poster", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def test_report_holds_everything_and_fetches_nothing(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.fetched) == 3
    assert all(url.startswith("data:video/mp4;base64,") for url in page.fetched)
    assert not re.search(r"https?://|url\(|@import", text)
    for part in (
        "0.913",
        "0.881 to 0.941",
        "58.0%",
        "58 of 100",
        "48.2% to 67.2%",
        "7.0 min",
        "1.23M",
        "21.8k samples/s",
    ):
        assert part in page.text, part
    for part in (
        "206 (202 train, 4 held out)",
        "25,650",
        "24,208",
        "seed 100002, score 0.900, success",
        "horizon: 16",
        "block_angle",
        "in ram: 0.001 GB fit",
    ):
        assert part in page.text, part
    assert page.tags.count("svg") == 5
    assert page.text.count("100099") == 1
    assert [p.name for p in run_dir.iterdir() if p.name.startswith(".")] == []


def test_what_the_user_wrote_is_escaped(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("note: </pre><script>alert('x')</script>\n")
    (run_dir / "environment.json").write_text(json.dumps({"<b>cpu</b>": "<img src=http://example.org/x>"}))
    final = json.loads((run_dir / "eval" / "final.json").read_text())
    final.update(task="<script>1</script>", videos=[{**final["videos"][0], "kind": '"><script>'}])
    (run_dir / "eval" / "final.json").write_text(json.dumps(final))
    page = Page(write_report(run_dir).read_text())
    assert page.tags.count("script") == 1
    assert len(page.fetched) == 1
    assert "demos <raw> & more.zarr" in page.text


def test_an_interrupted_run_has_a_report(run_dir: Path) -> None:
    (run_dir / "eval" / "final.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as f:
        f.write('{"step": 20020, "lo')  # killed while writing
    page = Page(write_report(run_dir).read_text())
    assert "There is no final evaluation" in page.text
    assert "1 unreadable line(s)" in page.text
    assert "20,000 training steps" in page.text
    assert page.tags.count("svg") == 4


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text())
    for part in (
        "No metrics were logged",
        "No videos",
        "dataset.json is missing",
        "command.txt is missing",
        "config.yaml is missing",
    ):
        assert part in page.text, part


@pytest.mark.parametrize("name", ["dataset.json", "environment.json", "eval/final.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "{}", '{"n_episodes": "x", "keys": 3, "score": [], "step": null}', '{"a']
)
def test_damaged_files_become_sentences(run_dir: Path, name: str, content: str) -> None:
    (run_dir / name).write_text(content)
    Page(write_report(run_dir).read_text())


def test_a_missing_video_is_named(run_dir: Path) -> None:
    (run_dir / "eval" / "worst_0.mp4").unlink()
    page = Page(write_report(run_dir).read_text())
    assert "eval/worst_0.mp4 is missing" in page.text
    assert len(page.fetched) == 2


def test_one_episode_has_no_interval_and_warnings_are_shown(run_dir: Path) -> None:
    final = json.loads((run_dir / "eval" / "final.json").read_text())
    final.update(score={"mean": 0.25, "low": None, "high": None}, warnings=["seed 100003 scored 0.2 when filmed"])
    (run_dir / "eval" / "final.json").write_text(json.dumps(final))
    page = Page(write_report(run_dir).read_text())
    assert "seed 100003 scored 0.2 when filmed" in page.text
    assert page.text.count("95 % interval") == 1


def test_a_run_that_diverged_is_drawn_without_its_nans(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n'
    )
    page = Page(write_report(run_dir).read_text())
    assert "2 loss value(s) were not finite" in page.text
    assert page.tags.count("circle") >= 1


def test_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        write_report(tmp_path / "nowhere")


def test_metrics_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0},
        {"step": 10, "val_loss": 9.0},
        {"step": 20, "loss": 1.0},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_metrics(tmp_path / "m.jsonl") == (
        [{"step": 10, "loss": 3.0, "val_loss": 9.0}, {"step": 20, "loss": 1.0}],
        0,
    )


def test_ticks_and_numbers_by_hand() -> None:
    assert linear_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert linear_ticks(-3, 20_000) == [0, 5000, 10_000, 15_000, 20_000]
    assert log_ticks(0.008, 2) == pytest.approx([0.01, 0.1, 1.0])
    assert log_ticks(0.02, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert log_ticks(0.50, 0.54) == pytest.approx([0.5, 0.51, 0.52, 0.53, 0.54])
    assert [human(x) for x in (1_234_567, 20_000, 1500, 0.00012, -3.0)] == ["1.23M", "20k", "1500", "1.2e-4", "-3"]


def test_smoothing_keeps_a_constant_and_forgets() -> None:
    assert smooth([2.0] * 7, 3) == pytest.approx([2.0] * 7)
    # decay 1/2 (span 1/ln 2): second value (0 * 1/2 + 1) / (1/2 + 1) = 2/3
    assert smooth([0.0, 1.0], 1 / math.log(2)) == pytest.approx([0.0, 2 / 3])
    assert [x for x, _ in thin([(i, i) for i in range(101)], 5)] == [0, 25, 50, 75, 100]


def test_line_chart_places_points_by_hand() -> None:
    # the canvas: x 52..466, y 12 (top) .. 220 (floor)
    svg = line_chart("t", [Series("a", [0, 5, 10], [0, 0.5, 1])], y_range=(0, 1))
    assert '<polyline class="line c1" points="52.0,220.0 259.0,116.0 466.0,12.0"/>' in svg
    assert line_chart("t", [Series("a", [1], [math.nan])]) == ""
    assert line_chart("t", [Series("a", [1], [-1.0])], log_y=True) == ""


def test_histogram_stacks_successes_above_failures() -> None:
    svg = histogram("t", [0.0, 0.99, 1.0, 1.2], [False, False, True, True], bins=2)
    assert "score 0.00 to 0.50: 0 succeeded, 1 did not" in svg
    assert svg.count("score 0.50 to 1.00: 2 succeeded, 1 did not") == 2  # both parts of the stack say it
