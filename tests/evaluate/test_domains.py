"""Domains: each measured apart, on the predictions that count, and the worst one told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compress.test_pipeline import MODEL
from tests.engines.test_prepare import put
from tests.evaluate.bigram import VOCAB, Bigram, divergence, write_text
from tests.evaluate.test_conversations import TURNS, assistant, talk, user, write
from tests.evaluate.test_divergence import Dies, Killed
from tests.parts import run_thrifty
from tests.text import templates
from thrifty.artifacts import Store
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.errors import EvaluationError
from thrifty.evaluate import EvaluationOptions, evaluate
from thrifty.evaluate.divergence import measure_divergence
from thrifty.evaluate.domains import Domain, find_worst
from thrifty.evaluate.run import record_reference
from thrifty.evaluate.suite import (
    DOMAINS,
    DataFile,
    EvaluationSuite,
    find_domain,
    find_domains,
    find_worst_domain,
    measure_quality,
    name_default_domains,
)
from thrifty.evaluate.windows import digest_file
from thrifty.home import Home
from thrifty.types import Progress, ignore_progress

REFERENCE = Bigram(0, label="reference")


def write_conversations(path: Path, count: int = 30) -> Path:
    letters = np.random.default_rng(3).integers(97, 123, 40 * count).astype(np.uint8).tobytes()
    said = [letters[40 * n : 40 * n + 10 + n].decode() for n in range(count)]
    records = [
        talk(user(f"Question {n}?"), assistant(text), user("Sure?"), assistant(text[:5]))
        for n, text in enumerate(said)
    ]
    return write(path, *records)


def test_only_what_the_assistant_says_is_measured(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "a.jsonl")
    record = record_reference(REFERENCE, path, tmp_path / "e", window=200, top_k=VOCAB)
    other = Bigram(1, 0.3)
    found = measure_divergence(other, record, tmp_path / "r.bin")
    counted = [
        divergence(REFERENCE, other, window.tokens)[window.counted] for window in record.read()
    ]
    assert found.tokens == sum(map(len, counted)) < record.predictions
    assert found.windows == len(counted) == 30
    true = np.concatenate(counted)
    assert found.kl_divergence.mean == pytest.approx(true.mean(), rel=1e-3)
    # The interval is over conversations.
    sizes = np.array([len(one) for one in counted])
    sums = np.array([one.sum() for one in counted])
    spread = ((sums - true.mean() * sizes) ** 2).sum() * 30 / 29
    assert found.kl_divergence.stderr == pytest.approx(spread**0.5 / len(true), rel=1e-2)


@pytest.mark.parametrize("torn", [0, 5])
def test_a_broken_off_domain_goes_on_where_it_was(tmp_path: Path, torn: int) -> None:
    path = write_conversations(tmp_path / "a.jsonl")
    options: dict[str, Any] = {"window": 200, "top_k": 20}
    whole = record_reference(REFERENCE, path, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        record_reference(Dies(11), path, tmp_path / "e", **options)
    (folder,) = (tmp_path / "e" / "references").iterdir()
    with (folder / "counted.bin").open("ab") as file:
        file.write(b"\x01" * torn)
    again = Bigram(0, label="reference")
    record = record_reference(again, path, tmp_path / "e", **options)
    assert again.passes == 30 - 11
    for name in ("counted.bin", "tokens.bin", "records.bin", "windows.bin"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes()
    other = Bigram(1, 0.3)
    expected = measure_divergence(other, whole, tmp_path / "whole.bin")
    assert measure_divergence(other, record, tmp_path / "r.bin") == expected


def test_nothing_recorded_in_full_that_counts_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk(user("Is it?"), assistant("No.")))
    record = record_reference(REFERENCE, path, tmp_path / "e", window=200, top_k=20)
    found = measure_divergence(Bigram(1, 0.3), record, tmp_path / "r.bin")
    assert (found.truncation, found.truncation_tokens) == (None, 0)
    assert found.tokens == len("No.") + 1


def test_the_worst_domain_has_the_highest_ratio() -> None:
    assert find_worst({"chat": 1.2, "web": 1.3, "code": 0.9}) == "web"
    assert find_worst({}) is None


# names


def test_domains_are_sets_or_files_with_names(tmp_path: Path, store: Store) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "chat.jsonl", TURNS)
    text = write_text(tmp_path / "a=b.txt", 100)

    def find(named: str) -> tuple[str, Path]:
        found = find_domain(named, data, store)
        assert found.sha256 == digest_file(found.path)
        return found.name, found.path

    assert find("chat") == ("chat", data / "chat.jsonl")
    assert find("talk=chat") == ("talk", data / "chat.jsonl")
    assert find(str(text)) == ("a=b", text)
    assert find(f"mine={text}") == ("mine", text)
    served = find_domain("uses=log:assistant", data, store, find_log=lambda name: text)
    assert (served.name, served.path) == ("uses", text)
    for named, message in (
        ("piqa", "'piqa' holds questions, not text; name it as a task"),
        ("mine=piqa", "holds questions"),
        ("lm_eval:piqa", "holds questions"),
        ("mine=/none/such", "neither a file nor a data set"),
        ("uses=log:assistant", "the request log can be a domain of 'thrifty evaluate'"),
    ):
        with pytest.raises(EvaluationError, match=message):
            find_domain(named, data, store)
    with pytest.raises(EvaluationError, match=r"two domains have the same name \(chat, chat\)"):
        find_domains(["chat", f"chat={text}"], data, store)


# stored models


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def store(home: Home) -> Store:
    """A store with a checkpoint that has a chat template, `tiny`, also in 8 bits."""
    store = Store(home.models)
    made = put(store, MODEL, templates={"default": templates.CHATML})
    prepare_model(store, *made, "int8", ignore_progress)
    return store


@pytest.mark.engine
def test_conversations_need_a_chat_template(tmp_path: Path, store: Store) -> None:
    assert name_default_domains(store, store.find("tiny")[1]) == DOMAINS
    without = Store(tmp_path / "models")
    _, artifact = put(without)
    assert name_default_domains(without, artifact) == ("encyclopedia", "web", "code")
    path = write(tmp_path / "a.jsonl", TURNS)
    with pytest.raises(EvaluationError, match=r"a\.jsonl, line 1: this model has no chat template"):
        evaluate(
            "tiny", "tiny", EvaluationOptions(domains=[Domain("chat", path)], window=64),
            store=without, folder=tmp_path / "e",
        )  # fmt: skip


@pytest.mark.engine
def test_each_domain_is_a_measurement_of_its_own(home: Home, store: Store, tmp_path: Path) -> None:
    files = {
        "chat": write(tmp_path / "chat.jsonl", *[talk(user("Hi."), assistant("Ho ho."))] * 9),
        "web": write_text(tmp_path / "web.txt", 3000),
    }
    domains = tuple(DataFile(name, path, digest_file(path)) for name, path in files.items())
    root, _ = store.find("tiny")
    version, artifact = store.find("tiny-int8-openvino")
    steps: list[str] = []

    def note(step: Progress) -> None:
        steps.append(step.step)

    def measure(*chosen: DataFile) -> dict[str, Any]:
        suite = EvaluationSuite(root, chosen, tokens=1024)
        found = measure_quality(store, home.evaluations, version, artifact, suite, note)
        return {one.values["domain"]: one for one in found}

    first = measure(domains[0])
    assert "chat: evaluate" in steps
    steps.clear()
    both = measure(*domains)
    assert both["chat"] == first["chat"]
    assert "web: evaluate" in steps
    assert "chat: evaluate" not in steps
    assert both["chat"].conditions["domain_sha256"] == domains[0].sha256
    assert both["chat"].values["tokens"] == 9 * (len("Ho ho.<|im_end|>\n"))
    assert both["web"].values["tokens"] > 900
    steps.clear()
    assert measure(*domains) == both
    assert not steps
    worst = find_worst_domain(both.values())
    ratios = {name: one.values["perplexity_ratio"] for name, one in both.items()}
    assert worst is not None
    assert worst.values["domain"] == max(ratios, key=lambda name: ratios[name])


@pytest.mark.engine
@pytest.mark.slow
def test_scripts_get_every_domain_and_the_worst(home: Home, store: Store) -> None:
    data = home.data
    data.mkdir(parents=True, exist_ok=True)
    for name in ("encyclopedia", "web", "code"):
        path = write_text(data / "text.txt", 2000, seed=len(name))
        write(data / f"{name}.jsonl", {"text": path.read_text()})
    for name in ("chat", "questions"):
        write(data / f"{name}.jsonl", *[TURNS] * 3)
    command = (
        "evaluate",
        "tiny-int8-openvino",
        "--reference",
        "tiny",
        "--window",
        "256",
        "--tokens",
        "512",
    )
    done = run_thrifty(home.root, *command, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found["domains"]) == DOMAINS
    assert found["worst"] in DOMAINS
    for one in found["domains"].values():
        assert set(one) >= {
            "kl_divergence",
            "perplexity_ratio",
            "perplexity_ratio_stderr",
            "tokens",
        }
        assert set(one["kl_divergence"]) >= {"mean", "stderr"}
    assert found["domains"]["chat"]["tokens"] < found["domains"]["web"]["tokens"] < 512
    mine = f"mine={data / 'chat.jsonl'}"
    done = run_thrifty(home.root, *command, "--domain", "web", "--domain", mine)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (headline,) = [line for line in lines if line.startswith("Worst domain: ")]
    (worst,) = [line for line in lines if "(worst)" in line]
    assert headline.split(": ")[1].split(",")[0] == worst.split()[0]
    assert "web" in done.stdout
    assert "mine" in done.stdout
    done = run_thrifty(home.root, *command, "--domain", "uses=log:assistant", "--json")
    assert done.returncode == 1
    assert "thrifty.db does not exist; 'thrifty up' creates it" in done.stderr
