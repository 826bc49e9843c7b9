"""A model's lineage in words."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.artifacts import NamedVersion, Store
from thrifty.artifacts.lineage import walk_lineage


@dataclass(frozen=True)
class LineageStep:
    """A model, and how it was made."""

    name: str
    how: str


def describe_lineage(store: Store, version: NamedVersion) -> list[LineageStep]:
    """The steps from the model itself back to its source, as far as they are stored."""
    versions = list(walk_lineage(store, version))
    steps = [LineageStep(one.label, describe_making(one)) for one in versions]
    stored = {one.artifact for one in versions}
    steps += [
        LineageStep(parent.name, "no longer stored")
        for parent in versions[-1].lineage.parents[:1]
        if parent.id not in stored
    ]
    return steps


def describe_making(version: NamedVersion) -> str:
    """How one version was made from its parent, or where it came from."""
    lineage = version.lineage
    recipe, figures = lineage.recipe, lineage.figures
    step = recipe.get("step")
    if step == "prune":
        share = recipe["parameters"]
        return f"pruned{f' to {share:.0%}' if share else ''}: {figures.get('way', '')}"
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
