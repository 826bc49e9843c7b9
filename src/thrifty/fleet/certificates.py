"""The certificates of a fleet: an authority of its own, and one certificate for each part.

They are files of one folder, which stays with whoever runs the fleet:

    ca.key                     the authority's key; it never leaves the folder
    ca.crt                     whom both sides believe: the authority, and its predecessor for a while
    gateway.crt, gateway.key   for gateways and controllers
    replica.crt, replica.key   for replicas

Certificates are made anew in good time, and each side reads changed files while it serves. The
authority itself is replaced in three steps, so that at no time one side shows what the other does not
believe: the new one is believed beside the old one, then it signs, then the old one is forgotten.

`cryptography` makes the certificates; only whoever makes them needs it (the extra `certificates`).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.errors import FleetError
from thrifty.http.certificates import AUTHORITY, GATEWAY, REPLICA, find_files, name_part

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

AUTHORITY_KEY = "ca.key"
PARTS = (GATEWAY, REPLICA)
DEFAULT_DAYS = 90
AUTHORITY_DAYS = 3650
RENEW_SHARE = 1 / 3
"""A certificate is made anew when less than this share of its life is left."""
_EARLIER = datetime.timedelta(minutes=10)
"""Certificates are good from a little earlier on, for machines whose clocks differ."""


@dataclass(frozen=True)
class Made:
    """What the folder has now."""

    renewed: tuple[str, ...]
    """The parts whose certificates were made now; `ca` for the authority."""
    expires: dict[str, str]
    """When each ends, as ISO 8601, by part."""
    authorities: int
    """How many authorities are believed."""


def make_certificates(
    folder: Path, fleet: str = "thrifty", days: int = DEFAULT_DAYS, *, renew: bool = False
) -> Made:
    """Make what is missing in `folder` and what ends soon, and with `renew` all certificates but the
    authority's. Raises `FleetError`.
    """
    _require_library()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    renewed = []
    if not (folder / AUTHORITY_KEY).exists():
        if (folder / AUTHORITY).exists():
            raise FleetError(
                f"{folder} has {AUTHORITY} and not its key ({AUTHORITY_KEY}), so that nothing can be "
                "signed; use the folder in which it was made, or an empty one"
            )
        key, authority = _make_authority(fleet)
        _write_private(folder / AUTHORITY_KEY, _encode_key(key))
        _write(folder / AUTHORITY, _encode(authority))
        renewed.append("ca")
    for part in PARTS:
        if renew or _is_due(folder, part):
            _issue(folder, part, days)
            renewed.append(part)
    return _describe(folder, renewed)


def begin_new_authority(folder: Path, fleet: str = "thrifty") -> Made:
    """Make a new authority that is believed beside the one before. Certificates stay as they are.
    Raises `FleetError`.
    """
    _require_library()
    believed = _read_authorities(folder)
    if len(believed) > 1:
        raise FleetError(
            f"{folder} believes two authorities already; end that first (thrifty certificates make "
            "FOLDER --renew, then --drop-old-authority)"
        )
    key, authority = _make_authority(fleet)
    # Believed before it can sign: a kill in between leaves an authority that nobody uses.
    _write(folder / AUTHORITY, _encode(authority) + _encode(believed[0]))
    _write_private(folder / AUTHORITY_KEY, _encode_key(key))
    return _describe(folder, ["ca"])


def drop_old_authority(folder: Path) -> Made:
    """Believe the newest authority alone. Raises `FleetError` while a certificate is of the old one."""
    _require_library()
    newest = _read_authorities(folder)[0]
    for part in PARTS:
        if not _is_signed(_read(find_files(folder, part)[1]), newest):
            raise FleetError(
                f"the certificate of the {part} is still of the old authority; make new ones and bring "
                "them to every machine first (thrifty certificates make FOLDER --renew)"
            )
    _write(folder / AUTHORITY, _encode(newest))
    return _describe(folder, [])


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise FleetError(
            "certificates are made with 'cryptography', which is not installed: pip install "
            "'thrifty[certificates]', or let others make them (docs/certificates.md)"
        ) from None


def _describe(folder: Path, renewed: list[str]) -> Made:
    authorities = _read_authorities(folder)
    ends = {"ca": authorities[0].not_valid_after_utc.isoformat()}
    for part in PARTS:
        ends[part] = _read(find_files(folder, part)[1]).not_valid_after_utc.isoformat()
    return Made(tuple(renewed), ends, len(authorities))


def _is_due(folder: Path, part: str) -> bool:
    """Whether a part has no certificate that the newest authority signed and that lasts."""
    _, cert, key = find_files(folder, part)
    if not cert.exists() or not key.exists():
        return True
    found = _read(cert)
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - _now() < life * RENEW_SHARE


def _issue(folder: Path, part: str, days: int) -> None:
    """A new key and certificate for a part, by the newest authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority, signer = _read_authorities(folder)[0], _read_key(folder / AUTHORITY_KEY)
    if authority.public_key() != signer.public_key():
        raise FleetError(
            f"{folder / AUTHORITY_KEY} is not the key of the first authority in {AUTHORITY}; begin "
            "again (thrifty certificates make FOLDER --new-authority), or use an empty folder"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    # A replica's certificate is no good for asking other replicas.
    use = ExtendedKeyUsageOID.CLIENT_AUTH if part == GATEWAY else ExtendedKeyUsageOID.SERVER_AUTH
    made = (
        _begin(_name(name_part(part)), days, key.public_key())
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name_part(part))]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        .add_extension(_make_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, _hash())
    )
    _, cert, private = find_files(folder, part)
    _write_private(private, _encode_key(key))
    _write(cert, _encode(made))


def _make_authority(fleet: str) -> tuple[EllipticCurvePrivateKey, Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # The random part tells an authority from its successor.
    name = _name(f"Thrifty fleet {fleet} {os.urandom(4).hex()}")
    made = (
        _begin(name, AUTHORITY_DAYS, key.public_key())
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_make_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _hash())
    )
    return key, made


def _name(text: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _begin(name: Any, days: int, public_key: Any) -> Any:
    """What every certificate says."""
    from cryptography import x509

    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _make_usage(**given: bool) -> Any:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: given.get(name, False) for name in names})


def _hash() -> Any:
    from cryptography.hazmat.primitives.hashes import SHA256

    return SHA256()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# Files


def _read_authorities(folder: Path) -> list[Certificate]:
    """Whom `folder` believes, the newest first. Raises `FleetError`."""
    from cryptography import x509

    path = folder / AUTHORITY
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(f"{path} cannot be read as certificates: {error}") from None
    return found


def _read(path: Path) -> Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(f"{path} cannot be read as a certificate: {error}") from None


def _read_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise FleetError(f"{path} cannot be read as an unencrypted key: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise FleetError(f"{path} is no key that Thrifty made (it is not of an elliptic curve)")
    return key


def _is_signed(cert: Certificate, authority: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        cert.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _encode(cert: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return cert.public_bytes(Encoding.PEM)


def _encode_key(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    _write(path, data, 0o600)


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Whole or not at all: who reads it meanwhile has the file from before."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
