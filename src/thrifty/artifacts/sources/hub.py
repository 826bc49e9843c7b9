"""Models on the Hugging Face hub, or on a mirror of it (`HF_ENDPOINT`).

huggingface_hub does the transfer: it resumes, checks sizes and knows the user's token. Pickled
weights are not even downloaded.
"""

from __future__ import annotations

import re
from pathlib import Path

from thrifty.artifacts.artifact import to_name
from thrifty.artifacts.inspect import PICKLE_SUFFIXES
from thrifty.artifacts.store import Store
from thrifty.errors import FormatRefused, SourceError
from thrifty.types import OnProgress, Progress

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?(?::(.+\.gguf))?")
_ALWAYS = (".json", ".txt", ".model", ".jinja")


def fetch(reference: str, folder: Path, store: Store, on_progress: OnProgress) -> tuple[str, str]:
    """Bring `org/name[@revision][:file.gguf]` into `folder/model`; return its name and pin."""
    match = _REPOSITORY.fullmatch(reference)
    if match is None:
        raise SourceError(
            f"'hf:{reference}' is not valid; write hf:ORG/NAME, hf:ORG/NAME@REVISION, or "
            "hf:ORG/NAME:FILE.gguf"
        )
    repository, revision, gguf = match.groups()
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    on_progress(Progress("resolve", 0, 0))
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        wanted = _choose({s.rfilename: s.size or 0 for s in info.siblings or []}, repository, gguf)
        total, done = sum(wanted.values()), 0
        store.require_space(total, f"downloading {repository}")
        for name, size in wanted.items():
            hf_hub_download(repository, name, revision=info.sha, local_dir=folder / "model")
            done += size
            on_progress(Progress("download", done, total))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise SourceError(
            f"hf:{reference} could not be fetched: {first_line}. Check the name, the network, and "
            "for a gated model your token (HF_TOKEN)"
        ) from None
    name = to_name(Path(gguf).stem if gguf else repository.partition("/")[2])
    return name, f"hf:{repository}@{info.sha}" + (f":{gguf}" if gguf else "")


def _choose(files: dict[str, int], repository: str, gguf: str | None) -> dict[str, int]:
    """The files to download, with their sizes."""
    if gguf is not None:
        if gguf not in files:
            offered = ", ".join(name for name in files if name.endswith(".gguf")) or "none"
            raise SourceError(f"{repository} has no file {gguf!r}; its .gguf files: {offered}")
        return {gguf: files[gguf]}
    safetensors = {n: s for n, s in files.items() if n.endswith(".safetensors") and "/" not in n}
    if safetensors:
        small = {n: s for n, s in files.items() if n.endswith(_ALWAYS)}
        return {**small, **safetensors}
    if "openvino_model.xml" in files:
        return {n: s for n, s in files.items() if n.endswith((*_ALWAYS, ".xml", ".bin"))}
    ggufs = [name for name in files if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return {ggufs[0]: files[ggufs[0]]}
    if ggufs:
        raise FormatRefused(
            f"{repository} holds several models; name one: "
            + ", ".join(f"hf:{repository}:{name}" for name in ggufs[:8])
        )
    if any(Path(name).suffix in PICKLE_SUFFIXES for name in files):
        raise FormatRefused(
            f"{repository} has weights only as pickle, which can run code when it is read and is "
            "not loaded. Look for a revision or a conversion with safetensors"
        )
    raise FormatRefused(f"{repository} holds no model that is loaded here")
