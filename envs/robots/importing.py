"""A user's MJCF or URDF file as an MjSpec that a scene can take in: meshes found, no floor, no lights, no keyframes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import mujoco
import numpy as np

from visuomotor.data.errors import ConfigError

__all__ = ["compile_spec", "read_model"]

_READABLE = (".stl", ".obj", ".msh")  # mesh formats of MuJoCo


def read_model(path: Path) -> tuple[mujoco.MjSpec, np.ndarray | None]:
    """The model, and the joint positions ``[nq]`` of its keyframe ``home`` if it has one.

    A scene around the arm is taken off: planes (floors), lights and keyframes go; what else stands still on the world
    stays. Robot geoms collide with the scene and not with each other.

    Raises:
        ConfigError: no such file, a file that MuJoCo cannot read, or meshes that are missing.
    """
    if not path.is_file():
        raise ConfigError(f"model={path}: there is no such file")
    if path.suffix == ".xacro":
        raise ConfigError(f"model={path}: expand it first: xacro {path.name} > {path.stem}")
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as e:
        raise ConfigError(f"model={path} is not XML: {e}") from None
    if root.tag not in ("mujoco", "robot"):
        raise ConfigError(f"model={path}: its root is <{root.tag}>; expected <mujoco> (MJCF) or <robot> (URDF)")
    try:
        spec = mujoco.MjSpec.from_file(str(path)) if root.tag == "mujoco" else _from_urdf(root, path)
    except ConfigError:
        raise
    except ValueError as e:
        raise ConfigError(f"model={path}: MuJoCo cannot read it: {_line(e)}") from None
    keyframe = next((np.array(k.qpos) for k in spec.keys if k.name == "home"), None)
    _strip_scene(spec)
    _name_all(spec)
    return spec, keyframe


def compile_spec(spec: mujoco.MjSpec, path: Path) -> mujoco.MjModel:
    """The compiled model. Raises ConfigError with MuJoCo's reason in one line."""
    try:
        return spec.compile()
    except ValueError as e:
        raise ConfigError(f"model={path}: MuJoCo cannot compile it: {_line(e)}") from None


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())


def _from_urdf(root: ET.Element, path: Path) -> mujoco.MjSpec:
    """MuJoCo's importer, with fixed links and visuals kept and mesh paths made absolute.

    ``package://name/...`` is looked for beside the file and in the folders above it.
    """
    missing = []
    for holder in (*root.iter("visual"), *root.iter("collision")):
        for mesh in holder.iter("mesh"):
            name = mesh.get("filename", "")
            found = _find_mesh(name, path.parent)
            readable = Path(name).suffix.lower() in _READABLE
            if holder.tag == "visual" and not (found and readable):
                holder.set("drop", "")  # a look that MuJoCo cannot draw (.dae) harms nobody
            elif found is None or not readable:
                missing.append(name)
            else:
                mesh.set("filename", str(found))
    if missing:
        raise ConfigError(
            f"model={path}: collision meshes are missing or of no format that MuJoCo reads "
            f"({', '.join(_READABLE)}): {', '.join(sorted(set(missing)))}"
        )
    for link in root.iter("link"):
        for visual in [v for v in link.findall("visual") if v.get("drop") is not None]:
            link.remove(visual)
    extension = root.find("mujoco")
    extension = ET.SubElement(root, "mujoco") if extension is None else extension
    compiler = extension.find("compiler")
    compiler = ET.SubElement(extension, "compiler") if compiler is None else compiler
    for key in ("strippath", "fusestatic", "discardvisual"):
        compiler.set(key, "false")
    compiler.attrib.pop("meshdir", None)
    return mujoco.MjSpec.from_string(ET.tostring(root, encoding="unicode"))


def _find_mesh(name: str, folder: Path) -> Path | None:
    """File of a mesh that a URDF names."""
    name = name.removeprefix("file://")
    if not name.startswith("package://"):
        file = folder / name
        return file.resolve() if file.is_file() else None
    package, _, rest = name.removeprefix("package://").partition("/")
    folder = folder.resolve()
    for above in (folder, *folder.parents):
        for file in (above / package / rest, above / rest):
            if file.is_file():
                return file
    return None


def _name_all(spec: mujoco.MjSpec) -> None:
    """Give nameless joints, actuators and bodies names: everything is referred to by name from here on."""
    for kind, things in (("joint", spec.joints), ("actuator", spec.actuators), ("body", spec.bodies)):
        taken = {thing.name for thing in things}
        for i, thing in enumerate(things):
            if not thing.name:
                thing.name = next(n for n in (f"{kind}{i}", f"unnamed_{kind}{i}") if n not in taken)


def _strip_scene(spec: mujoco.MjSpec) -> None:
    for light in list(spec.lights):
        spec.delete(light)
    for key in list(spec.keys):
        spec.delete(key)
    for geom in list(spec.worldbody.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            spec.delete(geom)
    authored = spec.authored
    for name in (n for n in dir(authored) if not n.startswith("_")):
        setattr(authored, name, 0)  # the scene's options hold; without this every attachment warns of a conflict
    for geom in spec.geoms:
        if geom.contype or geom.conaffinity:
            geom.contype, geom.conaffinity = 2, 1
