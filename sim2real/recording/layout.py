"""What a recording from the arm holds: which arrays and columns, and whether a store can take it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from visuomotor.data.errors import DataError
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore
from visuomotor.policies.spec import PolicySpec

__all__ = ["COLUMNS", "EXTRA", "INTERVENTION", "array_specs", "open_store"]

INTERVENTION = "is_intervention"
EXTRA = (
    "sent",
    "sent_gripper",
    "measured_joints",
    "measured_velocity",
    "measured_gripper",
    "stamp",
    INTERVENTION,
)
"""Arrays beside the policy's own: recorded where the store has them, as one that is made here does."""
COLUMNS = {
    "success": "bool", "seed": "int64", "task": "str", "interventions": "int64", "complete": "bool", "events": "str",
}  # fmt: skip
"""Values for each episode. ``complete`` is false for one that was cut off because the disk did not keep up."""


def array_specs(policy: PolicySpec, joints: tuple[str, ...], *, gripper: bool) -> dict[str, ArraySpec]:
    """Arrays of a recording: the policy's observations and action under their own names, and :data:`EXTRA`.

    Args:
        policy: whose episodes they are.
        joints: as the driver names them.
        gripper: whether the robot has one.
    """
    n = (len(joints),)
    extra = {
        "sent": ArraySpec(shape=n, unit="rad", names=joints, source="commanded, after the safety filter"),
        "sent_gripper": ArraySpec(shape=(1,), names=("opening",), source="commanded"),
        "measured_joints": ArraySpec(shape=n, unit="rad", names=joints, source="measured"),
        "measured_velocity": ArraySpec(shape=n, unit="rad/s", names=joints, source="measured"),
        "measured_gripper": ArraySpec(shape=(1,), names=("opening",), source="measured"),
        "stamp": ArraySpec(shape=(), dtype="float64", role="timestamp", unit="s", source="seconds since 1970"),
        INTERVENTION: ArraySpec(shape=(), dtype="bool", role="intervention"),
    }
    own = {k: s for k, s in policy.obs.items() if k not in policy.constant_keys}
    mine = {*own, policy.action_key, *(() if gripper else ("sent_gripper", "measured_gripper"))}
    return {**own, policy.action_key: policy.action, **{k: s for k, s in extra.items() if k not in mine}}


def open_store(path: Path, specs: Mapping[str, ArraySpec], fps: float) -> DemoStore:
    """The store at ``path``, made if it is not there. One that is there may lack some of the arrays.

    Raises:
        DataError: a store of another rate, or with an array or a column that is not recorded here.
    """
    if not path.exists():
        origin = {"recorded": "visuomotor"}
        return DemoStore.create(path, dict(specs), fps=fps, episode_columns=COLUMNS, origin=origin)
    store = DemoStore.open(path, "a")
    try:
        _check(store, specs, fps)
    except BaseException:
        store.close()
        raise
    return store


def _check(store: DemoStore, specs: Mapping[str, ArraySpec], fps: float) -> None:
    if store.fps is not None and abs(store.fps - fps) > 1e-6 * fps:
        raise DataError(
            f"{store.path} has {store.fps:g} steps per second, this policy {fps:g}: record into another store"
        )
    for key, theirs in store.specs.items():
        if key not in specs:
            raise DataError(
                f"{store.path} has the array {key!r}, which is not recorded here; it would be {', '.join(specs)}: "
                "record into another store (training takes several)"
            )
        ours = specs[key]
        if theirs.shape != ours.shape or (theirs.names and ours.names and theirs.names != ours.names):
            raise DataError(
                f"{store.path} has {key!r} of shape {list(theirs.shape)} ({theirs.names}), here it is "
                f"{list(ours.shape)} ({ours.names}): record into another store"
            )
    unknown = sorted(set(store.column_types) - set(COLUMNS))
    if unknown:
        raise DataError(f"{store.path} has the episode column {unknown[0]!r}, which nobody fills in here")
