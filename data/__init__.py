"""What an observation, an action and a demonstration are.

The names here import without torch, so that the robot's control process can record and read demonstrations.
"""

from __future__ import annotations

from visuomotor.data.describe import describe
from visuomotor.data.errors import CheckpointError, ConfigError, DataError, MissingExtraError, UserError
from visuomotor.data.recorder import EpisodeRecorder
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.data.validate import Finding, validate
from visuomotor.data.windows import WindowConfig, WindowTable, split_episodes, window_table

__all__ = [
    "ArraySpec",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DemoStore",
    "EpisodeRecorder",
    "Finding",
    "MissingExtraError",
    "UserError",
    "WindowConfig",
    "WindowTable",
    "describe",
    "split_episodes",
    "validate",
    "window_table",
]
