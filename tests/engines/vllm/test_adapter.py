"""What the adapter of vLLM says before anything starts; nothing here needs vLLM."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama, write_safetensors
from tests.artifacts.vocabulary import make_gpt2_metadata
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.artifact import Artifact, Description, FileEntry
from thrifty.artifacts.look_only import LookOnlyStore, NotMadeYet
from thrifty.engines.base import Served
from thrifty.engines.machine import detect_machine
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.engines.vllm import packages
from thrifty.engines.vllm.adapter import GPU_OPTIONS, VllmEngine
from thrifty.engines.vllm.child import find_reason
from thrifty.engines.vllm.facts import count_kv_bytes, read_ends, read_lora
from thrifty.engines.vllm.options import CAPACITY, VllmOptions
from thrifty.errors import EngineError, FormatRefused
from thrifty.spec import load_spec
from thrifty.types import Family, Format, ignore_progress

ENGINE = VllmEngine()
LINUX = dataclasses.replace(
    detect_machine(), system="Linux", architecture="x86_64", features=frozenset({"avx2"})
)


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "added_tokens": [{"id": 7, "content": "</s>", "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False, "special": True}],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 7}, "unk_token": "a"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "NVIDIA", tmp_path / "none")


def find_problems(artifact: Artifact | None = None, **flags: Any) -> dict[str, str]:
    spec = load_spec(flags={"engine.kind": "vllm", **flags}).spec
    return {one.path: one.message for one in ENGINE.check(spec, artifact, LINUX)}


def make_artifact(
    format: Format = Format.SAFETENSORS, architecture: str = "LlamaForCausalLM",
    family: Family = Family.DECODER, files: tuple[str, ...] = ("tokenizer.json",),
) -> Artifact:  # fmt: skip
    description = Description(format, family, architecture, 2048, 1000, "bfloat16")
    return Artifact("a" * 24, description, tuple(FileEntry(f, "0" * 64, 10) for f in files))


def test_a_plain_model_can_be_served() -> None:
    assert find_problems(make_artifact()) == {}
    assert find_problems(make_artifact(Format.GGUF, "llama")) == {}
    # Before it is fetched, its files are not known.
    assert find_problems(make_artifact(files=())) == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [("memory_share", 0.5), ("quantization", "fp8"), ("tensor_parallel", 2), ("sleep", True)],
)
def test_what_needs_a_gpu_is_refused_without_one(
    option: str, value: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = find_problems(**{f"engine.{option}": value})
    assert found == {f"engine.{option}": "needs an NVIDIA GPU, and this machine has none"}
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(packages, "NVIDIA", tmp_path / "nvidiactl")
    assert find_problems(**{f"engine.{option}": value}) == {}


def test_it_is_parked_only_where_it_can_sleep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parked = {"replicas.standby": "parked", "replicas.min": 0, "replicas.max": 1}
    assert "engine.sleep: true" in find_problems(**parked)["replicas.standby"]
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(packages, "NVIDIA", tmp_path / "nvidiactl")
    assert find_problems(**parked, **{"engine.sleep": True}) == {}


def test_every_option_for_gpus_is_tried() -> None:
    assert set(GPU_OPTIONS) == {"memory_share", "quantization", "tensor_parallel", "sleep"}
    assert set(CAPACITY) < set(VllmOptions.model_fields)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine.prefill_chunk": 64}, "'prefill_chunk' is 64, less than 128"),
        ({"engine.speculation": "draft"}, "'draft_model' and 'speculation: draft' go together"),
        ({"engine.draft_model": "small"}, "'draft_model' and 'speculation: draft' go together"),
    ],
)
def test_options_that_contradict_each_other(flags: dict[str, Any], message: str) -> None:
    (found,) = find_problems(**flags).values()
    assert message in found


@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        (make_artifact(architecture="NoSuchForCausalLM"), "does not know models of the arch"),
        (make_artifact(Format.GGUF, "nosuch"), "cannot be converted for vLLM"),
        (make_artifact(Format.OPENVINO), "prepared for OpenVINO already"),
        (make_artifact(family=Family.ENCODER, architecture="BertModel"), "it is an encoder"),
        (make_artifact(files=("config.json",)), "has no tokenizer.json"),
    ],
)
def test_model_that_vllm_cannot_load_is_refused(artifact: Artifact, message: str) -> None:
    assert message in find_problems(artifact)["model"]


def test_context_memory_and_forms_of_weights() -> None:
    model = make_artifact()
    found = find_problems(model, **{"engine.context": 4096})
    assert "made for at most 2048" in found["engine.context"]
    assert "do not fit" in find_problems(model, **{"engine.kv_cache": "900TB"})["engine.kv_cache"]
    assert "900 copies" in find_problems(model, **{"replicas.count": 900})["replicas.count"]
    assert "thrifty quantize" in find_problems(model, compress="int8")["compress"]
    assert find_problems(model, compress="none") == {}


def test_wrong_interpreters_are_told_apart(tmp_path: Path) -> None:
    found = find_problems(**{"engine.python": str(tmp_path / "python")})
    assert "is no Python interpreter" in found["engine.python"]
    assert "has no vLLM" in find_problems(**{"engine.python": sys.executable})["engine.python"]
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    assert "has no vLLM" in find_problems(**{"engine.python": str(broken)})["engine.python"]


def test_wrong_platforms() -> None:
    spec = load_spec(flags={"engine.kind": "vllm"}).spec
    for changes, words in (
        ({"system": "Darwin"}, "no packages for Darwin"),
        ({"architecture": "riscv64"}, "no packages for riscv64"),
        ({"features": frozenset()}, "has no AVX2"),
    ):
        machine = dataclasses.replace(LINUX, **changes)
        assert words in ENGINE.check(spec, None, machine)[0].message
        (capability,) = ENGINE.capabilities(machine)
        assert not capability.usable


def test_capabilities_say_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    first = ENGINE.capabilities(LINUX)[0]
    assert not first.usable
    assert "thrifty engines install vllm" in first.reason


def test_planning_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    version, artifact = Store(tmp_path / "models").add(
        Llama().write_safetensors(tmp_path / "m"), "tiny", Lineage()
    )
    spec = load_spec(flags={"engine.kind": "vllm"}).spec
    look_only = LookOnlyStore(tmp_path / "models")
    with pytest.raises(NotMadeYet) as raised:
        ENGINE.prepare(spec, (version, artifact), look_only, LINUX, ignore_progress)
    assert raised.value.size_bytes == packages.find_packages(gpu=False).installed_bytes
    assert not (tmp_path / "engines").exists()


def test_what_is_served_is_plain_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interpreter that says it has vLLM, which is all that preparing asks for."""
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.32.0\n")
    python.chmod(0o755)
    store = Store(tmp_path / "models")
    folder = Llama().write_safetensors(tmp_path / "m")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    model = store.add(folder, "tiny", Lineage())
    flags = {"engine.kind": "vllm", "engine.python": str(python), "engine.kv_cache": "64MB"}

    def prepare(**changes: Any) -> Served:
        spec = load_spec(flags={**flags, **changes}).spec
        assert ENGINE.check(spec, model[1], LINUX) == []
        return ENGINE.prepare(spec, model, store, LINUX, ignore_progress)

    served = prepare()
    assert Served.from_json(served.to_json()) == served
    assert served.artifact == model[1].id
    assert served.upstream.salt_field == "cache_salt"
    assert prepare(**{"engine.max_batch": 4}).revision == served.revision
    assert prepare(**{"engine.kv_precision": "fp8"}).revision != served.revision
    unknown = (model[0], make_artifact())
    spec = load_spec(flags=flags).spec
    with pytest.raises(NotMadeYet):
        ENGINE.prepare(spec, unknown, LookOnlyStore(store.root), LINUX, ignore_progress)
    drafted = prepare(**{"engine.speculation": "draft", "engine.draft_model": "tiny@v1"})
    assert drafted.options["draft_model"] == model[1].id
    other = json.loads(json.dumps(TOKENIZER))
    other["added_tokens"] = [{"content": "<|other|>", "id": 39}]
    folder = Llama(seed=1).write_safetensors(tmp_path / "o")
    (folder / "tokenizer.json").write_text(json.dumps(other))
    store.add(folder, "other", Lineage())
    with pytest.raises(EngineError, match="has another vocabulary than the model"):
        prepare(**{"engine.speculation": "draft", "engine.draft_model": "other@v1"})
    launch = ENGINE.launch(drafted, store, 4321, [0, 1], 0.5)
    given = json.loads(launch.command[-1])
    assert given["port"] == 4321
    command = given["vllm"]["command"]
    assert command[0] == str(python)
    assert str(64_000_000) in command
    assert str(store.folder_of(model[1].id)) in command[command.index("--speculative-config") + 1]
    assert given["vllm"]["environment"]["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    write_safetensors(folder / "adapter_model.safetensors", {"a": np.ones((2, 2), np.float32)})
    return folder


def test_adapters_are_looked_into(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", r=16)
    found = read_lora(folder)
    assert found.rank == 16
    assert find_problems(**{"engine.lora": str(folder)}) == {}
    write_adapter(folder, r=32)
    assert read_lora(folder).sha256 != found.sha256
    for changes, words in (({"r": 1000}, "has the rank 1000"), ({"r": 0}, "'r'"),
                           ({"r": 8, "peft_type": "IA3"}, "of the type 'IA3'")):  # fmt: skip
        with pytest.raises(FormatRefused, match=words):
            read_lora(write_adapter(folder, **changes))
    found_problem = find_problems(**{"engine.lora": str(tmp_path)})["engine.lora"]
    assert "holds no LoRA adapter" in found_problem


def test_kv_cache_holds_at_least_one_answer(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "hidden_size": 576,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    one = 2 * 2 * 30 * 3 * 64 * 2048
    assert count_kv_bytes(tmp_path, 2048, 1e12) == 16 * one
    assert count_kv_bytes(tmp_path, 2048, 2 * one) >= one
    with pytest.raises(EngineError, match=r"one answer of 2048 tokens.*shorter engine\.context"):
        count_kv_bytes(tmp_path, 2048, one)
    (tmp_path / "config.json").write_text(json.dumps({**config, "kv_lora_rank": 512}))
    assert count_kv_bytes(tmp_path, 2048, 1e9) == 250_000_000


LOADED = """\
(APIServer pid=1) INFO 11-29 22:12:50 [api_utils.py:347] version 0.32.0
(EngineCore pid=2) ERROR 11-29 22:12:50 [core.py:1] ValueError: Model architectures ['X'] failed
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."""


def test_reason_of_an_end_is_the_root_cause() -> None:
    assert find_reason(LOADED.splitlines(), 1) == "Model architectures ['X'] failed"
    assert find_reason(["all is well", ""], 3) == "vLLM ended with status 3: all is well"
    assert find_reason([], 137) == "vLLM ended with status 137"
    usage = ["usage: entry.py [-h]", "entry.py: error: unrecognized arguments: --nonsense"]
    assert find_reason(usage, 2) == "unrecognized arguments: --nonsense"


def test_ends_are_those_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 5]}')
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert read_ends(tmp_path) == (6, 5, 7)


def test_in_an_image_nothing_of_this_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    monkeypatch.delenv(packages.PYTHON_VARIABLE, raising=False)
    flags = {
        "engine.kind": "vllm", "engine.image": "r/vllm:1", "engine.tensor_parallel": 2,
        "engine.python": "/in/the/image/python", "replicas.gpus": 2,
    }  # fmt: skip
    spec = load_spec(flags=flags).spec
    assert ENGINE.check(spec, make_artifact(), LINUX) == []
    store = Store(tmp_path / "models")
    model = store.add(Llama().write_safetensors(tmp_path / "m"), "tiny", Lineage())
    served = ENGINE.prepare(spec, model, store, LINUX, ignore_progress)
    assert served.options["tensor_parallel"] == 2
    assert not (tmp_path / "engines").exists()
    found = find_problems(**{**flags, "replicas.gpus": 1})
    assert "'replicas.gpus' gives it (1)" in found["engine.tensor_parallel"]


def test_an_image_names_the_interpreter_that_has_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    monkeypatch.setenv(packages.PYTHON_VARIABLE, "/usr/bin/vllm-python")
    store = Store(tmp_path / "models")
    folder = Llama().write_safetensors(tmp_path / "m")
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    model = store.add(folder, "tiny", Lineage())
    spec = load_spec(flags={"engine.kind": "vllm", "engine.kv_cache": "64MB"}).spec
    served = ENGINE.prepare(spec, model, store, LINUX, ignore_progress)
    launch = ENGINE.launch(served, store, 4321, [0], 1.0)
    assert json.loads(launch.command[-1])["vllm"]["command"][0] == "/usr/bin/vllm-python"
    assert not (tmp_path / "engines" / "vllm" / "bin").exists()


@pytest.mark.parametrize("kind", [Format.SAFETENSORS, Format.GGUF])
def test_a_stored_adapter_is_served_beside_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Format
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    monkeypatch.setenv(packages.PYTHON_VARIABLE, "/usr/bin/vllm-python")
    store = Store(tmp_path / "models")
    model, folder = Llama(vocab=300), tmp_path / "m"
    if kind is Format.GGUF:
        model.write_gguf(folder / "tiny.gguf", extra=make_gpt2_metadata(300))
    else:
        model.write_safetensors(folder)
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    base = store.add(folder, "tiny", Lineage())
    plain = make_plain(store, *base)
    tuned = put_adapter(store, base, make_lora(store, base[1], rank=12))
    spec = load_spec(flags={"engine.kind": "vllm", "engine.kv_cache": "64MB"}).spec
    assert ENGINE.check(spec, tuned[1], LINUX) == []
    served = ENGINE.prepare(spec, tuned, store, LINUX, ignore_progress)
    assert (served.version, served.artifact) == (tuned[0].label, tuned[1].id)
    assert served.revision != ENGINE.prepare(spec, plain, store, LINUX, ignore_progress).revision
    given = json.loads(ENGINE.launch(served, store, 4321, [0], 1.0).command[-1])
    command = given["vllm"]["command"]
    assert command[command.index("--model") + 1] == str(store.folder_of(plain[1].id))
    named = command[command.index("--lora-modules") + 1]
    assert named == f"adapter={store.folder_of(tuned[1].id)}"
    assert command[command.index("--max-lora-rank") + 1] == "16"
    assert given["vllm"]["adapter"]
    twice = find_problems(tuned[1], **{"engine.lora": str(store.folder_of(tuned[1].id))})
    assert "names another one" in twice["model"]


def test_an_adapter_of_too_high_a_rank_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_HOME", str(tmp_path))
    monkeypatch.setenv(packages.PYTHON_VARIABLE, "/usr/bin/vllm-python")
    store = Store(tmp_path / "models")
    base = store.add(Llama().write_safetensors(tmp_path / "m"), "tiny", Lineage())
    tuned = put_adapter(store, base, make_lora(store, base[1], rank=513))
    spec = load_spec(flags={"engine.kind": "vllm"}).spec
    with pytest.raises(FormatRefused, match=r"has the rank 513, and vLLM takes up to 512; merge"):
        ENGINE.prepare(spec, tuned, store, LINUX, ignore_progress)
