"""What gets installed is what the folders hold: wheel, sdist, and an import from a folder that shadows our names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("data", "envs", "policies", "sim2real", "configs")
SHIPPED = {".py", ".yaml", ".html", ".xml", ".stl", ".obj", ".png", ".typed"}  # suffixes of code, settings and assets


def pip(*args: str | Path, cwd: Path) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build_wheel(source: Path, into: Path) -> tuple[Path, str]:
    # verbose, because pip hides what a build backend says unless it fails
    log = pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "-v", "-w", into, cwd=into)
    (wheel,) = into.glob("visuomotor-*.whl")
    return wheel, log


def shipped_files() -> set[str]:
    """Path inside the wheel of every file that a folder ships."""
    files = (p for layer in LAYERS for p in (ROOT / layer).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {f"visuomotor/{p.relative_to(ROOT)}" for p in files if p.suffix in SHIPPED or p.name == "py.typed"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout holds, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("source") / "visuomotor"
    copy.mkdir()
    for layer in LAYERS:
        shutil.copytree(ROOT / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_exactly_what_the_folders_hold(wheel: tuple[Path, str]) -> None:
    names = zipfile.ZipFile(wheel[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"visuomotor"}
    assert {n for n in names if n.startswith("visuomotor/")} == shipped_files()
    assert any(n.endswith("licenses/LICENSE") for n in names)
    (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
    assert "visuomotor = visuomotor.configs.cli:main" in zipfile.ZipFile(wheel[0]).read(entry_points).decode()


def test_build_prints_no_setuptools_warning(wheel: tuple[Path, str]) -> None:
    shouted = [line for line in wheel[1].splitlines() if "Warning:" in line or "by 2027" in line.lower()]
    assert not shouted, wheel[1]


def test_sdist_builds_the_same_wheel(source: Path, wheel: tuple[Path, str], tmp_path: Path) -> None:
    code = f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("visuomotor-*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "out").mkdir()
    again, _ = build_wheel(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "out")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel[0]).namelist())


def test_installed_wheel_imports_beside_folders_of_the_same_names(wheel: tuple[Path, str], tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "scratch"
    for layer in LAYERS:  # a robot-learning scratch folder nearly always holds a `data/`
        (elsewhere / layer).mkdir(parents=True)
        (elsewhere / layer / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel[0], cwd=elsewhere)
    assert {p.name for p in target.iterdir() if not p.name.endswith(".dist-info")} <= {"visuomotor", "bin"}
    # the target goes first, so that the editable install of the repository cannot answer in its place
    code = (
        f"import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        f"sys.path.insert(0, {str(target)!r})\n"
        "import visuomotor.data, visuomotor.data.errors as e; print(visuomotor.data.__file__); print(e.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(target)) for line in done.stdout.split())
