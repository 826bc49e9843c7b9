"""Security scanners that others wrote find nothing in what is rendered that is not justified.

`make test-deploy` runs these. `rules.yaml` has the rules.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.scanners import Finding, judge, read_rules, run_checkov, run_trivy
from tests.deploy.specs import FLEET, ONE_MODEL, SEVERAL, TWO_VERSIONS, render

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DIGEST = f"registry.example.com/thrifty@sha256:{'0' * 64}"
FRONT = {
    "host": "llm.example.com", "ingress_class": "nginx", "ingress_tls": "tls", "monitoring": "true",
    "parent_gateway": "infra/public", "tls": "true", "database": "true", "redis": "true",
}  # fmt: skip
PINNED = {**FLEET, "fleet": {**FLEET["fleet"], "image": DIGEST, "tls": True}}
CASES: dict[str, tuple[str, list[tuple[str, dict[str, Any], dict[str, str]]]]] = {
    "kubernetes": (
        "kubernetes",
        [
            ("kubernetes", TWO_VERSIONS, {**FRONT, "autoscale": "hpa"}),
            ("kubernetes", SEVERAL, {"storage": "claim"}),
            ("kubernetes", PINNED, {"storage": "claim"}),
            ("ray", TWO_VERSIONS, {}),
            ("knative", TWO_VERSIONS, {}),
            ("kserve", TWO_VERSIONS, {}),
        ],
    ),
    "cloudformation": (
        "cloudformation",
        [("fargate", ONE_MODEL, {"count": "2"}), ("lambda", ONE_MODEL, {})],
    ),
}
"""What is rendered into folders, by the framework that scanners look at it as."""


def write(folder: Path, framework: str) -> list[Path]:
    """Every case of a framework, in a folder of its own."""
    folders = []
    for number, (target, spec, options) in enumerate(CASES[framework][1]):
        one = folder / f"{number}-{target}"
        for name, text in render(target, spec, image=DIGEST, **options).items():
            (one / name).parent.mkdir(parents=True, exist_ok=True)
            (one / name).write_text(text)
        folders.append(one)
    return folders


def expect_nothing(findings: list[Finding], framework: str) -> None:
    judged = judge(findings, framework)
    assert judged.faults == ()
    assert judged.unknown == (), "rules that are in no list of rules.yaml"


@pytest.mark.parametrize("framework", sorted(CASES))
def test_nothing_is_found_in_what_is_rendered(framework: str, tmp_path: Path) -> None:
    cache, findings = tmp_path / "cache", []
    cache.mkdir()
    for folder in write(tmp_path / "rendered", framework):
        findings += run_trivy(folder, cache)
        for extra in folder.glob("Containerfile"):
            extra.unlink()
        findings += run_checkov(folder, framework)
    expect_nothing([one for one in findings if not one.rule.startswith("DS")], framework)
    expect_nothing([one for one in findings if one.rule.startswith("DS")], "dockerfile")
    # A justification that nothing needs any more would hide the next finding of its rule.
    assert judge(findings, framework).unused == ()


def test_nothing_is_found_in_the_containerfile(tmp_path: Path) -> None:
    folder, cache = tmp_path / "image", tmp_path / "cache"
    folder.mkdir()
    cache.mkdir()
    shutil.copy(ROOT / "deploy" / "Containerfile", folder / "Dockerfile")
    expect_nothing([*run_trivy(folder, cache), *run_checkov(folder, "dockerfile")], "dockerfile")


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    folder, cache = tmp_path / "wrong", tmp_path / "cache"
    folder.mkdir()
    cache.mkdir()
    for name, text in render("kubernetes", TWO_VERSIONS, image=DIGEST).items():
        wrong = text.replace("allowPrivilegeEscalation: false", "privileged: true")
        wrong = wrong.replace("runAsNonRoot: true", "runAsNonRoot: false")
        (folder / name).write_text(wrong)
    findings = [*run_trivy(folder, cache), *run_checkov(folder, "kubernetes")]
    found = {one.rule for one in judge(findings, "kubernetes").faults}
    assert {"CKV_K8S_16", "CKV_K8S_20", "KSV001", "KSV017"} <= found


def test_rules_are_in_one_list_and_reasons_are_given() -> None:
    rules = read_rules()
    for scanner in ("checkov", "trivy"):
        for framework, lists in rules[scanner].items():
            assert not set(lists["rules"]) & set(lists["left_out"]), (scanner, framework)
            assert len(lists["rules"]) == len(set(lists["rules"]))
            assert all(lists["left_out"].values())
    for one in rules["justified"]:
        assert one["why"]
        known = {
            rule
            for scanner in ("checkov", "trivy")
            for framework in one["in"]
            for rule in rules[scanner][framework]["rules"]
        }
        assert set(one["rules"]) <= known, "what is left out needs no justification"
