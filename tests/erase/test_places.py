"""Places that hold a person's data besides the request log: an erasure reaches each, also where it
was interrupted and where requests name nobody.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tests.erase.test_erase import _insert_batch, entry, holders, ids
from thrifty.artifacts import Store
from thrifty.artifacts.disk import lock_file
from thrifty.data.built import BuiltSet, open_set
from thrifty.db import Database, open_database
from thrifty.db.batches import FileRow, delete_file, insert_file
from thrifty.db.cache import read_purges
from thrifty.db.erasures import note_export
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.improve import begin_step, create_run, end_step, lease_name
from thrifty.db.leases import release_lease, take_lease
from thrifty.db.releases import HeldConversations, read_held, write_held
from thrifty.db.request_log import RequestLog
from thrifty.db.tables import batches, feedback, release_pairs, requests
from thrifty.erase.erase import collect_person, erase_person
from thrifty.erase.stores import ERASERS
from thrifty.evaluate import gate_record
from thrifty.evaluate.gate_record import verify_record, write_record
from thrifty.evaluate.reference import ReferenceMeta, ReferenceRecord
from thrifty.home import Home, make_private_folder
from thrifty.openai.conversations import Conversations, read_hash
from thrifty.openai.fields import MAX_USER
from thrifty.openai.response_ids import ResponseIds

ANN, SECRET = "ann-8c1f", "the-words-of-ann"
IDS = ResponseIds(b"s" * 32, 0)
TALK = Conversations(b"s" * 32)._make_id("red", b"ann")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    made = open_database(home.database_url, migrate=True)
    yield made
    made.close()


# Records of gates


def make_record(home: Home, **changes: Any) -> dict[str, Any]:
    example = {"question": SECRET, "against": f"{SECRET}?", "candidate": "No.", "responses": [7]}
    slices = [{"metric": "trusted", "name": "m-trusted@v1", "examples": [example]}]
    return {
        "version": 1, "verdict": "fail", "message": "m@v2 fails", "made": "2026-01-01",
        "models": {}, "sets": [], "speed": {}, "slices": slices, **changes,
    }  # fmt: skip


def test_records_of_gates_keep_numbers_of_responses_in_place_of_texts(home: Home) -> None:
    path = write_record(home, make_record(home))
    (kept,) = json.loads(path.read_text())["slices"]
    assert kept["examples"] == [{"responses": [7]}]
    built = {"name": "asked@v1", "path": str(home.datasets / "asked" / "v1" / "test-00000.jsonl")}
    example = {"question": SECRET, "against": "Yes.", "candidate": "No."}
    asked = [{"metric": "right", "name": "all", "examples": [example]}]
    path = write_record(home, make_record(home, sets=[built], slices=asked))
    assert json.loads(path.read_text())["slices"][0]["examples"] == []
    own = {"name": "own", "path": "/elsewhere/own.jsonl"}
    path = write_record(home, make_record(home, sets=[own], slices=asked))
    assert json.loads(path.read_text())["slices"][0]["examples"] == [example], "an operator's file"


def write_old(home: Home, **changes: Any) -> Path:
    """A record as an earlier release wrote it."""
    record = make_record(home, **changes)
    key = gate_record._load_key(make_private_folder(home.gates))
    path = home.gates / f"old-{len(changes)}.json"
    path.write_text(json.dumps(gate_record._sign_record(record, key)))
    return path


def test_texts_in_older_records_go_and_what_was_valid_stays_valid(
    database: Database, home: Home
) -> None:
    path, forged = write_old(home), write_old(home, verdict="pass")
    forged.write_text(forged.read_text().replace("m@v2 fails", "m@v2 passes"))
    (home.gates / "note.json").write_text("{}")
    erasure = erase_person(database, home, ANN)
    assert erasure.counts["records of gates"] == 2
    assert [one for one in erasure.left if "note.json" in one] == erasure.left
    assert not holders(home.gates, SECRET)
    store = Store(home.models)
    assert verify_record(home, store, path).faults == []
    assert len(verify_record(home, store, forged).faults) == 2, "it is not made valid"


# Caches


@pytest.mark.parametrize("tenant", [None, "red", ""])
def test_caches_forget_also_where_the_request_log_knows_nobody(
    database: Database, home: Home, tenant: str | None
) -> None:
    erasure = erase_person(database, home, ANN, tenant)
    with database.begin() as connection:
        (purge,) = read_purges(connection)
    assert purge.tenant == (tenant or None)
    assert any("cached answers of" in note for note in erasure.notes)
    assert next(iter(erasure.counts)) == "cached answers"


# Batches


def answer(
    number: int | None, custom_id: str | None, text: str, request_id: str = "", line: int = 1
) -> str:
    body = {"choices": text} if number is None else {"id": f"chatcmpl-{IDS.write(number, 'red')}", "choices": text}  # fmt: skip
    response = {"status_code": 200, "request_id": request_id, "body": body}
    record = {"id": f"batch_req_x_{line}", "custom_id": custom_id, "response": response}
    return json.dumps(record) + "\n"


def store_file(database: Database, home: Home, number: int, suffix: str, text: str) -> str:
    home.files.mkdir(exist_ok=True)
    name = f"file-{number:028d}{suffix}"
    (home.files / name).write_text(text)
    insert_file(database, FileRow(name, "red", "x", "batch", len(text), 1.0, None))
    return name


def test_results_go_also_where_their_input_is_gone(database: Database, home: Home) -> None:
    log = [
        entry(1, ANN),
        entry(2, "bob"),
        entry(3, ANN, endpoint="/v1/embeddings", client_request_id="batch_req_x_3-1"),
    ]
    RequestLog(database).write(log)
    source = store_file(database, home, 1, "", "")
    kept = answer(2, "b", "hers", line=2)
    text = answer(1, "a", SECRET) + kept + answer(None, "c", SECRET, "batch_req_x_3-1", line=3)
    output = store_file(database, home, 1, "-output", text)
    _insert_batch(database, "batch_1", source, output, "completed")
    assert delete_file(database, "red", source) is None
    (home.files / source).unlink()
    assert len(collect_person(database, home, ANN)["lines of batches"]) == 2
    erasure = erase_person(database, home, ANN)
    assert (erasure.counts["lines of batches"], erasure.left) == (2, [])
    assert (home.files / output).read_text() == kept
    with (home.files / output).open("a") as file:
        file.write(answer(9, "d", "of somebody", line=4))
    (left,) = erase_person(database, home, ANN).left
    assert f"{output} has 1 results of which neither an input nor the request log" in left


def test_lines_of_others_with_the_same_id_or_none_stay(database: Database, home: Home) -> None:
    RequestLog(database).write([entry(1, ANN), entry(3, "bob")])
    users = [(ANN, "a"), ("bob", None), ("bob", "c"), (ANN, None), ("bob", "a"), (ANN, "d")]
    lines = [
        json.dumps({"custom_id": custom_id, "body": {"user": user, "messages": [user]}}) + "\n"
        for user, custom_id in users
    ]
    source = store_file(database, home, 1, "", "".join(lines))
    kept = answer(3, "c", "his", line=3)
    output = store_file(database, home, 1, "-output", answer(1, "a", SECRET) + kept)
    faults = [
        json.dumps({"id": f"batch_req_x_{number}", "custom_id": custom_id, "response": None}) + "\n"
        for number, custom_id in ((2, None), (4, None), (5, "a"), (6, "d"))
    ]
    errors = store_file(database, home, 1, "-errors", "".join(faults))
    _insert_batch(database, "batch_1", source, output, "completed")
    with database.begin() as connection:
        connection.execute(update(batches).values(error_file_id=errors))
    assert len(collect_person(database, home, ANN)["lines of batches"]) == 6
    assert erase_person(database, home, ANN).counts["lines of batches"] == 3
    assert (home.files / output).read_text() == kept
    assert (home.files / errors).read_text() == faults[0] + faults[2]
    left = ["\n" if user == ANN else line for (user, _), line in zip(users, lines, strict=True)]
    assert (home.files / source).read_text() == "".join(left)
    # Lines have kept their numbers.
    assert erase_person(database, home, "bob").counts["lines of batches"] == 3
    assert not (home.files / output).read_text() + (home.files / errors).read_text()
    assert not (home.files / source).read_text().strip()


# Evaluations


def make_reference(home: Home, name: str, text: Path) -> Path:
    place = home.evaluations / "references" / name
    facts = asdict(ReferenceMeta("x", "m@v1", str(text), "0" * 64, 8, 4, 100, None, "0" * 64))
    ReferenceRecord(place, ReferenceMeta(**facts))
    (place / "tokens.bin").write_text(SECRET)
    return place


def test_what_evaluations_made_of_users_texts_is_removed(database: Database, home: Home) -> None:
    recorded = make_private_folder(home.evaluations / "recorded") / "assistant.jsonl"
    recorded.write_text(SECRET)
    places = {
        "log": make_reference(home, "log", recorded),
        "set": make_reference(home, "set", home.datasets / "chats" / "v1" / "test-00000.jsonl"),
        "exported": make_reference(home, "exported", home.root / "exported.jsonl"),
        "web": make_reference(home, "web", home.data / "web.jsonl"),
    }
    note_export(database, home.root / "exported.jsonl", "sft")
    answers = make_private_folder(home.evaluations / "answers") / "chat-1.jsonl"
    answers.write_text(json.dumps(["key", {"text": SECRET}]) + "\n")
    vectors = make_private_folder(home.evaluations / "embeddings" / "key") / "model.f32"
    vectors.touch()
    with lock_file(places["log"] / "lock"):
        (left,) = erase_person(database, home, ANN).left
    assert str(places["log"]) in left
    assert erase_person(database, home, ANN).left == []
    assert holders(home.evaluations, SECRET) == [places["web"] / "tokens.bin"]
    assert not vectors.exists()


# The loop


def test_a_step_of_the_loop_that_works_is_named(database: Database, home: Home) -> None:
    run = create_run(database, "m", {}, began_by="command", who="test")
    begin_step(database, run, "collect", {})
    assert erase_person(database, home, ANN).left == [], "its process has ended"
    assert take_lease(database, lease_name("m"), "somebody", 60.0, force=False)
    (left,) = erase_person(database, home, ANN).left
    assert "'collect'" in left
    assert "thrifty improve status m" in left
    end_step(database, run, "collect", {})
    assert erase_person(database, home, ANN).left == []
    release_lease(database, lease_name("m"), "somebody")


# Names and logs


def test_a_name_that_was_cut_is_found_by_the_whole_name(database: Database, home: Home) -> None:
    name = ANN + "x" * MAX_USER
    RequestLog(database).write([entry(1, name[:MAX_USER]), entry(2, "bob")])
    home.logs.mkdir()
    log = home.logs / "gateway.log"
    log.write_text(f"{name} sent nonsense\n")
    line = {"custom_id": "a", "body": {"user": name, "messages": [SECRET]}}
    store_file(database, home, 1, "", json.dumps(line) + "\n")
    erasure = erase_person(database, home, name)
    assert (erasure.counts["requests"], erasure.counts["lines of batches"]) == (1, 1)
    assert log.read_text() == "*" * len(name) + " sent nonsense\n"
    assert ids(database, requests) == {2}


def test_a_log_that_cannot_be_written_is_named_and_the_rest_is_done(
    database: Database, home: Home
) -> None:
    RequestLog(database).write([entry(1, ANN, SECRET)])
    home.logs.mkdir()
    # No program that runs can be written to, by whomever.
    busy = home.logs / "busy.log"
    shutil.copy("/bin/sleep", busy)
    busy.chmod(0o700)
    process = subprocess.Popen([str(busy), "600"])
    try:
        erasure = erase_person(database, home, ANN)
    finally:
        process.kill()
        process.wait()
    (left,) = erasure.left
    assert str(busy) in left
    assert not holders(home.root, ANN, SECRET)


# Interrupted, and with requests that name nobody


def fill(home: Home) -> None:
    """Data of a person in many places; the second request of the conversation names nobody."""
    database = open_database(home.database_url, migrate=True)
    log = [entry(n, user, SECRET, conversation_id=TALK) for n, user in ((1, ANN), (2, None))]
    RequestLog(database).write([*log, entry(3, "bob", conversation_id=None)])
    for number in (2, 3):
        said = Feedback("red", (Item("correction", text=SECRET * (number == 2) or "x"),), response=number)  # fmt: skip
        save_feedback(database, said)
    with database.begin() as connection:
        pair = {"release_id": 1, "shadow": 20, "response": 2, "outcome": 1}
        connection.execute(insert(release_pairs).values(pair))
        hashes = frozenset({read_hash(TALK)})
        write_held(connection, HeldConversations("echo", 1.0, 1.0, {"a": 1.0}, hashes))
    source = store_file(database, home, 1, "", "")
    (home.files / source).unlink()
    output = store_file(database, home, 1, "-output", answer(2, "a", SECRET))
    _insert_batch(database, "batch_1", source, output, "completed")
    row = {"messages": [{"role": "user", "content": SECRET}], "provenance": {"response": 2}}
    make_set(home, row)
    write_old(home)
    home.logs.mkdir()
    (home.logs / "gateway.log").write_text(f"{ANN} sent nonsense\n")
    (home.root / "exported.jsonl").write_text(json.dumps(row) + "\n")
    database.close()


def make_set(home: Home, row: dict[str, Any]) -> BuiltSet:
    from tests.curate.made import make_chats, write_lines
    from thrifty.curate.build import build_data

    path = write_lines(home.root / "rows.jsonl", make_chats(12))
    build_data({"sources": [{"path": str(path)}]}, "chats", home=home)
    path.unlink()
    built = open_set(home.datasets, "chats")
    file = built.folder / built.files[0].path
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    return built


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home(tmp_path_factory.mktemp("filled") / "home")
    fill(home)
    return home.root


def erase_until(root: Path, step: str) -> None:
    """Erase, and die when a step begins."""
    home = Home(root)

    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    erase_person(open_database(home.database_url, migrate=False), home, ANN, on_step=die)


@pytest.mark.parametrize("step", [*(one.name for one in ERASERS), "rewriting the database"])
def test_an_erasure_that_was_killed_is_done_by_the_next(
    filled: Path, tmp_path: Path, step: str
) -> None:
    home = Home(tmp_path / "home")
    shutil.copytree(filled, home.root)
    database = open_database(home.database_url, migrate=False)
    note_export(database, home.root / "exported.jsonl", "sft")
    make_reference(home, "log", home.evaluations / "recorded" / "m.jsonl")
    database.close()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    killed = context.Process(target=erase_until, args=(home.root, step))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    database = open_database(home.database_url, migrate=False)
    try:
        assert erase_person(database, home, ANN).left == []
        assert ids(database, requests) == {3}
        assert len(ids(database, feedback)) == 1
        with database.begin() as connection:
            assert not connection.execute(select(release_pairs)).all()
            assert not any(held.hashes for held in read_held(connection))
        assert holders(home.root, ANN, SECRET) == []
        files = open_set(home.datasets, "chats").folder.glob("t*-*.jsonl")
        assert sum(len(path.read_text().splitlines()) for path in files) == 12
    finally:
        database.close()
