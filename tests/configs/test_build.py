"""From saved settings to objects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from visuomotor.configs.build import _typed
from visuomotor.data.errors import ConfigError
from visuomotor.policies.encoders.config import ObservationConfig


@pytest.mark.parametrize(
    ("where", "name", "value", "says"),
    [
        ((), "imge", {}, r"ObservationConfig has no setting 'imge'. Did you mean 'image'"),
        (("image",), "gone", 1, r"image\.gone: Key 'gone' not in 'ImageConfig'"),
        (("image", "vit"), "dim", "wide", r"image\.vit\.dim: Value 'wide' of type 'str'"),
        (("image", "vit"), "dim", 7, r"dim=7 is not a multiple of heads=3"),
    ],
)
def test_settings_of_another_version_are_refused_in_a_sentence(where, name, value, says):
    saved: dict[str, Any] = asdict(ObservationConfig())
    assert _typed(ObservationConfig, saved) == ObservationConfig()
    inner = saved
    for part in where:
        inner = inner[part]
    inner[name] = value
    with pytest.raises(ConfigError, match=says):
        _typed(ObservationConfig, saved)
