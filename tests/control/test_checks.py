"""What a gateway cannot start with is found before a model is looked for."""

from __future__ import annotations

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.graphs.test_encoder import write as write_encoder
from tests.http.test_tls import Authority
from thrifty.artifacts import Store
from thrifty.control.service_api import plan_spec, prepare_spec
from thrifty.db import open_database
from thrifty.db.keys import create_key
from thrifty.engines.machine import detect_machine
from thrifty.errors import FleetError, SourceError, SpecError
from thrifty.home import Home, make_private_folder
from thrifty.model_maker import Compressor
from thrifty.spec import LoadedSpec, load_spec

NO_MODEL = "pypi:no such thing"
"""Whoever looks for it gets a `SourceError`."""


def load(folder: Path, **gateway: Any) -> LoadedSpec:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "thrifty.yaml"
    path.write_text(json.dumps({"model": NO_MODEL, "gateway": {"port": 0, **gateway}}))
    return load_spec(path, environment={})


def refuse(home: Home, loaded: LoadedSpec, kind: type[Exception], match: str) -> None:
    """Both a plan and a preparation refuse the spec."""
    machine = detect_machine()
    maker = Compressor(home, Store(home.models), machine)
    with pytest.raises(kind, match=match):
        plan_spec(loaded, home, maker=maker)
    with pytest.raises(kind, match=match):
        prepare_spec(loaded, home, machine, maker=maker)


@pytest.mark.parametrize("fault", ["missing", "garbage", "mismatch"])
def test_tls_files(home: Home, tmp_path: Path, fault: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    one, other = Authority(first), Authority(second)
    one.issue()
    other.issue()
    cert, key = one.cert, one.key
    if fault == "missing":
        key = tmp_path / "nowhere.pem"
    elif fault == "garbage":
        cert.write_text("no certificate")
    else:
        key = other.key
    loaded = load(tmp_path / "spec", tls={"cert": str(cert), "key": str(key)})
    refuse(home, loaded, SpecError, r"gateway\.tls: .*cannot be used")
    assert not home.root.exists()


def test_names_need_the_extra_and_a_model(home: Home, tmp_path: Path) -> None:
    def load_names(**record: Any) -> LoadedSpec:
        path = tmp_path / "thrifty.yaml"
        path.write_text(json.dumps({"model": NO_MODEL, "record": {"names": True, **record}}))
        return load_spec(path, environment={})

    loaded = load_names(names_model="xx_no_such")
    if find_spec("presidio_analyzer") is None:
        refuse(home, loaded, SpecError, r"record\.names: .*pip install 'thrifty\[names\]'")
    else:
        refuse(home, loaded, SpecError, r"record\.names: the model 'xx_no_such' is not installed")
    with pytest.raises(SpecError, match="'names' beside 'redact: false'"):
        load_names(redact=False)
    with pytest.raises(SpecError, match="names_model"):
        load_names(names_model="os.path")


def test_a_port_in_use(home: Home, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refuse(home, load(tmp_path, port=port), FleetError, f"cannot listen on 127.0.0.1:{port}")


def test_no_key_beyond_loopback(home: Home, tmp_path: Path) -> None:
    loaded = load(tmp_path, host="0.0.0.0")
    refuse(home, loaded, FleetError, "refusing to listen on 0.0.0.0")
    make_private_folder(home.root)
    database = open_database(home.database_url, migrate=True)
    refuse(home, loaded, FleetError, "refusing to listen on 0.0.0.0")
    create_key(database, "ann")
    database.close()
    refuse(home, loaded, SourceError, "no such thing")
    refuse(home, load(tmp_path, host="0.0.0.0", allow_no_keys=True), SourceError, "no such thing")


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({}, "the local fleet starts processes of this machine, no containers"),
        ({"kind": "ray", "address": "127.0.0.1:6379"}, "a process of the node that it runs on"),
    ],
)
def test_an_image_is_refused_where_replicas_are_no_containers(
    home: Home, tmp_path: Path, fleet: dict[str, Any], words: str
) -> None:
    path = tmp_path / "thrifty.yaml"
    engine = {"kind": "vllm", "image": "registry.example.com/thrifty-vllm:1"}
    path.write_text(json.dumps({"model": NO_MODEL, "engine": engine, "fleet": fleet}))
    refuse(home, load_spec(path, environment={}), SpecError, rf"engine\.image: .*{words}")


def test_a_loop_that_could_learn_nothing_is_refused(home: Home, tmp_path: Path) -> None:
    def load_loop(**spec: Any) -> LoadedSpec:
        path = tmp_path / "thrifty.yaml"
        path.write_text(json.dumps({"model": NO_MODEL, "improve": {"every": "7d"}, **spec}))
        return load_spec(path, environment={})

    kept: dict[str, Any] = {"record": {"prompts": True}}
    refuse(home, load_loop(), SpecError, r"improve: learns from recorded .*prompts: true")
    for engine in ("echo", {"kind": "remote", "urls": ["http://127.0.0.1:1"]}):
        loaded = load_loop(engine=engine, **kept)
        refuse(home, loaded, SpecError, "improve: needs a stored model to train, and the engine")
    loaded = load_loop(**(kept | {"improve": {"release": {"steps": [5, 1]}}}))
    refuse(home, loaded, SpecError, r"line 1, improve\.release: 'steps' are percentages that rise")
    loaded = load_loop(**(kept | {"improve": {"release": {"step": {"times": 5}}}}))
    refuse(home, loaded, SpecError, r"improve\.release\.step\.times: is not a known key.*'time'")
    refuse(home, load_loop(**kept), SourceError, "no such thing")


def test_encoders_have_no_loop(home: Home, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    model = write_encoder(tmp_path / "encoder")
    path = tmp_path / "thrifty.yaml"
    path.write_text(
        json.dumps({"model": str(model), "record": {"prompts": True}, "improve": {"every": "7d"}})
    )
    loaded = load_spec(path, environment={})
    refuse(home, loaded, SpecError, "improve: .*this one does not.*thrifty train")
