"""Text encoders: what they depend on, and that padding, batch and settings do not matter where they must not."""

from __future__ import annotations

import pytest
import torch

from visuomotor.data.errors import ConfigError
from visuomotor.data.normalize import KeyNorm, Normalizer, compute_stats
from visuomotor.data.spec import ArraySpec
from visuomotor.data.texts import encode_texts
from visuomotor.policies.encoders.config import ObservationConfig
from visuomotor.policies.encoders.observation import ObservationEncoder
from visuomotor.policies.encoders.text import NgramEncoder, TextConfig, TextEncoder, TransformerEncoder

NOTHING = Normalizer({}, {})
TEXTS = ["put red on blue", "put blue on red", "go", ""]


def codes(length=24, texts=TEXTS):
    return torch.from_numpy(encode_texts(texts, length))


def an_encoder(kind, length=24, **settings):
    torch.manual_seed(0)
    return TextEncoder(["task"], TextConfig(keys=["task"], encoder=kind, length=length, dim=16, **settings)).eval()


@pytest.mark.parametrize(("kind", "tokens"), [("ngrams", 0), ("transformer", 0), ("transformer", 3)])
def test_every_text_has_its_own_code_whatever_stands_beside_it(kind, tokens):
    e = an_encoder(kind, tokens=tokens)
    out = e({"task": codes()[:, None]}, NOTHING)
    value = out.tokens if tokens else out.features
    assert value.shape == ((4, tokens, 16) if tokens else (4, 1, 16))
    assert torch.isfinite(value).all()  # the empty text, too
    assert float(torch.pdist(value.flatten(1)).min().detach()) > 1e-3  # word order included
    alone = e({"task": codes()[1:2, None]}, NOTHING)
    assert torch.allclose((alone.tokens if tokens else alone.features)[0], value[1], atol=1e-6)


@pytest.mark.parametrize("make", [NgramEncoder, TransformerEncoder])
def test_padding_is_not_read(make):
    torch.manual_seed(0)
    e = make(TextConfig(length=40, dim=16)).eval()
    assert torch.allclose(e(codes(20)), e(codes(40)), atol=1e-6)


def test_ngrams_by_hand():
    e = NgramEncoder(TextConfig(length=4, dim=4, buckets=1000))
    ab, abc, none = e.places(codes(4, ["ab", "abc", ""])).unbind(0)
    assert int((ab > 0).sum()) == 2 + 1  # " ab ": " ab", "ab " and " ab "
    assert int((abc > 0).sum()) == 3 + 2 + 1  # " abc "
    assert int((none > 0).sum()) == 0
    assert len(set(ab.tolist()) & set(abc.tolist()) - {0}) == 1  # " ab"
    assert int(e.places(codes(4, ["zzzz"])).max()) <= 1000


def test_the_config_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match=r"'ngram'.*ngrams"):
        TextConfig(encoder="ngram")
    with pytest.raises(ConfigError, match=r"no tokens.*transformer"):
        TextConfig(tokens=4)
    with pytest.raises(ConfigError, match=r"dim=30.*heads=4"):
        TextConfig(encoder="transformer", dim=30)
    with pytest.raises(ConfigError, match=r"all texts"):
        ObservationConfig(keys=["task"], text=TextConfig(keys=["task"]))


def test_a_text_is_the_same_at_every_observed_step():
    specs = {"state": ArraySpec(shape=(2,)), "task": ArraySpec(shape=(24,), dtype="uint8")}
    text = TextConfig(keys=["task"], length=24, dim=16)
    e = ObservationEncoder(ObservationConfig(keys=["state", "task"], text=text), specs)
    assert e.vector_keys == ["state"]
    state = torch.rand(4, 3, 2)
    stats = {"obs/state": compute_stats([state.flatten(0, 1).numpy()])}
    seen = e({"state": state, "task": codes()[:, None]}, Normalizer(stats, {"obs/state": KeyNorm()}))
    assert seen.features.shape == (4, 3, 18)
    assert torch.equal(seen.features[:, 0, :16], seen.features[:, 2, :16])
