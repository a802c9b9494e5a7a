"""The MuJoCo model that recorded states belong to, from MJCF text that came with them.

Such text names meshes and textures where its author had them. They are looked for by name in a folder of the user's;
what is not found is left out and told: it changes pictures and not where bodies and sites are.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import mujoco

from visuomotor.data.errors import DataError

__all__ = ["ReplayModel", "read_replay_model"]

_MAX_BYTES, _MAX_SIDE = 16 << 20, 8192
_REFUSED = ("include", "plugin", "extension", "replicate", "composite", "flexcomp", "attach")
_VECTORS = ("pos", "quat", "euler", "axis", "axisangle", "xyaxes", "zaxis", "fromto", "size", "rgba", "range")
_SPHERE = "0.02"  # radius of what stands for a body whose every mesh is lost [m]


@dataclass(frozen=True)
class ReplayModel:
    """``model``, and in ``lost`` the names of the meshes and textures that were not found."""

    model: mujoco.MjModel
    lost: tuple[str, ...]


def read_replay_model(text: str, assets: Path | None = None) -> ReplayModel:
    """Compile MJCF text from a stranger.

    Files outside ``assets`` are never opened. Models that include others, load plug-ins or multiply parts of
    themselves are refused. A moving body that has lost its only shape gets a small sphere, so that it has a mass.

    Raises:
        DataError: no MJCF, what is refused, or what MuJoCo cannot compile.
    """
    root = _parse(text)
    lost = _resolve(root, assets)
    for element in root.iter():
        for name in _VECTORS:  # robosuite 1.0 wrote "[0, 0, 0.005]" for some
            if (value := element.get(name)) is not None and "[" in value:
                element.set(name, re.sub(r"[\[\],]+", " ", value).strip())
    try:
        return ReplayModel(mujoco.MjModel.from_xml_string(ET.tostring(root, encoding="unicode")), tuple(lost))
    except ValueError as error:
        raise DataError(f"the recorded model cannot be compiled: {' '.join(str(error).split())[:300]}") from None


def _parse(text: str) -> ET.Element:
    if len(text) > _MAX_BYTES or "<!" in re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL):
        raise DataError(f"the recorded model has {len(text)} characters or declares entities: expected plain MJCF")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"the recorded model is no XML: {error}") from None
    if root.tag != "mujoco":
        raise DataError(f"the recorded model is <{root.tag}>: expected <mujoco>")
    for element in root.iter():
        if element.tag in _REFUSED:
            raise DataError(f"the recorded model has <{element.tag}>, which is not read from strangers")
        for name in ("width", "height", "nrow", "ncol"):
            value = element.get(name, "0").strip()
            if element.tag in ("texture", "hfield") and not (value.isdecimal() and int(value[:9]) <= _MAX_SIDE):
                raise DataError(f"the recorded model has a {element.tag} of {name} {value!r}: at most {_MAX_SIDE}")
    for size in root.findall("size"):  # memory of old simulators; what is needed is counted anew
        root.remove(size)
    return root


def _resolve(root: ET.Element, assets: Path | None) -> list[str]:
    """Make names of files absolute; remove what is not in ``assets``. Returns what was not found."""
    index: dict[str, list[Path]] = {}
    for file in sorted(assets.rglob("*")) if assets is not None else []:
        if file.is_file():
            index.setdefault(file.name.lower(), []).append(file)
    lost: list[str] = []
    gone: dict[str, set[str]] = {"mesh": set(), "hfield": set(), "skin": set()}
    for compiler in root.iter("compiler"):
        for name in ("meshdir", "texturedir", "assetdir", "strippath"):
            compiler.attrib.pop(name, None)
    for asset in root.iter("asset"):
        for element in list(asset):
            files = [name for name in element.attrib if name.startswith("file")]
            found = {name: _find(element.attrib[name], index) for name in files}
            lost += [PurePosixPath(element.attrib[name]).name for name in files if found[name] is None]
            if None not in found.values():
                element.attrib.update({name: str(path) for name, path in found.items()})
            elif element.tag == "texture":
                _blank(element, files)
            else:
                asset.remove(element)
                named = element.get("name") or PurePosixPath(element.get("file", "")).stem
                gone.setdefault(element.tag, set()).add(named)
    for element in root.iter():
        if (
            element.tag != "asset"
            and any(n.startswith("file") for n in element.attrib)
            and not _in_asset(root, element)
        ):
            raise DataError(f"the recorded model reads a file in <{element.tag}>: expected files in <asset> only")
    _drop_shapes(root, gone)
    return sorted(set(lost))


def _in_asset(root: ET.Element, element: ET.Element) -> bool:
    return any(element in list(asset) for asset in root.iter("asset"))


def _find(name: str, index: dict[str, list[Path]]) -> Path | None:
    """The file of that name whose folders agree the furthest, from its end."""
    wanted = [part.lower() for part in PurePosixPath(name.replace("\\", "/")).parts]
    candidates = index.get(wanted[-1], []) if wanted else []
    return max(candidates, key=lambda p: _agreement([q.lower() for q in p.parts], wanted), default=None)


def _agreement(a: list[str], b: list[str]) -> int:
    n = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        n += 1
    return n


def _blank(texture: ET.Element, files: list[str]) -> None:
    for name in (*files, "gridsize", "gridlayout"):
        texture.attrib.pop(name, None)
    texture.attrib.update(builtin="flat", width="8", height="8", rgb1="0.6 0.6 0.6", rgb2="0.6 0.6 0.6")


def _drop_shapes(root: ET.Element, gone: dict[str, set[str]]) -> None:
    """Remove geoms, skins and pairs of what is gone."""
    names: set[str] = set()
    for body in list(root.iter()):
        for geom in body.findall("geom"):
            if geom.get("mesh") in gone["mesh"] or geom.get("hfield") in gone["hfield"]:
                body.remove(geom)
                names.add(geom.get("name", ""))
        weightless = body.find("geom") is None and body.find("inertial") is None
        if body.tag == "body" and weightless and (body.find("joint") is not None or body.find("freejoint") is not None):
            ET.SubElement(body, "geom", type="sphere", size=_SPHERE, contype="0", conaffinity="0", mass="0.1")
    for contact in root.iter("contact"):
        for pair in contact.findall("pair"):
            if {pair.get("geom1"), pair.get("geom2")} & names:
                contact.remove(pair)
