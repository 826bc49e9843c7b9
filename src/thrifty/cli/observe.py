"""`thrifty observe export`: a dashboard, rules and a configuration as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from thrifty.cli.show import print_json, print_line
from thrifty.errors import ThriftyError
from thrifty.files import write_atomically
from thrifty.fleet.controller_note import read_controller_note
from thrifty.home import find_home
from thrifty.observe.dashboard import make_dashboard
from thrifty.observe.rules import make_rules
from thrifty.spec import load_spec
from thrifty.spec.alerts import AlertsSpec

DASHBOARD, RULES, CONFIG = "grafana-dashboard.json", "thrifty-rules.yaml", "prometheus.yaml"
_HEADER = "# Written by 'thrifty observe export'.\n"


def run_export(folder: Path, spec: Path | None, *, as_json: bool) -> None:
    """Write the files. Those that are there are replaced."""
    alerts = load_spec(spec).spec.alerts if spec is not None else AlertsSpec()
    note = read_controller_note(find_home())
    target = note.url.partition("://")[2] if note is not None else "127.0.0.1:8080"
    files = {
        DASHBOARD: json.dumps(make_dashboard(), indent=2) + "\n",
        RULES: _HEADER + _dump(make_rules(alerts.availability, alerts.minimum)),
        CONFIG: _HEADER + _dump(_make_config(target)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
    except OSError as error:
        raise ThriftyError(f"{folder} cannot be written: {error.strerror or error}") from None
    if as_json:
        print_json({"folder": str(folder), "files": list(files)})
        return
    print_line(f"{folder / DASHBOARD}: import it in Grafana")
    print_line(f"{folder / RULES}: recording and alert rules; list it in Prometheus's rule_files")
    print_line(f"{folder / CONFIG}: a Prometheus that scrapes {target}, with these rules")


def _make_config(target: str) -> dict[str, Any]:
    """A configuration that is complete but for the key, which is in a file that only Prometheus
    reads.
    """
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [RULES],
        "scrape_configs": [
            {"job_name": "thrifty", "static_configs": [{"targets": [target]}]},
        ],
    }


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100, allow_unicode=True)
