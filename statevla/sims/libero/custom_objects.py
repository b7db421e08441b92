"""Objects of LIBERO-PRO's scenes that the simulator's package does not define: those whose model is in the assets.

LIBERO finds the class of a thing by its name. A free thing needs no class of its own, and a repainted cabinet or stove
is the one that it repaints; no code of LIBERO-PRO's package is run.
"""

from pathlib import Path
from typing import Any, Final

FOLDERS: Final = ("stable_hope_objects", "stable_scanned_objects", "turbosquid_objects", "custom_objects")
REPAINTED: Final = {"yellow_cabinet": "wooden_cabinet", "yellow_stove": "flat_stove"}
"""Thing with joints -> LIBERO's own thing with the same joints."""


def register(assets: Path) -> tuple[str, ...]:
    """Makes LIBERO know every ``<folder>/<name>/<name>.xml`` of ``assets`` that it does not know; returns their names.

    Imports the simulator: call it in a worker.
    """
    from libero.libero.envs.base_object import OBJECTS_DICT, VISUAL_CHANGE_OBJECTS_DICT
    from robosuite.models.objects import MujocoXMLObject

    found = []
    for model in sorted(m for folder in FOLDERS for m in (assets / folder).glob("*/*.xml")):
        if model.stem == model.parent.name and model.stem not in OBJECTS_DICT:
            OBJECTS_DICT[model.stem] = _free_thing(MujocoXMLObject, model)
            found.append(model.stem)
    for name, original in REPAINTED.items():
        if (assets / "articulated_objects" / f"{name}.xml").is_file() and name not in OBJECTS_DICT:
            OBJECTS_DICT[name] = _repainted(OBJECTS_DICT[original], name)
            if original in VISUAL_CHANGE_OBJECTS_DICT:
                VISUAL_CHANGE_OBJECTS_DICT[name] = OBJECTS_DICT[name]
            found.append(name)
    return tuple(found)


def _free_thing(base: Any, model: Path) -> type:
    class FreeThing(base):  # type: ignore[misc]  # robosuite is untyped
        """A thing that can be moved, as LIBERO's own classes make it of a model file."""

        def __init__(self, name: str = model.stem, obj_name: str = model.stem) -> None:
            joints = [{"type": "free", "damping": "0.0005"}]
            super().__init__(str(model), name=name, joints=joints, obj_type="all", duplicate_collision_geoms=False)
            self.category_name = model.stem
            self.rotation = (0.0, 0.0)
            self.rotation_axis = "z"
            self.object_properties: dict[str, Any] = {"vis_site_names": {}}

    return FreeThing


def _repainted(original: Any, model: str) -> type:
    class Repainted(original):  # type: ignore[misc]  # robosuite is untyped
        """One of LIBERO's things with joints, with the model file of a look-alike."""

        def __init__(self, name: str = model, obj_name: str = model) -> None:
            super().__init__(name, obj_name)
            self.category_name = model

    return Repainted
