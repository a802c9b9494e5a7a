"""A small, valid sample of every format that can be imported, for tests that damage it."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr

from visuomotor.data.exporting.registry import export_demos
from visuomotor.data.importing.tfrecord import masked_crc
from visuomotor.data.spec import ArraySpec
from visuomotor.data.store import DemoStore

__all__ = ["SAMPLES", "Sample", "masked_crc"]

LENGTHS = (8, 5)


@dataclass(frozen=True)
class Sample:
    """What was written: ``path``; and whether its format notices every changed bit of the values."""

    path: Path
    format: str
    options: dict[str, Any] = field(default_factory=dict)
    checksums: bool = False


def episodes(camera: bool = True) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for n in LENGTHS:
        arrays: dict[str, np.ndarray] = {
            "action": rng.random((n, 2), np.float32),
            "state": rng.random((n, 3), np.float32),
        }
        if camera:
            arrays["camera"] = rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
        yield arrays


def store(folder: Path, camera: bool = True) -> Path:
    path = folder / "clean.zarr"
    specs = {
        "action": ArraySpec(shape=(2,), role="action"),
        "state": ArraySpec(shape=(3,), role="observation"),
    }
    if camera:
        specs["camera"] = ArraySpec(shape=(16, 16, 3), dtype="uint8", role="observation")
    with DemoStore.create(path, specs, fps=10, episode_columns={"task": "str"}) as demos:
        for arrays in episodes(camera):
            demos.append_episode(arrays, {"task": "push"})
    return path


def exported(folder: Path, name: str, format: str, **options: Any) -> Path:
    with DemoStore.open(store(folder)) as demos:
        export_demos(demos, folder / name, format, options=options)
    return folder / name


def lerobot(folder: Path) -> Sample:
    return Sample(exported(folder, "lerobot", "lerobot"), "lerobot")


def lerobot_png(folder: Path) -> Sample:
    return Sample(exported(folder, "lerobot_png", "lerobot", images="png"), "lerobot")


def robomimic(folder: Path) -> Sample:
    return Sample(exported(folder, "robomimic.hdf5", "robomimic"), "robomimic")


def aloha(folder: Path) -> Sample:
    import h5py

    (folder / "aloha").mkdir()
    for i, arrays in enumerate(episodes()):
        with h5py.File(folder / "aloha" / f"episode_{i}.hdf5", "w") as f:
            n = len(arrays["action"])
            f.attrs["sim"] = True
            f["action"] = np.resize(arrays["action"], (n, 14))
            f["observations/qpos"] = np.resize(arrays["state"], (n, 14))
            f["observations/qvel"] = np.zeros((n, 14))
            f.create_dataset("observations/images/top", data=arrays["camera"], chunks=(1, 16, 16, 3))
    return Sample(folder / "aloha", "aloha")


def minari(folder: Path) -> Sample:
    import h5py

    data = folder / "minari" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as f:
        for i, arrays in enumerate(episodes()):
            n = len(arrays["action"])
            g = f.create_group(f"episode_{i}")
            g.attrs.update({"id": i, "seed": 3, "total_steps": n})
            g.create_dataset(
                "observations", data=np.concatenate([arrays["state"], arrays["state"][-1:]]), compression=4
            )
            g["actions"], g["rewards"] = arrays["action"], np.zeros(n)
            g["terminations"], g["truncations"] = np.zeros(n, bool), np.arange(n) == n - 1
    text = {"dataset_id": "a/b-v0", "total_episodes": len(LENGTHS), "data_format": "hdf5"}
    (data / "metadata.json").write_text(json.dumps(text))
    return Sample(folder / "minari", "minari")


def zarr_2(folder: Path) -> Sample:
    path = folder / "buffer.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    data, meta = group.create_group("data"), group.create_group("meta")
    whole = [np.concatenate(parts) for parts in zip(*(e.values() for e in episodes()), strict=True)]
    for key, array in zip(next(episodes()), whole, strict=True):
        chunks = (4, *array.shape[1:])
        codec = numcodecs.Blosc("zstd") if key == "camera" else numcodecs.Zlib()
        data.create_array(key, shape=array.shape, chunks=chunks, dtype=array.dtype, compressors=codec)[:] = array
    meta.create_array("episode_ends", shape=(2,), chunks=(2,), dtype="int64")[:] = np.cumsum(LENGTHS)
    return Sample(path, "zarr")


def zarr_3(folder: Path) -> Sample:
    return Sample(store(folder), "zarr", checksums=True)


def zarr_zip(folder: Path) -> Sample:
    source, path = zarr_2(folder).path, folder / "buffer.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(source).as_posix())
    return Sample(path, "zarr", checksums=True)


def umi(folder: Path) -> Sample:
    """Zip of Zarr 2 with one JPEG XL file a frame, written without a codec that zarr would have to know."""
    import imagecodecs

    path = folder / "dataset.zarr.zip"
    whole = [np.concatenate(parts) for parts in zip(*(e.values() for e in episodes()), strict=True)]
    arrays: dict[str, np.ndarray] = {"data/robot0_eef_pos": whole[1], "data/camera0_rgb": whole[2]}
    arrays |= {"data/robot0_gripper_width": whole[0][:, :1], "meta/episode_ends": np.cumsum(LENGTHS)}
    with zipfile.ZipFile(path, "w") as archive:
        for group in ("", "data/", "meta/"):
            archive.writestr(f"{group}.zgroup", '{"zarr_format": 2}')
        for name, array in arrays.items():
            frames = name == "data/camera0_rgb"
            chunks = [1, *array.shape[1:]] if frames else list(array.shape)
            about = {
                "zarr_format": 2, "shape": list(array.shape), "chunks": chunks, "dtype": array.dtype.str, "order": "C",
                "fill_value": 0, "filters": None, "compressor": {"id": "imagecodecs_jpegxl"} if frames else None,
            }  # fmt: skip
            archive.writestr(f"{name}/.zarray", json.dumps(about))
            rows = [imagecodecs.jpegxl_encode(f, lossless=True) for f in array] if frames else [array.tobytes()]
            for i, row in enumerate(rows):
                archive.writestr(f"{name}/{'.'.join([str(i)] + ['0'] * (array.ndim - 1))}", row)
    return Sample(path, "zarr", checksums=True)


def npz(folder: Path) -> Sample:
    return Sample(exported(folder, "demos.npz", "npz"), "npz", checksums=True)


def npz_folder(folder: Path) -> Sample:
    return Sample(exported(folder, "demos", "npz", compress=True), "npz", checksums=True)


MAPPING = {
    "fps": 10,
    "keys": {
        "state": {"topic": "/state", "field": ["x", "y", "z"], "role": "observation"},
        "action": {"topic": "/action", "field": ["x", "y"], "role": "action"},
    },
}


def bag(folder: Path, kind: str) -> Sample:
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin
    from rosbags.rosbag2 import Writer as Writer2
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS1_NOETIC if kind == "ros1" else Stores.ROS2_HUMBLE)
    name = "geometry_msgs/msg/Vector3"
    vector, path = types.types[name], folder / (f"{kind}.bag" if kind == "ros1" else kind)
    plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
    writer: Any = Writer1(path) if kind == "ros1" else Writer2(path, version=9, storage_plugin=plugin)
    encode: Callable[..., Any] = types.serialize_ros1 if kind == "ros1" else types.serialize_cdr
    with writer:
        links = [writer.add_connection(topic, name, typestore=types) for topic in ("/state", "/action")]
        for i in range(20):
            for link in links:
                writer.write(link, 10**18 + i * 10**8, encode(vector(x=float(i), y=0.5, z=-1.0), name))
    return Sample(path, "bag", {"mapping": MAPPING})


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def rlds(folder: Path) -> Sample:
    path = folder / "rlds"
    path.mkdir()

    def tensor(*shape: int) -> dict[str, Any]:
        return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": "float32", "encoding": "none"}}

    def group(**features: Any) -> dict[str, Any]:
        return {"featuresDict": {"features": features}}

    steps = group(action=tensor(2), observation=group(state=tensor(3)), language_instruction={"text": {}})
    (path / "features.json").write_text(json.dumps(group(steps={"sequence": {"feature": steps}})))
    split = {
        "name": "train",
        "shardLengths": [str(len(LENGTHS))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    (path / "dataset_info.json").write_text(json.dumps({"name": "demo", "fileFormat": "tfrecord", "splits": [split]}))
    records = b""
    for arrays in episodes():
        floats = {"steps/action": arrays["action"], "steps/observation/state": arrays["state"]}
        features = {k: message(2, message(1, v.astype("<f4").tobytes())) for k, v in floats.items()}
        texts = b"".join(message(1, b"push") for _ in arrays["action"])
        features["steps/language_instruction"] = message(1, texts)
        entries = b"".join(message(1, message(1, k.encode()) + message(2, v)) for k, v in features.items())
        records += record(message(1, entries))
    (path / "demo-train.tfrecord-00000-of-00001").write_bytes(records)
    return Sample(path, "rlds", checksums=True)


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "lerobot": lerobot,
    "lerobot_png": lerobot_png,
    "robomimic": robomimic,
    "aloha": aloha,
    "minari": minari,
    "zarr_2": zarr_2,
    "zarr_3": zarr_3,
    "zarr_zip": zarr_zip,
    "umi": umi,
    "npz": npz,
    "npz_folder": npz_folder,
    "ros1": lambda folder: bag(folder, "ros1"),
    "ros2": lambda folder: bag(folder, "ros2"),
    "mcap": lambda folder: bag(folder, "mcap"),
    "rlds": rlds,
}
