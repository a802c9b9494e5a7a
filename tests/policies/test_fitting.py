"""Which chunks a head is fitted to."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from visuomotor.policies.base import Head
from visuomotor.policies.learn.fitting import fit_head


class ManyWindows:
    """A source with more windows than float32 can count; notes which are asked for."""

    def __init__(self, source=None):
        self.source, self.seen = source, []

    def __len__(self):
        return 2**24 + 4

    def gather(self, windows):
        self.seen.append(windows)
        return self.source.gather(windows % len(self.source))


def test_no_window_beyond_the_last_is_asked_for(make_policy, monkeypatch):
    policy, source = make_policy()
    many, fitted = ManyWindows(source), SimpleNamespace(chunks=None)

    class Fitted(type(policy.head)):
        def fit(self, chunks):
            fitted.chunks = chunks

    assert Fitted.fit is not Head.fit
    monkeypatch.setattr(policy.head, "__class__", Fitted)
    fit_head(policy, many)
    windows = torch.cat(many.seen)
    assert (int(windows.min()), int(windows.max())) == (0, len(many) - 1)
    assert fitted.chunks.shape == (16384, 16, 2)
