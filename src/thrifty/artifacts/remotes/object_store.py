"""S3 and Azure Blob Storage as remotes, by obstore.

Credentials and endpoints come from the environment and the machine, as each cloud's own tools find
them; docs/remotes.md lists them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.artifacts.remotes.base import CHUNK_BYTES, OnBytes, RemoteAway
from thrifty.artifacts.remotes.reference import Reference, redact, require_safe_url
from thrifty.errors import RemoteError

if TYPE_CHECKING:
    from obstore.store import AzureConfig, AzureStore, ClientConfig, RetryConfig, S3Store

PIECE_BYTES = 1024 * 1024
MAX_PARTS = 9_000
"""S3 takes at most 10,000 parts of one object."""
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
REQUEST_TIMEOUT_S = 3600
"""For one request with its body: a slow store is no fault as long as bytes come."""
_SENDERS = 4
_METADATA = "169.254.169.254"
"""Where clouds tell machines who they are: the last place where credentials are looked for."""
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AZURE_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


class StoreObjects:
    """Objects in a bucket or container, below a prefix, as `Objects`."""

    def __init__(self, url: str, store: S3Store | AzureStore) -> None:
        self._url = url
        self._store = store

    def find_size(self, key: str) -> int | None:
        """As `Objects.find_size`."""
        import obstore

        with _own_errors(self._url):
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                return None

    def read(self, key: str, offset: int) -> Iterator[bytes]:
        """As `Objects.read`."""
        import obstore

        with _own_errors(self._url):
            result = obstore.get(self._store, key, options={"range": {"offset": offset}})
            for piece in result.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)

    def put_file(self, key: str, path: Path, on_sent: OnBytes) -> None:
        """As `Objects.put_file`."""
        import obstore

        size = path.stat().st_size
        with _own_errors(self._url):
            if size <= CHUNK_BYTES:
                obstore.put(self._store, key, path.read_bytes(), use_multipart=False)
                on_sent(size)
                return
            part = max(CHUNK_BYTES, -(-size // MAX_PARTS))
            pieces = _read_pieces(path, part, on_sent)
            obstore.put(self._store, key, pieces, chunk_size=part, max_concurrency=_SENDERS)

    def create(self, key: str, content: bytes) -> bool:
        """As `Objects.create`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with _own_errors(self._url):
            try:
                obstore.put(self._store, key, content, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def list_keys(self, prefix: str) -> list[str]:
        """As `Objects.list_keys`."""
        import obstore

        with _own_errors(self._url):
            found = obstore.list(self._store, prefix.rstrip("/"))
            return sorted(one["path"] for chunk in found for one in chunk)


def open_s3(reference: Reference) -> StoreObjects:
    """The bucket and prefix of an `s3://` reference. Raises `RemoteError`."""
    _require_package()
    from obstore.store import S3Store

    client, retries = _make_options(_S3_ENDPOINTS)
    with _own_errors(reference.root, opening=True):
        store = S3Store(
            reference.host, prefix=reference.path or None, client_options=client, retry_config=retries,
            **_find_profile(),
        )  # fmt: skip
    return StoreObjects(reference.root, store)


def open_azure(reference: Reference) -> StoreObjects:
    """The container and prefix of an `az://` reference. Raises `RemoteError`."""
    _require_package()
    from obstore.store import AzureStore

    settings = _read_azure_settings()
    endpoint = settings.get("endpoint", "")
    if endpoint:
        require_safe_url(endpoint, f"the blob endpoint in {_CONNECTION}")
    client, retries = _make_options(_AZURE_ENDPOINTS)
    client["allow_http"] = client["allow_http"] or endpoint.startswith("http:")
    with _own_errors(reference.root, opening=True):
        store = AzureStore(
            reference.host, prefix=reference.path or None, client_options=client,
            retry_config=retries, config=settings,
        )  # fmt: skip
    return StoreObjects(reference.root, store)


def _require_package() -> None:
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise RemoteError(
            "this remote needs the package obstore; install it with: pip install 'thrifty[remotes]'"
        ) from None


def _make_options(variables: tuple[str, ...]) -> tuple[ClientConfig, RetryConfig]:
    """The client's settings. Plain HTTP is for endpoints on this machine; others are refused."""
    plain = False
    for name in variables:
        if url := os.environ.get(name):
            require_safe_url(url, name)
            plain = plain or url.startswith("http:")
    client: ClientConfig = {
        "allow_http": plain,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }
    retries: RetryConfig = {
        "max_retries": 2,
        "backoff": {
            "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=2), "base": 2,
        },
        "retry_timeout": timedelta(seconds=60),
    }  # fmt: skip
    return client, retries


def _find_profile() -> dict[str, Any]:
    """A provider of what AWS' shared files say, where the environment names no keys of its own."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if "AWS_PROFILE" not in os.environ and not shared.exists():
        return {}
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise RemoteError(
            "AWS profiles (AWS_PROFILE, ~/.aws/credentials) are read by AWS' own package; install it "
            "(pip install boto3), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    session = boto3.Session()
    found: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
    return {**found, "region": session.region_name} if session.region_name else found


def _read_azure_settings() -> AzureConfig:
    """What Azure's own tools take from the environment and obstore does not."""
    found: AzureConfig = {}
    if account := os.environ.get("AZURE_STORAGE_ACCOUNT"):
        found["account_name"] = account
    if key := os.environ.get("AZURE_STORAGE_KEY"):
        found["account_key"] = key
    text = os.environ.get(_CONNECTION)
    if not text:
        return found
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    if "AccountName" not in pairs:
        raise RemoteError(
            f"{_CONNECTION} has no AccountName; copy it from the storage account again"
        )
    found["account_name"] = pairs["AccountName"]
    if "AccountKey" in pairs:
        found["account_key"] = pairs["AccountKey"]
    if "BlobEndpoint" in pairs:
        found["endpoint"] = pairs["BlobEndpoint"]
    if "SharedAccessSignature" in pairs:
        found["sas_key"] = pairs["SharedAccessSignature"]
    return found


def _read_pieces(path: Path, size: int, on_sent: OnBytes) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece
            on_sent(len(piece))


@contextlib.contextmanager
def _own_errors(url: str, *, opening: bool = False) -> Iterator[None]:
    from obstore.exceptions import (
        BaseError,
        GenericError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise RemoteError(
            f"{url} refuses access: {_shorten(error)}; check the credentials, what they may do, "
            "and quotas (docs/remotes.md)"
        ) from None
    except GenericError as error:
        said = _shorten(error)
        if _METADATA in said:
            raise RemoteError(
                f"no credentials for {url} were found, nor has this machine an identity ({said}); "
                "docs/remotes.md says where they are looked for"
            ) from None
        if opening:
            raise RemoteError(
                f"{url} cannot be opened: {said}; docs/remotes.md says what to set"
            ) from None
        raise RemoteAway(f"{url} failed: {said}") from None
    except FileNotFoundError as error:
        raise RemoteError(f"{url} does not have it: {_shorten(error)}") from None
    except (BaseError, ValueError) as error:
        raise RemoteError(f"{url} cannot be used: {_shorten(error)}") from None


def _shorten(error: BaseException) -> str:
    """What a library says, without its debugging text."""
    return redact(str(error).partition("Debug source")[0])
