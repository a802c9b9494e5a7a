"""Write a store as robomimic HDF5, which robomimic's own ``SequenceDataset`` reads.

Layout after robomimic's documentation ("Datasets: overview"): ``data/demo_<i>`` with ``actions``, ``rewards``,
``dones``, ``states``, ``obs/<key>``, ``next_obs/<key>`` and attribute ``num_samples``; ``data`` with ``total`` and
``env_args``; ``mask/<filter key>`` with names of episodes. What this layout has no place for (names, units, roles, fps,
per-episode values) is kept as JSON in the attribute ``visuomotor`` of ``data``, from which the importer restores it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from visuomotor.data.errors import ConfigError, DataError, nearest
from visuomotor.data.exporting.job import ExportJob, check_options
from visuomotor.data.importing.hdf5 import load_h5py
from visuomotor.data.spec import ArraySpec

__all__ = ["export_robomimic"]

_OPTIONS = {"action": None, "next_obs": True, "compress": True, "env": None}
_NOT_ATTRIBUTES = ("filters", "env_args", "model")  # columns with a place of their own in the file
_GYM = 2  # robomimic's EnvType of environments that are made by gym.make(env_name)


def export_robomimic(job: ExportJob) -> list[str]:
    """Write ``job.path``. Observations and privileged arrays go to ``obs``, except ``states``.

    Options: ``action``: the array that becomes ``actions`` (else ``action``, or the only one of that role);
    ``next_obs``: also write what came after each action, which robomimic loads unless told not to (the last step of an
    episode repeats its own observation); ``compress``: pack pictures (gzip); ``env``: name of the environment.

    Raises:
        ConfigError: an unknown option or array.
        DataError: actions that are no vectors.
        MissingExtraError: h5py is not installed.
    """
    options = check_options(job.options, _OPTIONS, "robomimic")
    h5py = load_h5py()
    places = _places(job, options)
    notes = _notes(job, places, options)
    n_steps, env_args = 0, None
    filters: dict[str, list[str]] = {}
    spans: list[float] = []
    with h5py.File(job.path, "w") as file:
        data = file.create_group("data")
        for i, (_, arrays, columns) in enumerate(job.iter_episodes()):
            demo = data.create_group(f"demo_{i}")
            _write_episode(demo, arrays, columns, places, options)
            n_steps += int(demo.attrs["num_samples"])
            env_args = env_args or columns.get("env_args")
            for name in filter(None, str(columns.get("filters", "")).split(",")):
                filters.setdefault(name, []).append(f"demo_{i}")
            spans.append(float(np.abs(arrays[places["actions"]]).max()))
            if columns.get("model"):
                demo.attrs["model_file"] = columns["model"]
        name = options["env"] or _first_task(job)
        data.attrs["total"] = n_steps
        data.attrs["env_args"] = env_args or json.dumps({"env_name": name, "type": _GYM, "env_kwargs": {}})
        data.attrs["visuomotor"] = json.dumps(_description(job, places))
        for key, members in filters.items():
            file[f"mask/{key}"] = np.array(members, dtype="S")
    if max(spans) > 1:
        notes.append(f"actions reach {max(spans):.4g}: robomimic's training expects them within [-1, 1]")
    return notes


def _places(job: ExportJob, options: dict[str, Any]) -> dict[str, str]:
    """``{path in an episode: array}``."""
    specs = job.specs
    actions = [key for key, spec in specs.items() if spec.role == "action"]
    chosen = options["action"] or ("action" if "action" in actions else actions[0] if len(actions) == 1 else None)
    if chosen is None:
        raise ConfigError(f"several arrays are actions, or none: say which by options.action=. {nearest('', actions)}")
    if chosen not in specs:
        raise ConfigError(f"options.action={chosen} is not exported. {nearest(chosen, specs)}")
    if len(specs[chosen].shape) != 1:
        raise DataError(f"{chosen!r} has shape {list(specs[chosen].shape)} a step: robomimic's actions are vectors")
    places = {"actions": chosen}
    for key, spec in specs.items():
        if key != chosen:
            place = _place(key, spec, specs)
            places[place if place not in places else key] = key
    return places


def _place(key: str, spec: ArraySpec, specs: dict[str, ArraySpec]) -> str:
    if spec.role == "reward" and not spec.shape:
        return "rewards"
    if key == "done" and not spec.shape:
        return "dones"
    if key == "states" and len(spec.shape) == 1:
        return "states"
    if spec.role in ("observation", "privileged"):
        return f"obs/{key}"
    if key.startswith("next_") and specs.get(key[5:], spec).shape == spec.shape and key[5:] in specs:
        return f"next_obs/{key[5:]}"
    return key


def _write_episode(
    demo: Any, arrays: dict[str, np.ndarray], columns: dict[str, Any], places: dict[str, str], options: dict[str, Any]
) -> None:
    n = len(arrays[places["actions"]])
    demo.attrs["num_samples"] = n
    for place, key in places.items():
        _write(demo, place, arrays[key], options["compress"])
        after = f"next_{place}"
        if place.startswith("obs/") and options["next_obs"] and after not in places:
            rows = np.concatenate([arrays[key][1:], arrays[key][-1:]])
            _write(demo, after, rows, options["compress"])
    if "dones" not in places:
        demo["dones"] = (np.arange(n) == n - 1).astype(np.int64)
    if "rewards" not in places:
        rewards = np.zeros(n)
        rewards[-1] = float(columns.get("success") is True)
        demo["rewards"] = rewards
    for name, value in columns.items():
        if name not in _NOT_ATTRIBUTES:
            demo.attrs[f"column.{name}"] = value


def _write(group: Any, name: str, rows: np.ndarray, compress: bool) -> None:
    if compress and rows.ndim >= 3 and rows[0].nbytes >= 4096:
        group.create_dataset(name, data=rows, chunks=(1, *rows.shape[1:]), compression="gzip", compression_opts=4)
    else:
        group.create_dataset(name, data=rows)


def _description(job: ExportJob, places: dict[str, str]) -> dict[str, Any]:
    return {
        "fps": job.store.fps,
        "keys": {place: {"name": key, "spec": job.specs[key].to_dict()} for place, key in places.items()},
        "columns": job.store.column_types,
    }


def _first_task(job: ExportJob) -> str:
    tasks = job.store.episode_columns.get("task")
    return str(tasks[job.episodes[0]]) if tasks is not None else ""


def _notes(job: ExportJob, places: dict[str, str], options: dict[str, Any]) -> list[str]:
    notes = []
    if options["next_obs"] and any(p.startswith("obs/") and f"next_{p}" not in places for p in places):
        notes.append("next_obs repeats the last observation of each episode: the store has none after the last action")
    if not any(place.startswith("obs/") for place in places):
        notes.append("there are no observations: robomimic can replay this file, not train on it")
    if "env_args" not in job.store.column_types:
        notes.append("env_args names no simulator that robomimic could evaluate in: train with rollouts switched off")
    added = [name for name in ("rewards", "dones") if name not in places]
    if added:
        notes.append(
            f"{' and '.join(added)} are made up: the last step of an episode is done, and 1 where it succeeded"
        )
    return notes
