"""One person is forgotten: no file of the home holds the bytes, and others keep theirs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tests.batches.talk import Talk, make_line
from tests.db.databases import KINDS, empty_tables, open_kind
from tests.parts import run_thrifty, running_echo, running_gateway, until
from thrifty.artifacts.disk import lock_file
from thrifty.batches.settings import BatchSettings
from thrifty.db import Database, open_database
from thrifty.db.batches import FileRow, insert_file
from thrifty.db.erasures import list_erasures, note_export
from thrifty.db.feedback import Feedback, Item, save_feedback
from thrifty.db.keys import create_key
from thrifty.db.request_log import COLUMNS, Entry, RequestLog
from thrifty.db.subjects import open_subjects
from thrifty.db.tables import batches, feedback, metadata, request_texts, requests
from thrifty.erase.erase import collect_person, erase_person
from thrifty.erase.stores import ERASERS, NOT_OF_PERSONS
from thrifty.home import Home
from thrifty.observe.record_files import KINDS as RECORDS
from thrifty.observe.record_files import read_records, write_records
from thrifty.openai.response_ids import ResponseIds

ANN, SECRET = "ann-8c1f", "the-words-of-ann"


@pytest.fixture(scope="module", params=KINDS)
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from open_kind(request.param, tmp_path_factory)


@pytest.fixture
def database(shared: Database) -> Database:
    empty_tables(shared)
    return shared


def entry(number: int, user: str | None, text: str = "x", **values: Any) -> Entry:
    row = dict.fromkeys(COLUMNS) | {
        "id": number, "at_s": 1.0, "endpoint": "/v1/chat/completions", "status": 200,
        "stream": False, "attempts": 1, "e2e_ms": 1.0, "tenant": "red", "end_user": user, **values,
    }  # fmt: skip
    prompt = json.dumps([{"role": "user", "content": text}])
    return Entry(tuple(row[name] for name in COLUMNS), (prompt, text))


def ids(database: Database, table: Any) -> set[int]:
    with database.begin() as connection:
        return set(connection.execute(select(table.c.id)).scalars())


def holders(folder: Path, *needles: str) -> list[Path]:
    """The files below a folder that hold one of these texts. Read by another process: one that
    closes a database's file gives up the locks of its own connections.
    """
    wanted = [option for needle in needles for option in ("-e", needle)]
    result = subprocess.run(
        ["grep", "-rlF", *wanted, str(folder)], capture_output=True, text=True, check=False
    )
    return sorted(map(Path, result.stdout.splitlines()))


def test_every_place_that_stores_anything_has_an_eraser_or_a_reason() -> None:
    covered = [place for eraser in ERASERS for place in eraser.covers]
    assert len(covered) == len(set(covered))
    places = {f"table:{name}" for name in metadata.tables}
    home = Home(Path("/x"))
    folders = [
        name
        for name, value in vars(Home).items()
        if isinstance(value, property) and isinstance(getattr(home, name), Path)
    ]
    places |= {f"folder:{name}" for name in folders if name != "database"} | {"file:database"}
    assert len(places) > 25
    assert places == set(covered) | NOT_OF_PERSONS.keys()
    assert not set(covered) & NOT_OF_PERSONS.keys()


def test_rows_of_a_person_go_and_those_of_others_stay(database: Database, tmp_path: Path) -> None:
    log = RequestLog(database)
    talk = "conv-" + "a" * 27
    log.write(
        [
            entry(1, ANN, conversation_id=talk),
            entry(2, None, conversation_id=talk),
            entry(3, "bob", conversation_id=talk),
            entry(4, ANN, tenant="blue"),
            entry(5, None),
        ]
    )
    about = Feedback("red", (Item("comment", text="fine"),), response=1, user="bob")
    save_feedback(database, about)
    save_feedback(database, replace(about, response=3, user=ANN))
    save_feedback(database, replace(about, response=3))
    found = collect_person(database, Home(tmp_path), ANN, "red")
    assert [row["id"] for row in found["requests"]] == [1]
    assert [row["response"] for row in found["feedback"]] == [3]
    erasure = erase_person(database, Home(tmp_path), ANN, "red")
    assert (erasure.counts["requests"], erasure.counts["feedback"]) == (2, 2)
    assert erasure.left == []
    assert ids(database, requests) == ids(database, request_texts) == {3, 4, 5}
    assert len(ids(database, feedback)) == 1
    (record,) = list_erasures(database)
    assert record.report is not None
    assert ANN not in record.report + record.subject
    assert erase_person(database, Home(tmp_path), ANN).counts["requests"] == 1, "in all tenants"


def test_rows_that_still_wait_are_dropped_when_they_come(
    database: Database, tmp_path: Path
) -> None:
    log = RequestLog(database)
    waiting = [entry(1, ANN), entry(2, "bob"), entry(3, ANN, tenant="blue")]
    erase_person(database, Home(tmp_path), ANN, "red")
    assert log.write(waiting) == []
    assert ids(database, requests) == ids(database, request_texts) == {2, 3}
    create_key(database, "green")
    erase_person(database, Home(tmp_path), "eve")
    assert log.write([entry(4, "eve", tenant="green")]) == []
    assert ids(database, requests) == {2, 3}, "in a tenant of which the log knows nothing yet"
    later = 2**62  # asked after the erasure
    assert log.write([entry(later, ANN)]) == []
    assert ids(database, requests) == {2, 3, later}


def test_lines_of_batches_go_with_their_results(tmp_path: Path) -> None:
    home = Home(tmp_path)
    database = open_database(home.database_url, migrate=True)
    home.files.mkdir()
    lines = [
        {"custom_id": "a", "body": {"user": ANN, "messages": [SECRET]}},
        {"custom_id": "b", "body": {"user": "bob", "messages": ["hers: x"]}},
    ]
    names = [f"file-{'0' * 27}{n}{suffix}" for n, suffix in ((1, ""), (2, "-output"), (3, ""))]
    for name in names:
        data = "".join(
            json.dumps({**one, "id": f"batch_req_x_{number}"}) + "\n"
            for number, one in enumerate(lines, 1)
        )
        (home.files / name).write_text(data)
        insert_file(database, FileRow(name, "red", "x", "batch", len(data), 1.0, None))
    _insert_batch(database, "batch_1", names[0], names[1], "completed")
    _insert_batch(database, "batch_2", names[2], None, "in_progress")
    assert len(collect_person(database, home, ANN)["lines of batches"]) == 3
    erasure = erase_person(database, home, ANN)
    assert erasure.counts["lines of batches"] == 1
    assert "batch_2" in erasure.left[0]
    assert holders(home.files, ANN, SECRET) == [home.files / names[2]]
    kept = {**lines[1], "id": "batch_req_x_2"}
    assert (home.files / names[1]).read_text() == json.dumps(kept) + "\n"
    database.close()


def test_what_is_left_can_be_found_by_the_next_erasure(tmp_path: Path) -> None:
    home = Home(tmp_path)
    database = open_database(home.database_url, migrate=True)
    RequestLog(database).write(
        [
            entry(1, ANN, SECRET, tenant="red", conversation_id="c"),
            entry(2, None, SECRET, tenant="red", conversation_id="c"),
        ]
    )
    home.files.mkdir()
    name = f"file-{'0' * 27}1"
    line = {"custom_id": "a", "body": {"user": ANN, "messages": [SECRET]}}
    (home.files / name).write_text(json.dumps(line) + "\n")
    insert_file(database, FileRow(name, "red", "x", "batch", 9, 1.0, None))
    _insert_batch(database, "batch_1", name, None, "in_progress")
    erasure = erase_person(database, home, ANN)
    assert "batch_1" in erasure.left[0]
    assert erasure.left[1].startswith("2 rows of the request log, whose texts are gone")
    assert erasure.counts["requests"] == 0
    assert (ids(database, request_texts), ids(database, requests)) == (set(), {1, 2})
    with database.begin() as connection:
        connection.execute(update(batches).values(status="completed"))
    erasure = erase_person(database, home, ANN)
    assert (erasure.left, erasure.counts["requests"]) == ([], 2)
    assert not ids(database, requests)
    assert not holders(tmp_path, ANN, SECRET)
    database.close()


def _insert_batch(
    database: Database, name: str, source: str, output: str | None, status: str
) -> None:
    numbers = (
        "total",
        "completed",
        "failed",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
    )
    values = {
        "id": name, "tenant": "red", "endpoint": "/v1/chat/completions", "input_file_id": source,
        "output_file_id": output, "completion_window": "24h", "status": status, "created_s": 1.0,
        "expires_s": 2.0, **dict.fromkeys(numbers, 0),
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(batches).values(values))


def test_training_rows_go_wherever_they_were_written(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    database = open_database(home.database_url, migrate=True)
    out, gone = tmp_path / "rows.jsonl", tmp_path / "gone.jsonl"
    mine = open_subjects(database).name("red", ANN)
    RequestLog(database).write([entry(1, ANN)])
    rows = [
        {"messages": [], "provenance": {"response": 1, "subjects": []}},
        {"messages": [], "provenance": [{"response": 2, "subjects": []}, {"subjects": [mine]}]},
        {"messages": [], "provenance": {"response": 3, "subjects": ["u-other"]}},
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    note_export(database, out, "sft")
    note_export(database, gone, "sft")
    erasure = erase_person(database, home, ANN)
    assert erasure.counts["training rows"] == 2
    assert json.loads(out.read_text()) == rows[2]
    database.close()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_exported_records_go_wherever_they_were_written(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    home = Home(tmp_path / "home")
    database = open_database(home.database_url, migrate=True)
    log = [entry(1, ANN), entry(2, "bob"), entry(3, ANN, tenant="blue"), entry(4, None)]
    assert RequestLog(database).write(log) == []
    save_feedback(database, Feedback("red", (Item("comment", text="by bob"),), response=1))
    files = {}
    for kind in ("requests", "feedback"):
        files[kind] = tmp_path / f"{kind}{suffix}"
        note_export(database, files[kind], kind)
        write_records(database, RECORDS[kind], files[kind], ResponseIds(b"s" * 32, 0))
    assert collect_person(database, home, ANN, "red")["training rows"]
    erasure = erase_person(database, home, ANN, "red")
    assert erasure.left == []
    left = list(read_records(files["requests"]))
    assert [one["id"] for one in left] == [2, 3, 4]
    assert list(read_records(files["feedback"])) == []
    database.close()


async def test_no_file_of_the_home_holds_the_bytes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompts": True, "batches": BatchSettings()}
    async with running_echo() as url, running_gateway(tmp_path, [url], **options) as gateway:
        for user, text in ((ANN, SECRET), ("bob", "the-words-of-bob")):
            for turn in range(20):
                body = {
                    "model": "echo", "user": user,
                    "messages": [{"role": "user", "content": f"{text} {turn} " + "x" * 3000}],
                }  # fmt: skip
                reply = await gateway.ask(body)
                given = {
                    "response_id": reply.json()["id"], "comment": f"{text} {turn}", "user": user,
                    "thumbs": "down",
                }  # fmt: skip
                assert (await gateway.ask(given, "/v1/feedback")).status == 201
                again = {**given, "comment": f"{text} again"}
                assert (await gateway.ask(again, "/v1/feedback")).status == 200
        # A batch whose input is gone: the request log alone tells whose its results are.
        talk = Talk(gateway)
        lines = [
            make_line(user, f"the-words-of-{user[:3]}", body={"user": user})
            for user in (ANN, "bob")
        ]
        batch = await talk.wait((await talk.create(lines))["id"])
        assert holders(tmp_path / "files", ANN)
        gone = await talk.ask("DELETE", f"/v1/files/{batch['input_file_id']}")
        assert gone.status == 200
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "gateway.log").write_text(f"WARNING user {ANN} sent nonsense\n")

        def written() -> bool:
            return len(ids(gateway.database, request_texts)) == 42

        await until(lambda: asyncio.to_thread(written))
        assert holders(tmp_path, ANN)
        refused = await asyncio.to_thread(run_thrifty, tmp_path, "forget", "--user", ANN)
        assert refused.returncode == 1
        assert "--yes" in refused.stderr
        shown = await asyncio.to_thread(run_thrifty, tmp_path, "subject-export", "--user", ANN)
        assert len(json.loads(shown.stdout)["requests"]) == 21
        result = await asyncio.to_thread(
            run_thrifty, tmp_path, "forget", "--user", ANN, "--yes", "--json"
        )
        assert result.returncode == 0, result.stderr
        counts = json.loads(result.stdout)["counts"]
        assert (counts["requests"], counts["feedback"]) == (21, 40)
        assert holders(tmp_path, ANN, SECRET) == []
        assert "sent nonsense" in (tmp_path / "logs" / "gateway.log").read_text()
        assert len(ids(gateway.database, request_texts)) == 21
        assert counts["lines of batches"] == 1
        assert holders(tmp_path / "files", "the-words-of-bob")
        body = {"model": "echo", "user": ANN, "messages": [{"role": "user", "content": "again"}]}
        assert (await gateway.ask(body)).status == 200
        await until(lambda: asyncio.to_thread(lambda: len(ids(gateway.database, requests)) == 22))


def test_rows_of_built_sets_are_erased_and_models_named(tmp_path: Path) -> None:
    from tests.curate.made import make_chats, talk, write_lines
    from thrifty.curate.build import build_data
    from thrifty.data import open_set

    home = Home(tmp_path / "home")
    rows = [
        *make_chats(12),
        *(talk(f"{SECRET} number {n}, is it so?", f"It is so, {n}.", user=ANN) for n in range(3)),
    ]
    rows.append({"messages": [{"role": "user", "content": SECRET}], "user": ANN})  # a sample
    path = write_lines(tmp_path / "rows.jsonl", rows)
    built = build_data({"sources": [{"path": str(path)}], "split": 0.2}, "chats", home=home)
    assert built.count() == 15
    assert holders(home.datasets, SECRET)
    assert not holders(home.datasets, ANN)
    database = open_database(home.database_url, migrate=True)
    try:
        collected = collect_person(database, home, ANN, "")
        assert len(collected["rows of data sets"]) == 3
        erasure = erase_person(database, home, ANN, "")
    finally:
        database.close()
    assert erasure.counts["rows of data sets"] == 3
    assert "3 rows were taken out of the data set chats@v1" in erasure.notes
    assert not holders(home.root, SECRET)
    after = open_set(home.datasets, "chats")
    after.check()
    assert after.count() == 12


def test_trainings_that_did_not_end_go_and_running_ones_are_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for name, file in (
        ("ended", "learned.jsonl"),
        ("runs", "learned.jsonl"),
        ("prepares", "raw.jsonl"),
        ("taught", "parts.json"),
    ):
        folder = home.trainings / name
        folder.mkdir(parents=True)
        (folder / file).write_text("[1, 2, 3]")
    database = open_database(home.database_url, migrate=True)
    try:
        with lock_file(home.trainings / "runs" / "lock"):
            first = erase_person(database, home, ANN, "")
        second = erase_person(database, home, ANN, "")
    finally:
        database.close()
    assert first.counts["unfinished trainings"] == 2
    assert any(str(home.trainings / "runs") in one for one in first.left)
    assert second.counts["unfinished trainings"] == 1
    assert [path.name for path in home.trainings.iterdir()] == ["taught"]


def test_builds_that_did_not_end_go_and_running_ones_are_named(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    work = home.datasets / ".work"
    for name in ("ended-0123456789abcdef", "ended.answers", "runs-0123456789abcdef"):
        (work / name).mkdir(parents=True)
        (work / name / "rows.jsonl").write_text("{}")
    database = open_database(home.database_url, migrate=True)
    try:
        with lock_file(work / "runs.lock"):
            first = erase_person(database, home, ANN, "")
            assert (work / "runs-0123456789abcdef" / "rows.jsonl").exists()
        second = erase_person(database, home, ANN, "")
    finally:
        database.close()
    assert [one for one in first.left if "the data set runs is being built" in one]
    assert not [one for one in second.left if "built" in one]
    assert {path.name for path in work.iterdir()} == {"ended.lock", "runs.lock"}
