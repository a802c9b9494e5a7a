from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visuomotor.data.errors import ConfigError, DataError
from visuomotor.data.windows import WindowConfig, split_episodes, window_table


def rows(table, i, horizon):
    return np.clip(table.start[i] + np.arange(horizon), table.ep_start[i], table.ep_stop[i] - 1)


def test_defaults_give_l_minus_7_windows_that_diffusion_policy_would_cut():
    table = window_table(np.array([20, 29, 36, 50]), WindowConfig())
    assert np.bincount(table.episode, minlength=4).tolist() == [13, 2, 0, 7]
    assert table.skipped == (2,)  # seven steps
    # Episode 0 has rows 0..19: the first window begins one step early, the last ends seven steps late.
    assert rows(table, 0, 16).tolist() == [0, 0, *range(1, 15)]
    assert rows(table, 12, 16).tolist() == [*range(11, 20), *[19] * 7]
    # Episode 1 has rows 20..28.
    assert table.start[13:15].tolist() == [19, 20]
    assert rows(table, 13, 16).tolist() == [20, *range(20, 29), *[28] * 6]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    n_obs=st.integers(1, 3),
    n_exec=st.integers(1, 6),
    extra=st.integers(0, 8),
    data=st.data(),
)
def test_table_equals_the_plain_enumeration(lengths, n_obs, n_exec, extra, data):
    horizon = n_obs - 1 + n_exec + extra
    before, after = data.draw(st.integers(0, n_obs - 1)), data.draw(st.integers(0, horizon - 1))
    config = WindowConfig(n_obs=n_obs, horizon=horizon, n_exec=n_exec, pad_before=before, pad_after=after)
    expected, skipped, first = [], [], 0
    for e, length in enumerate(lengths):
        starts = range(-before, length - horizon + after + 1)
        expected += [(first + s, first, first + length, e) for s in starts]
        skipped += [] if starts else [e]
        first += length
    assert [length < config.min_length for length in lengths] == [e in skipped for e in range(len(lengths))]
    if not expected:
        with pytest.raises(DataError, match="yields a window"):
            window_table(np.cumsum(lengths), config)
        return
    table = window_table(np.cumsum(lengths), config)
    got = zip(table.start, table.ep_start, table.ep_stop, table.episode, strict=True)
    assert [tuple(map(int, row)) for row in got] == expected
    assert table.skipped == tuple(skipped)
    assert (table.start < table.ep_stop).all()  # each window holds a real step


def test_long_chunks_reach_the_last_step():
    config = WindowConfig(n_obs=1, horizon=100, n_exec=100, pad_after=99, mask_padding=True)
    table = window_table(np.array([1, 13]), config)
    assert table.start.tolist() == list(range(13))
    assert table.skipped == ()


def test_a_selection_of_episodes():
    ends = np.array([20, 40, 60])
    table = window_table(ends, WindowConfig(), episodes=[2, 0])
    assert np.unique(table.episode).tolist() == [0, 2]
    with pytest.raises(DataError, match=r"episode 3 does not exist.*0\.\.2"):
        window_table(ends, WindowConfig(), episodes=[3])
    with pytest.raises(DataError, match="episode 1 is named twice"):
        window_table(ends, WindowConfig(), episodes=[1, 1])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"n_obs": 2, "horizon": 4, "n_exec": 4}, r"3 of its actions.*4 are to be executed.*= 5"),
        ({"n_obs": 0}, "n_obs=0: expected at least 1"),
        ({"n_exec": 0}, "n_exec=0: expected at least 1"),
        ({"pad_before": 2}, r"expected 0\.\.n_obs-1 = 0\.\.1"),
        ({"pad_before": -1}, "pad_before=-1"),
        ({"pad_after": 16}, r"expected 0\.\.horizon-1 = 0\.\.15"),
        ({"pad_after": -1}, "pad_after=-1"),
    ],
)
def test_contradictions_are_refused_with_the_reason(changes, why):
    with pytest.raises(ConfigError, match=why):
        WindowConfig(**changes)


@pytest.mark.parametrize("ends", [[], [5, 5], [9, 4], [0, 3], [[1, 2]]])
def test_bad_episode_ends(ends):
    with pytest.raises(DataError):
        window_table(np.array(ends, np.int64), WindowConfig(horizon=1, n_obs=1, n_exec=1))


@settings(deadline=None)
@given(n=st.integers(1, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 2**40))
def test_split_covers_all_episodes_once(n, fraction, seed):
    train, val = split_episodes(n, fraction, seed)
    assert sorted([*train, *val]) == list(range(n))
    assert train.tolist() == sorted(train)
    assert val.tolist() == sorted(val)
    assert len(train) >= 1
    assert (len(val) >= 1) == (fraction > 0 and n >= 2)
    again = split_episodes(n, fraction, seed)
    assert (again[0] == train).all()


def test_split_depends_on_the_seed_and_refuses_the_whole():
    assert split_episodes(206, 0.02, 42)[1].tolist() != split_episodes(206, 0.02, 43)[1].tolist()
    assert len(split_episodes(206, 0.02, 42)[1]) == 4
    with pytest.raises(ConfigError, match="val_fraction=1"):
        split_episodes(10, 1.0, 0)


def test_what_the_robot_needs_imports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "import visuomotor.data.windows, visuomotor.data.angles\n"
        "from visuomotor.data.actions import ActionConfig, ActionTransform\n"
        "t = ActionTransform(ActionConfig(mode='relative', reference_key='q', angle_dims=[0]), action_size=2, n_obs=1,"
        " reference_size=2)\n"
        "print(t.inverse(np.zeros((1, 3, 2)), np.ones((1, 2))).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "6.0"
