"""Certificates of a fleet: made once, renewed in time, and an authority that is replaced in steps."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from thrifty.errors import FleetError, ThriftyError
from thrifty.fleet.certificates import (
    begin_new_authority,
    drop_old_authority,
    make_certificates,
)
from thrifty.http.certificates import load_gateway_side
from thrifty.http.tls import load_replica_side

FILES = {"ca.key", "ca.crt", "gateway.crt", "gateway.key", "replica.crt", "replica.key"}


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_what_is_missing_is_made_and_what_lasts_stays(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    made = make_certificates(folder, "chat")
    assert set(made.renewed) == {"ca", "gateway", "replica"}
    assert {path.name for path in folder.iterdir()} == FILES
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert make_certificates(folder, "chat").renewed == ()
    serial = read(folder / "replica.crt").serial_number
    (folder / "gateway.crt").unlink()
    assert make_certificates(folder).renewed == ("gateway",)
    assert read(folder / "replica.crt").serial_number == serial
    assert make_certificates(folder, renew=True).renewed == ("gateway", "replica")
    assert read(folder / "replica.crt").serial_number != serial


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    from thrifty.fleet import certificates

    make_certificates(tmp_path, days=90)
    start = datetime.datetime.now(datetime.UTC)
    for days, renewed in ((59, ()), (61, ("gateway", "replica"))):
        later = start + datetime.timedelta(days=days)
        monkeypatch.setattr(certificates, "_now", lambda later=later: later)
        assert make_certificates(tmp_path, days=90).renewed == renewed


def test_each_certificate_is_for_one_part_alone(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    for part, use in (("gateway", "clientAuth"), ("replica", "serverAuth")):
        cert = read(tmp_path / f"{part}.crt")
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [f"{part}.thrifty-fleet.internal"]
        uses = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [one._name for one in uses] == [use]
        assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_authority_is_replaced_in_steps(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    old = x509.load_pem_x509_certificates((tmp_path / "ca.crt").read_bytes())
    assert begin_new_authority(tmp_path).authorities == 2
    with pytest.raises(FleetError, match="believes two authorities already"):
        begin_new_authority(tmp_path)
    with pytest.raises(FleetError, match="of the gateway is still of the old authority"):
        drop_old_authority(tmp_path)
    make_certificates(tmp_path, renew=True)
    assert drop_old_authority(tmp_path).authorities == 1
    new = x509.load_pem_x509_certificates((tmp_path / "ca.crt").read_bytes())
    assert new[0].subject != old[0].subject
    read(tmp_path / "replica.crt").verify_directly_issued_by(new[0])


def test_a_folder_without_its_key_and_broken_files_are_told(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(FleetError, match=r"has ca.crt and not its key"):
        make_certificates(tmp_path)
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(FleetError, match="cannot be read as certificates"):
        begin_new_authority(tmp_path)


def test_sides_without_certificates_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THRIFTY_FLEET_TLS", raising=False)
    assert load_replica_side() is None
    with pytest.raises(ThriftyError, match="THRIFTY_FLEET_TLS names no folder"):
        load_gateway_side()
    monkeypatch.setenv("THRIFTY_FLEET_TLS", str(tmp_path))
    with pytest.raises(ThriftyError, match="has no certificate of a replica"):
        load_replica_side()
    with pytest.raises(ThriftyError, match=r"gateway\.crt.* cannot be read"):
        load_gateway_side()
