"""`thrifty certificates`: the certificates of a fleet."""

from __future__ import annotations

from pathlib import Path

from thrifty.cli.show import print_json, print_line, print_table
from thrifty.errors import FleetError
from thrifty.fleet.certificates import (
    PARTS,
    begin_new_authority,
    drop_old_authority,
    make_certificates,
)
from thrifty.http.certificates import VARIABLE


def run_make(
    folder: Path,
    fleet: str,
    days: int,
    *,
    renew: bool,
    new_authority: bool,
    drop_old: bool,
    as_json: bool,
) -> None:
    """Make certificates, or take a step in replacing their authority. Raises `FleetError`."""
    if sum((renew, new_authority, drop_old)) > 1:
        raise FleetError(
            "--renew, --new-authority and --drop-old-authority are steps; take one at a time, and "
            "bring the files to every machine in between"
        )
    if new_authority:
        made = begin_new_authority(folder, fleet)
    elif drop_old:
        made = drop_old_authority(folder)
    else:
        made = make_certificates(folder, fleet, days, renew=renew)
    commands = [_make_secret_command(folder, fleet, part) for part in PARTS]
    if as_json:
        print_json(
            {
                "folder": str(folder), "renewed": list(made.renewed), "expires": made.expires,
                "authorities": made.authorities, "kubernetes": commands,
            }
        )  # fmt: skip
        return
    rows = [
        (name, ends, "made now" if name in made.renewed else "")
        for name, ends in made.expires.items()
    ]
    print_table(("certificate", "good until", ""), rows)
    if made.authorities > 1:
        print_line("Two authorities are believed: see docs/certificates.md for what comes next.")
    print_line("\nFor Kubernetes (ca.key stays here):")
    for command in commands:
        print_line(f"  {command}")
    print_line(f"\nElsewhere: copy all but ca.key, and name the folder in {VARIABLE}.")


def _make_secret_command(folder: Path, fleet: str, part: str) -> str:
    files = " ".join(
        f"--from-file={key}={folder / name}"
        for key, name in (
            ("ca.crt", "ca.crt"), ("tls.crt", f"{part}.crt"), ("tls.key", f"{part}.key"),
        )
    )  # fmt: skip
    return (
        f"kubectl create secret generic {fleet}-{part}-tls {files} --dry-run=client -o yaml | "
        "kubectl apply --server-side -f -"
    )
