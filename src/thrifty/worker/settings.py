"""The settings that a gateway worker is started with."""

from __future__ import annotations

import msgspec

from thrifty.batches.settings import BatchSettings
from thrifty.console.oidc import OidcSettings
from thrifty.feedback.pages import FeedbackSettings
from thrifty.gateway.cache.answers import SharedSettings
from thrifty.gateway.state.shared_store import TIMEOUT_S
from thrifty.observe.settings import RecorderSettings


class TlsSettings(msgspec.Struct, frozen=True):
    """Paths of PEM files, which are reloaded when they change."""

    cert: str
    key: str


class GatewaySettings(RecorderSettings, frozen=True):
    """The settings of one worker."""

    host: str
    port: int
    id: str = "gateway-0"
    listen_fds: tuple[int, ...] = ()
    """Sockets that are already bound to `host` and `port`; they outlive this worker."""
    ready_fd: int | None = None
    """A pipe on which the worker writes its own URL once it listens."""
    notice_fd: int | None = None
    """A socket to the controller, for notices in both directions."""
    recorder_path: str = ""
    """The socket of the service's recorder; if empty, there is one within this process."""
    redis_url_env: str = "THRIFTY_REDIS_URL"
    """The variable that holds the URL; empty or unset if there is no Redis."""
    redis_timeout_s: float = TIMEOUT_S
    max_body_bytes: int = 8_000_000
    cache_bytes: int = 256_000_000
    cache_shared: SharedSettings | None = None
    """Settings for sharing answers through Redis; None disables sharing."""
    read_timeout_s: float = 20.0
    write_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    feedback: FeedbackSettings = FeedbackSettings()
    require_keys: bool = False
    workers: int = 1
    """The number of gateway workers that share the replicas' slots."""
    batches: BatchSettings = BatchSettings()
    cors: tuple[str, ...] = ()
    """Origins whose web pages may read answers; `*` allows all."""
    hosts: tuple[str, ...] = ()
    """Host names of the service, in addition to its addresses."""
    tls: TlsSettings | None = None
    """Encrypts connections, except those to the worker's own port."""
    oidc: OidcSettings | None = None
    """The identity provider whose users may sign in to the console."""
    home: str = ""
    """The home that the management API manages; if empty, there is no management API."""
