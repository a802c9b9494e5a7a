"""Which chunks a head is fitted to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visuomotor.data.batches import BatchSource
from visuomotor.policies.learn.fitting import fit_head


class ManyWindows:
    """A source with more windows than float32 can count; notes which are asked for."""

    def __init__(self, source=None):
        self.source, self.seen = source, []

    def __len__(self):
        return 2**24 + 4

    def gather_actions(self, windows, beside):
        self.seen.append(windows)
        return self.source.gather_actions(windows % len(self.source), beside=beside)


def test_no_window_beyond_the_last_is_asked_for(make_policy, monkeypatch):
    policy, source = make_policy()
    many: Any = ManyWindows(source)
    fitted = SimpleNamespace(chunks=None)
    monkeypatch.setattr(type(policy.head), "fit", lambda _self, chunks: setattr(fitted, "chunks", chunks))
    fit_head(policy, many)
    windows = torch.cat(many.seen)
    assert (int(windows.min()), int(windows.max())) == (0, len(many) - 1)
    assert fitted.chunks.shape == (16384, 16, 2)


@pytest.mark.parametrize("mode", ["absolute", "relative", "delta"])
def test_fitting_reads_no_observation_that_it_does_not_need(mode, make_policy, monkeypatch):
    asked = []
    select = BatchSource._select

    def noted(self, key, row):
        asked.append(key)
        return select(self, key, row)

    monkeypatch.setattr(BatchSource, "_select", noted)
    policy, source = make_policy(mode)  # fits the normaliser
    monkeypatch.setattr(type(policy.head), "fit", lambda _self, chunks: None)
    fit_head(policy, source)
    assert set(asked) == {"action"} | ({"state"} if mode != "absolute" else set())
    asked.clear()
    everything, actions = source.gather(torch.arange(30)), source.gather_actions(torch.arange(30), beside="state")
    assert torch.equal(everything.action, actions.action)
    assert torch.equal(everything.is_pad, actions.is_pad)
    assert torch.equal(everything.obs["state"], actions.obs["state"])
