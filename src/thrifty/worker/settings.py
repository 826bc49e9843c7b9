"""What a gateway worker is told as it starts."""

from __future__ import annotations

import msgspec

from thrifty.batches.settings import BatchSettings
from thrifty.gateway.cache.answers import SharedSettings
from thrifty.gateway.state.shared_store import TIMEOUT_S


class TlsSettings(msgspec.Struct, frozen=True):
    """Files in PEM format, read again when they change."""

    cert: str
    key: str


class GatewaySettings(msgspec.Struct, frozen=True):
    """What a worker is started with."""

    host: str
    port: int
    id: str = "gateway-0"
    listen_fds: tuple[int, ...] = ()
    """Sockets that are bound to `host` and `port` already; they stay when this worker goes."""
    ready_file: str | None = None
    """Where it says that it listens, and the address that is its own."""
    database_url_env: str = "THRIFTY_DATABASE_URL"
    """The variable that holds the URL: it may hold a password, which a command line would show."""
    redis_url_env: str = "THRIFTY_REDIS_URL"
    """As for the database; empty or not set where there is none."""
    id_secret_env: str = "THRIFTY_ID_SECRET"  # noqa: S105
    """As for the database: the secret, in hex, that marks response ids as ours."""
    redis_timeout_s: float = TIMEOUT_S
    max_body_bytes: int = 8_000_000
    cache_bytes: int = 256_000_000
    cache_shared: SharedSettings | None = None
    """How answers are shared through Redis; None: they are not."""
    read_timeout_s: float = 20.0
    write_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    record_requests: bool = True
    record_prompts: bool = False
    record_keep_s: float = 30 * 86400.0
    record_max_rows: int = 10_000_000
    require_keys: bool = False
    workers: int = 1
    """How many gateway workers share the replicas' slots."""
    batches: BatchSettings = BatchSettings()
    cors: tuple[str, ...] = ()
    """Origins whose web pages may read answers; `*`: all."""
    hosts: tuple[str, ...] = ()
    """Names under which the service is known, beside its addresses."""
    tls: TlsSettings | None = None
    """Encrypts connections, other than those on the worker's own port."""
    home: str = ""
    """The home that the management API works on; empty: there is no management API."""
