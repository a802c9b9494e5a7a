"""The shape of the code: imports point one way, heavy packages have one door each, public names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("data", "envs", "policies", "sim2real", "configs")  # each may import itself and what stands to its left
MODULES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))
ONE_DOOR = (
    ("gym_pusht",),
    ("av",),
    ("rerun",),
    ("diffusers",),
    ("tensorboard", "torch.utils.tensorboard"),
    ("matplotlib",),
    ("cyclonedds",),
    ("rclpy",),
    ("rospy",),
    ("websockets",),
    ("msgpack",),
    ("isaacgym",),
    ("h5py",),
    ("mujoco.sysid",),
)
ELSEWHERE = ROOT / "envs" / "suites" / "adapters.py"  # runs in other Python environments, never in this one
WITHOUT_TORCH = ("errors", "spec", "store", "recorder", "windows", "rotations", "angles", "actions")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("visuomotor", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute module name imported anywhere in the file, inside functions as well, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write `from visuomotor...`"
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc", ".pyi")


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down_the_arrow(path: Path) -> None:
    allowed = LAYERS[: LAYERS.index(path.relative_to(ROOT).parts[0]) + 1]
    for line, name in imports_of(path):
        if is_inside(name, "visuomotor") and name != "visuomotor":
            layer = name.split(".")[1]
            assert layer in allowed, f"{path.relative_to(ROOT)}:{line} imports {name}; it may import {allowed}"
        assert name.split(".")[0] not in LAYERS, f"{path.relative_to(ROOT)}:{line}: write visuomotor.{name}"


@pytest.mark.parametrize("names", ONE_DOOR, ids=lambda names: names[0])
def test_heavy_packages_are_imported_in_one_file(names: tuple[str, ...]) -> None:
    doors = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if path != ELSEWHERE
        for _, got in imports_of(path)
        for n in names
        if is_inside(got, n)
    }
    assert len(doors) <= 1, f"{names[0]} is imported in {sorted(doors)}; keep one"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_names_exist(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    if path.name != "__init__.py":
        assert hasattr(module, "__all__"), f"{path.relative_to(ROOT)} has no __all__"
    missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert not missing, f"{path.relative_to(ROOT)}: __all__ names {missing}, which do not exist"
    assert len(set(getattr(module, "__all__", ()))) == len(getattr(module, "__all__", ()))


def test_package_list_equals_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    modules = {module_name(p) for p in MODULES if p.name == "__init__.py"}
    # to setuptools a folder of YAML or assets is a package too: unlisted, it is shipped with a deprecation warning
    data = {
        module_name(p.parent / "__init__.py") for layer in LAYERS for p in (ROOT / layer).rglob("*.*") if is_data(p)
    }
    assert set(settings["packages"]) == modules | data
    assert settings["package-dir"] == {f"visuomotor.{layer}": layer for layer in LAYERS}
    bare = {str(p.parent.relative_to(ROOT)) for p in MODULES if not (p.parent / "__init__.py").exists()}
    assert not bare, f"folders with modules but without __init__.py are absent from the wheel: {sorted(bare)}"
    links = {p.name: str(p.readlink()) for p in (ROOT / ".typing" / "visuomotor").iterdir()}
    assert links == {layer: f"../../{layer}" for layer in LAYERS}


def run_python(code: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_robot_side_modules_import_without_torch(tmp_path: Path) -> None:
    names = ["visuomotor.data", *(f"visuomotor.data.{m}" for m in WITHOUT_TORCH)]
    run_python(
        f"import sys, importlib; sys.modules['torch'] = None\nfor m in {names!r}: importlib.import_module(m)", tmp_path
    )


def test_importing_the_data_package_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = [names[0] for names in ONE_DOOR if names[0] != "msgpack"]  # numcodecs loads that where it is installed
    run_python(
        f"import sys, visuomotor.data; got = [m for m in {heavy!r} if m in sys.modules]; assert not got, got", tmp_path
    )


def test_exactly_one_opencv_and_it_is_the_one_that_imports() -> None:
    import cv2

    found = {
        d.name: d.version
        for d in importlib.metadata.distributions()
        if d.name.lower().replace("_", "-").startswith("opencv-")
    }
    assert len(found) == 1, f"OpenCV distributions overwrite each other, keep one: {found}"
    version = next(iter(found.values()))
    assert version == cv2.__version__ or version.startswith(cv2.__version__ + "."), (
        f"metadata {version}, cv2 {cv2.__version__}"
    )


def test_no_file_is_longer_than_350_lines() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert not {name: n for name, n in lengths.items() if n > 350}
