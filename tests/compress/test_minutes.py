"""Trainings for a number of minutes: how the time is divided, kept, and spent again after a kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engines.test_prompt import find_tokenizer
from tests.parts import running_echo
from tests.text import templates
from thrifty.compress.distill.answers import Prompt, Sampling, Tally, ask_teacher
from thrifty.compress.distill.budget import TRAINING_SHARE, divide, train_for_minutes
from thrifty.compress.distill.effort import TELL_AFTER, AskingWatch, Effort
from thrifty.compress.distill.kept_trainings import remove_ended
from thrifty.compress.distill.settings import Training
from thrifty.errors import CompressionError

# the division


@pytest.mark.parametrize(
    ("left_s", "may_prepare_s", "teaching_s", "tokens", "within_s"),
    [
        (1000.0, 1000.0, 0.01, 49_450, 603.4),  # half teaching, half training, and a slack
        (1000.0, 210.0, 0.03, 6667, 210.0),  # a slow teacher has its share alone
        (1000.0, 500.0, 0.0, 98_900, 500.0),  # nobody knows how fast it is: its share, at most
        (1000.0, 5.0, 0.01, 0, 0.0),  # no time to start it
        (20.0, 20.0, 0.01, 0, 0.0),  # not worth starting it
    ],
)
def test_time_is_divided_by_measured_rates(
    left_s: float, may_prepare_s: float, teaching_s: float, tokens: int, within_s: float
) -> None:
    found = divide(
        left_s, may_prepare_s, unread=100, training_s=0.01, teaching_s=teaching_s, starts_s=10.0
    )
    assert found.tokens == pytest.approx(tokens, abs=1)
    assert found.within_s == pytest.approx(within_s, abs=0.1)


@dataclass
class Machine:
    """How long things take on a machine, by a clock of its own."""

    folder: Path
    start_s: float = 10.0
    teaching_s: float = 0.004
    training_s: float = 0.004
    slows_by: float = 1.0
    """How much slower it is after the first steps."""
    asks: bool = True
    time_s: float = 100.0
    prepared: int = 0
    trained_s: float = 0.0
    paused: int = 0

    @property
    def s_per_token(self) -> float:
        return self.teaching_s

    def now(self) -> float:
        return self.time_s

    def extend(self, job: Any, folder: Path, tokens: int, within_s: float | None = None) -> int:
        """The teacher prepares as much as it can within the time."""
        took_s = min(self.start_s + (tokens - self.prepared) * self.teaching_s, within_s or 0.0)
        self.prepared += max(0, round((took_s - self.start_s) / self.teaching_s))
        self.time_s += took_s
        return self.prepared

    def run(self, job: Any) -> Callable[[], dict[str, Any]]:
        """Steps until the limits."""

        def run() -> dict[str, Any]:
            limits, began_s = job["limits"], self.time_s
            path = self.folder / "state.json"
            state = json.loads(path.read_text()) if path.exists() else {
                "step": 0, "tokens": 0, "seconds": 0.0, "stepping_s": 0.0
            }  # fmt: skip
            self.time_s += self.start_s
            step_s = 1024 * self.training_s
            while limits["deadline_s"] - self.time_s > step_s:
                self.time_s += step_s
                self.trained_s += step_s
                state["step"] += 1
                state["tokens"] += 1024
                state["stepping_s"] += step_s
                left_s = limits["deadline_s"] - self.time_s
                if state["step"] == limits["steps"] and left_s >= limits["pause_left_s"]:
                    break
            else:
                limits = {**limits, "steps": None}
            state["seconds"] += self.time_s - began_s
            path.write_text(json.dumps(state))
            if limits["steps"] is None:
                return {"step": state["step"], "tokens": state["tokens"]}
            if not self.paused:
                self.training_s *= self.slows_by
                self.teaching_s *= self.slows_by
                self.start_s *= self.slows_by
            self.paused += 1
            return {}

        return run


def spend(machine: Machine, minutes: float, notes: list[str] | None = None) -> dict[str, Any]:
    model = machine.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    job: dict[str, Any] = {"student": str(model), "window": 512}
    inputs: Any = machine
    return train_for_minutes(
        inputs, job, machine.folder, Training(minutes=minutes), machine.run(job), resume=False,
        extend=False, began_s=machine.time_s, on_note=(notes or []).append, now=machine.now,
    )  # fmt: skip


@pytest.mark.parametrize("minutes", [3.0, 12.0, 60.0])
@pytest.mark.parametrize(
    "how",
    [{}, {"teaching_s": 0.025}, {"training_s": 0.02}, {"slows_by": 5.0}, {"slows_by": 0.2},
     {"teaching_s": 0.0001},
     {"teaching_s": 0.02, "training_s": 0.02, "slows_by": 3.0}],
)  # fmt: skip
def test_the_time_is_kept_on_fast_slow_and_slowing_machines(
    tmp_path: Path, minutes: float, how: dict[str, float]
) -> None:
    machine = Machine(tmp_path, **how)
    spend(machine, minutes)
    took_s = machine.time_s - 100
    assert 0.8 * 60 * minutes < took_s <= 1.1 * 60 * minutes
    # Starting processes is part of neither.
    assert machine.trained_s > TRAINING_SHARE * 60 * minutes - 5 * machine.start_s - 40


def test_more_is_prepared_where_training_turns_out_to_be_faster(tmp_path: Path) -> None:
    machine = Machine(tmp_path, training_s=0.02, teaching_s=0.01, slows_by=0.15)
    report = spend(machine, 30.0)
    assert 1.0 <= report["tokens"] / machine.prepared < 1.5
    assert machine.paused <= 4, "each pause costs a start"
    assert 0.8 * 1800 < machine.time_s - 100 <= 1.1 * 1800


def test_a_training_that_had_its_time_is_only_written(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first = spend(machine, 12.0)
    ended_s, trained_s = machine.time_s, machine.trained_s
    again = spend(machine, 12.0)
    assert (again["step"], machine.trained_s) == (first["step"], trained_s)
    assert machine.time_s - ended_s <= 3 * machine.start_s


@pytest.mark.parametrize("minutes", [0.01, 0.5, 1.0])
def test_too_few_minutes_are_told_at_once_with_what_is_enough(
    tmp_path: Path, minutes: float
) -> None:
    machine = Machine(tmp_path / "short")
    with pytest.raises(CompressionError, match=r"too short.*would be enough") as refusal:
        spend(machine, minutes)
    assert machine.time_s - 100 < 5, "the teacher was not started"
    enough = float(str(refusal.value).split("; ")[1].split()[0])
    spend(Machine(tmp_path / "enough"), enough)


def test_a_teacher_that_prepares_nothing_is_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path, start_s=100.0)
    with pytest.raises(CompressionError, match=r"the teacher prepared 0 tokens; give it 9 minutes"):
        spend(machine, 3.0)


# the teacher's time


def test_rates_are_kept_and_the_last_ones_count_most(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    assert Effort.load(path).s_per_token(0.5) == 0
    effort = Effort()
    effort.add_asked(1000, 10.0)
    effort.add_recorded(1000, 1.0)
    effort.add_asked(0, 50.0)
    effort.save(path)
    found = Effort.load(path)
    assert found.s_per_token(0.5) == pytest.approx(0.006)
    assert found.asking_share(0.5) == pytest.approx(0.005 / 0.006)
    found.add_asked(1000, 40.0)
    assert 0.03 < found.asking_s / found.asked_tokens < 0.04
    path.write_text("{")
    assert Effort.load(path) == Effort()


def test_the_cost_is_told_after_the_first_answers() -> None:
    notes: list[str] = []
    watch = AskingWatch({"chat": Tally(5, 900)}, 3200, float("inf"), lambda _: None, notes.append)
    for number in range(1, TELL_AFTER + 10):
        watch.take("chat", Tally(5 + number, 900 + 10 * number))
        assert len(notes) == (number >= TELL_AFTER)
    assert "about 320 prompts" in notes[0]
    assert "minutes for 3,200 tokens" in notes[0]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def ask(url: str, path: Path, until_s: float, said: list[str]) -> Tally:
    tokenizer = find_tokenizer(templates.CHATML)
    prompts = [Prompt([{"role": "user", "content": one}]) for one in said]
    return ask_teacher(
        lambda use: use(url, "echo"), None, "echo", lambda: iter(prompts), tokenizer, path,
        tokens=100_000, sampling=Sampling(window=900), until_s=until_s,
    )  # fmt: skip


def test_answers_that_do_not_come_in_time_are_not_waited_for(silent: str, tmp_path: Path) -> None:
    began_s = time.monotonic()
    tally = ask(silent, tmp_path / "answers.jsonl", began_s + 0.3, ["Who are you?"] * 40)
    assert time.monotonic() - began_s < 30, "a request may take 600 s"
    assert tally == Tally()
    assert not (tmp_path / "answers.ended").exists(), "these prompts can be asked again"


async def test_answers_that_come_in_time_are_kept_in_order(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    said = ["one two three", "four five six", *[f"number {number} " * 5 for number in range(60)]]
    async with running_echo(tpot_s=0.05) as url:
        tally = await asyncio.to_thread(ask, url, path, time.monotonic() + 6, said)
        assert 2 <= tally.asked < len(said)
        kept = path.read_bytes()
        again = await asyncio.to_thread(ask, url, path, time.monotonic() + 6, said)
        assert again.asked > tally.asked
    assert path.read_bytes().startswith(kept)
    texts = [json.loads(line)["text"].strip() for line in path.read_text().splitlines()]
    assert texts == [one.strip() for one in said[: len(texts)]]


# what is kept


def test_ended_trainings_are_removed_but_for_the_last(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / f"t{number}"
        folder.mkdir()
        (folder / "spent.json").write_text(json.dumps({"ended": number != 1}))
        (folder / "step-1.safetensors").write_bytes(b"0" * 100)
        os.utime(folder / "spent.json", (number, number))
    (tmp_path / "tokens").mkdir()
    assert remove_ended(tmp_path, keep=2) == (1, 100 + len('{"ended": true}'))
    assert {path.name for path in tmp_path.iterdir()} == {"t1", "t2", "t3", "tokens"}
    assert remove_ended(tmp_path, keep=0)[0] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"t1", "tokens"}


# kills


CHILD = """
import sys
from pathlib import Path
from tests.compress.test_minutes import teach
teach(Path(sys.argv[1]), sys.argv[2])
"""


def teach(folder: Path, url: str) -> Any:
    """A training in minutes, on a machine that starts things at once."""
    from tests.compress.test_teaching import TRAINING, WINDOW
    from thrifty.artifacts import Store
    from thrifty.compress.distill import budget
    from thrifty.compress.distill.distill import DistillationRequest, distill_model
    from thrifty.compress.mix import Mix, Source
    from thrifty.home import Home

    budget.STARTS_S, budget.FIRST_S, budget.FIRST_TOKENS = 0.0, 15.0, 20_000
    mix = Mix(
        (
            Source("talks", folder / "talks.jsonl", "talks"),
            Source("text", folder / "text.txt", "text"),
        )
    )
    changes: dict[str, Any] = {"tokens": None, "minutes": 0.8, "every_steps": 0, "patience": 1000}
    request = DistillationRequest(
        "student", "tiny@v1", mix, "killed", Training(**{**vars(TRAINING), **changes}),
        window=WINDOW, serve=lambda version, artifact, on_progress: lambda use: use(url, "echo"),
    )  # fmt: skip
    return distill_model(Store(folder / "models"), Home(folder), request)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # killed clients
@pytest.mark.long
async def test_a_training_that_is_killed_in_every_stage_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.compress.test_teaching import fill_store, write_talks
    from tests.evaluate.bigram import write_text
    from thrifty.artifacts import Store

    fill_store(Store(tmp_path / "models"))
    text = write_text(tmp_path / "text.txt", 60_000, seed=5)
    write_talks(tmp_path / "talks.jsonl", text, size=60)
    taught = tmp_path / "evaluations" / "taught"

    def read(pattern: str) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.glob(pattern)}

    def kill_when(url: str, reached: Callable[[], bool]) -> None:
        command = [sys.executable, "-c", CHILD, str(tmp_path), url]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        until_s = time.monotonic() + 180
        while not reached():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until_s
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def are_kept(before: dict[Path, bytes]) -> bool:
        # A kill may have left half of the last line or window.
        return all(
            path.read_bytes().startswith(data[: data.rfind(b"\n") + 1])
            for path, data in before.items()
        )

    async with running_echo(tpot_s=0.004, slots=4) as url:
        await asyncio.to_thread(
            kill_when,
            url,
            lambda: any(b"\n" in one for one in read("evaluations/taught/*.jsonl").values()),
        )
        answers = read("evaluations/taught/*.jsonl")
        assert not list(taught.glob("*.record/windows.bin")), "it was killed while answers came"
        await asyncio.to_thread(
            kill_when,
            url,
            lambda: any(map(len, read("evaluations/taught/*.record/windows.bin").values())),
        )
        assert are_kept(answers)
        records = read("evaluations/taught/*.record/windows.bin")
        assert not read("trainings/*/state.json"), "it was killed while predictions were recorded"
        await asyncio.to_thread(kill_when, url, lambda: bool(read("trainings/*/state.json")))
        for path, data in records.items():
            assert path.read_bytes().startswith(data[: len(data) // 4 * 4])
        state = json.loads(next(iter(read("trainings/*/state.json").values())))
        version, _ = await asyncio.to_thread(teach, tmp_path, url)
    figures = version.lineage.figures
    assert figures["losses"][: state["step"]] == [round(loss, 5) for loss in state["losses"]]
    assert figures["after"] < figures["before"]
    assert figures["answers"]["talks"]["asked"] > 0
