"""What users write for a remote and for a model in it, as checked values.

    file:///srv/models/chat@v2     s3://bucket/models/chat@v2     gs://     az://container/chat
    oci://registry.example.com/team/chat:v2                       oci://...@sha256:<digest>

A reference never holds credentials: user names, passwords and query strings are refused, in
messages that do not repeat them.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from thrifty.artifacts.artifact import parse_label
from thrifty.errors import ArtifactError, RemoteError

SCHEMES = ("file", "s3", "gs", "az", "oci")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{1,221}")
_SEGMENT = re.compile(r"[A-Za-z0-9_=+,()!-][A-Za-z0-9._=+,()!~-]{0,254}")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\]")


@dataclass(frozen=True)
class Reference:
    """A remote, and the model in it as far as it is named."""

    scheme: str
    host: str
    """The bucket, the container, or the registry with its port; empty for folders."""
    path: str
    """The prefix without slashes at its ends, or the repository; for folders the whole path."""
    name: str | None = None
    number: int | None = None
    """The version; None: the newest."""
    tag: str | None = None
    """For registries: a tag or a digest."""

    @property
    def root(self) -> str:
        """The remote's URL, without the model."""
        if self.scheme == "file":
            return f"file://{self.path}"
        return f"{self.scheme}://{self.host}" + (f"/{self.path}" if self.path else "")

    def as_root(self) -> Reference:
        """The reference read as a remote that holds one model, instead of one of several."""
        path = "/".join(part for part in (self.path.rstrip("/"), self.name) if part)
        return Reference(self.scheme, self.host, path)


def is_reference(text: str) -> bool:
    """Whether `text` is the URL of a remote, right or wrong."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def parse_reference(text: str) -> Reference:
    """The model that `text` names: `REMOTE/NAME[@vN]`, or `oci://HOST/REPOSITORY[:TAG]`.

    A plain path is a folder. Raises `RemoteError`.
    """
    root = _parse(text)
    if root.scheme == "oci":
        return root
    parent, _, last = root.path.rpartition("/")
    if not last:
        return root
    try:
        name, number = parse_label(last)
    except ArtifactError as error:
        raise RemoteError(
            f"{text} names no model: {error}; write REMOTE/NAME or REMOTE/NAME@v1"
        ) from None
    return Reference(
        root.scheme, root.host, parent or ("/" if root.scheme == "file" else ""), name, number
    )


def parse_root(text: str) -> Reference:
    """The remote that `text` names, to push to. Raises `RemoteError`."""
    root = _parse(text)
    if root.scheme == "oci" and (root.tag or "").startswith("sha256:"):
        raise RemoteError(
            f"{text} names a digest, which only what is stored has; name a tag, or none"
        )
    if root.scheme != "oci" and "@" in root.path.rpartition("/")[2]:
        raise RemoteError(
            f"{text} names a version; name the remote alone, and the version with --as NAME@vN"
        )
    return root


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by its name or address."""
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_safe_url(url: str, what: str) -> None:
    """Raise `RemoteError` if `url` is plain HTTP to another machine; `what` names its place."""
    split = urlsplit(url)
    if split.scheme == "http" and not is_loopback(split.netloc.rpartition("@")[2]):
        raise RemoteError(
            f"{what} is plain HTTP to another machine, where credentials and models could be read "
            "and changed on the way; use https://"
        )
    if split.scheme not in ("http", "https"):
        raise RemoteError(f"{what} must be an https:// URL")


def redact(text: str) -> str:
    """A message of a library or server on one line, without query strings and user information."""
    line = " ".join(text.split())
    line = re.sub(r"(\w+://)[^/\s@]*@", r"\1...@", line)
    return re.sub(r"\?[^\s\"')]+", "?...", line)[:700]


def _parse(text: str) -> Reference:
    if not is_reference(text):
        if "://" in text:
            raise RemoteError(
                f"{redact(text)!r} is not the URL of a remote; write one of "
                "file:///PATH, s3://BUCKET, gs://BUCKET, az://CONTAINER, oci://HOST/REPOSITORY"
            )
        folder = Path(text).expanduser()
        return Reference("file", "", str(folder if folder.is_absolute() else Path.cwd() / folder))
    if re.search(r"[\x00-\x20\x7f]", text):
        raise RemoteError(
            f"the URL {redact(text)!r} has white space; write %20 for a space in a path"
        )
    split = urlsplit(text)
    _refuse_secrets(split)
    if split.scheme == "file":
        if split.netloc not in ("", "localhost"):
            raise RemoteError(
                f"{text} names another machine; write file:///PATH with three slashes"
            )
        path = unquote(split.path).rstrip("/") or "/"
        if ".." in path.split("/"):
            raise RemoteError(f"{text} has '..' in its path; write the path that it means")
        return Reference("file", "", path)
    if split.scheme == "oci":
        return _parse_oci(split, text)
    path = split.path.strip("/")
    if not _BUCKET.fullmatch(split.netloc):
        raise RemoteError(f"{text} names no bucket; write {split.scheme}://BUCKET/PREFIX")
    for segment in path.split("/") if path else ():
        if not _SEGMENT.fullmatch(segment.partition("@")[0]):
            raise RemoteError(
                f"{text} has the part {segment!r}; parts of a prefix are letters, digits and "
                "._-=+,()!~, and begin with a letter or digit"
            )
    return Reference(split.scheme, split.netloc, path)


def _refuse_secrets(split: SplitResult) -> None:
    _, at, host = split.netloc.rpartition("@")
    if at or split.query or split.fragment:
        shown = f"{split.scheme}://{host}{split.path}"
        what = "a user name or password" if at else "a query string or fragment"
        raise RemoteError(
            f"the URL {shown} has {what}, which would end up in files and logs; leave it out, and "
            "give credentials as docs/remotes.md says"
        )


def _parse_oci(split: SplitResult, text: str) -> Reference:
    host, _, port = split.netloc.rpartition(":") if re.search(r":\d+$", split.netloc) else (
        split.netloc, "", ""
    )  # fmt: skip
    path = split.path.strip("/")
    path, at, digest = path.partition("@")
    path, colon, tag = path.partition(":")
    if not _HOST.fullmatch(host) or (port and not 0 < int(port) < 65536):
        raise RemoteError(f"{text} names no registry; write oci://HOST/REPOSITORY:TAG")
    if not _REPOSITORY.fullmatch(path):
        raise RemoteError(
            f"{text} has the repository {path!r}; it must be lower-case letters and digits in parts "
            "divided by '/', '.', '_' or '-'"
        )
    if (colon and not _TAG.fullmatch(tag)) or (at and not _DIGEST.fullmatch(digest)):
        raise RemoteError(f"{text} has no valid tag or digest; write :TAG or @sha256:<64 digits>")
    return Reference("oci", split.netloc, path, tag=digest or tag or None)
