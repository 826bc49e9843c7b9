"""A model's lineage in words."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.artifacts import NamedVersion, Store


@dataclass(frozen=True)
class LineageStep:
    """A model, and how it was made."""

    name: str
    how: str


def describe_lineage(store: Store, version: NamedVersion) -> list[LineageStep]:
    """The steps from the model itself back to its source, as far as they are stored."""
    known = {one.label: one for one in store.versions()}
    steps = [LineageStep(version.label, describe_making(version))]
    seen = {version.label}
    while version.lineage.parents:
        parent = version.lineage.parents[0]
        others = [one for one in known.values() if one.artifact == parent.id]
        if parent.name not in known and not others:
            steps.append(LineageStep(parent.name, "no longer stored"))
            break
        version = known.get(parent.name) or others[-1]
        if version.label in seen:
            break
        seen.add(version.label)
        steps.append(LineageStep(version.label, describe_making(version)))
    return steps


def describe_making(version: NamedVersion) -> str:
    """How one version was made from its parent, or where it came from."""
    lineage = version.lineage
    recipe, figures = lineage.recipe, lineage.figures
    step = recipe.get("step")
    if step == "prune":
        return f"pruned to {recipe['parameters']:.0%}: {figures.get('way', '')}"
    if step == "distill":
        return f"distilled on {figures.get('tokens', recipe.get('tokens')):,} tokens"
    if step == "openvino":
        scheme = recipe.get("quantize", "")
        if figures.get("recipe"):
            return (
                f"{scheme}: {figures['recipe']}, {figures['bits_per_weight']:.2f} bits per weight"
            )
        return "16-bit weights" if scheme == "none" else f"{scheme}, rounded to nearest"
    if step:
        scheme = recipe.get("scheme") or recipe.get("quantize")
        return f"{step} {scheme}" if scheme else str(step)
    return lineage.source or "added"
