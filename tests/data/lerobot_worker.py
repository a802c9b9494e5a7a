"""Loads a dataset with LeRobot's own loader, under its own interpreter: ``worker.py <dataset> <out.npz> <image key>``.

Writes every step's numbers, its task, and a few pictures, for the test that started it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch


def import_torchvision() -> Any:
    """Torchvision; one built for another torch lacks operators that nothing here calls, so they are declared."""
    try:
        return import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
        for op in ("nms", "qnms", "qroi_align", *pools, *(f"_{p}_backward" for p in pools)):
            library.define(f"{op}(Tensor x) -> Tensor")
        globals()["_library"] = library  # operators live as long as their library
        return import_module("torchvision")


def main() -> None:
    import_torchvision()
    loader = import_module("lerobot.datasets.lerobot_dataset")
    root, out, image = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    dataset = loader.LeRobotDataset("local/exported", root=root)
    table = dataset.hf_dataset.with_format("numpy")
    found: dict[str, Any] = {f"table/{k}": np.stack(table[k][:]) for k in table.column_names if k != image}
    found["lengths"] = np.array([dataset.meta.episodes[i]["length"] for i in range(dataset.meta.total_episodes)])
    found["tasks"] = np.array([dataset.meta.tasks.iloc[int(i)].name for i in found["table/task_index"]])
    found["stats"] = np.array(sorted(dataset.meta.stats))
    found["mean"] = np.asarray(dataset.meta.stats["action"]["mean"])
    rows = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(int))
    items = [dataset[int(i)] for i in rows]
    found["rows"] = rows
    found["item_action"] = np.stack([np.asarray(item["action"]) for item in items])
    found["item_task"] = np.array([item["task"] for item in items])
    found["pictures"] = np.stack([np.asarray(item[image]) for item in items])  # [n, 3, H, W] in 0..1
    np.savez(out, **found)


if __name__ == "__main__":
    main()
