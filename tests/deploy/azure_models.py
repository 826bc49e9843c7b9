"""Looks container apps up in the models of Azure's own library; reads JSON, prints a list of faults.

Run in the environment that has the library. The models take anything: that keys, kinds and names
of choices are known is compared with their declarations, and limits are those that they state in words.
"""

from __future__ import annotations

import enum
import json
import re
import sys
from typing import Any

PLAIN: dict[str, Any] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
LIMITS = {
    "ContainerAppProbe": {
        "failureThreshold": (1, 10), "periodSeconds": (1, 240), "timeoutSeconds": (1, 240),
        "initialDelaySeconds": (1, 60),
    },
    "Scale": {"maxReplicas": (1, 1000)},
}  # fmt: skip


def find_faults(value: Any, kind: str, path: str, models: Any) -> list[str]:
    """Faults in `value`, whose declared kind is `kind`."""
    if kind.startswith("Optional["):
        return find_faults(value, kind[9:-1], path, models)
    if kind.startswith("list["):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [f for one in value for f in find_faults(one, kind[5:-1], f"{path}[]", models)]
    if kind.startswith("dict["):
        below = kind.split(",", 1)[1][:-1].strip()
        pairs = value.items() if isinstance(value, dict) else ()
        return [f for k, one in pairs for f in find_faults(one, below, f"{path}.{k}", models)]
    if kind in PLAIN:
        right = isinstance(value, PLAIN[kind]) and (kind == "bool") == isinstance(value, bool)
        return [] if right else [f"{path} is no {kind}: {value!r}"]
    name = re.findall(r"_models[.](\w+)", kind)[0]
    model = getattr(models, name)
    if issubclass(model, enum.Enum):
        known = [one.value for one in model]
        return [] if value in known else [f"{path}: {value!r} is none of {name}"]
    return find_faults_in_model(value, model, path, models)


def find_faults_in_model(value: Any, model: Any, path: str, models: Any) -> list[str]:
    """Faults in a mapping of the model's fields."""
    if not isinstance(value, dict):
        return [f"{path} is no mapping"]
    fields = {
        field._rest_name_input or name: base.__annotations__[name]
        for base in model.__mro__
        for name, field in vars(base).items()
        if type(field).__name__ == "_RestField"
    }
    faults = []
    for key, below in value.items():
        if key not in fields:
            faults.append(f"{path}.{key} is not known to {model.__name__}")
        else:
            faults += find_faults(below, show_kind(fields[key]), f"{path}.{key}", models)
    for key, (least, most) in LIMITS.get(model.__name__, {}).items():
        if key in value and not least <= value[key] <= most:
            faults.append(f"{path}.{key}: {value[key]} is not within {least} to {most}")
    return faults


def show_kind(annotation: Any) -> str:
    """An annotation as it was written."""
    text = annotation.__name__ if annotation in (str, int, bool, float) else str(annotation)
    text = text.replace("typing.", "").replace("'", "").replace('"', "")
    return re.sub(r"ForwardRef\(([^)]*)\)", r"\1", text)


if __name__ == "__main__":
    from azure.mgmt.appcontainers import models

    given = json.load(sys.stdin)
    print(
        json.dumps(
            [f for one in given for f in find_faults(one, "_models.ContainerApp", "app", models)]
        )
    )
