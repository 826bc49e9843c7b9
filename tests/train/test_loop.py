"""The training loop with objectives made by hand: when it stops."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from thrifty.errors import TrainingError  # noqa: E402
from thrifty.train import lora  # noqa: E402
from thrifty.train.loop import Trainer, write_tensors  # noqa: E402
from thrifty.train.outlook import find_points  # noqa: E402
from thrifty.train.schedule import choose_rate  # noqa: E402
from thrifty.train.settings import LoopSettings  # noqa: E402
from thrifty.train.state import Limits, Objective  # noqa: E402
from thrifty.train.trunk import restore_trunk  # noqa: E402

pytestmark = pytest.mark.engine


class Curve(Objective):
    """Held-out losses that are given, one for each evaluation; the last one from then on."""

    unit, examples, example_tokens, held_out_tokens = "nats", 8, 1, 1
    domains = ("",)

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses = list(losses)
        self.measured = 0

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        return model(torch.ones(1, 2)).square().mean(), len(numbers)

    def weigh(self, numbers: Sequence[int]) -> float:
        return len(numbers)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        value = self.losses[min(self.measured, len(self.losses) - 1)]
        self.measured += 1
        return {"": (value, 1)}


def make_trainer(folder: Path, losses: Sequence[float]) -> Trainer:
    settings = LoopSettings(
        steps=40, every_steps=4, patience=4, batch_examples=1, learning_rate=1e-3
    )
    accelerator = accelerate.Accelerator(cpu=True)
    return Trainer(torch.nn.Linear(2, 1), Curve(losses), settings, folder, accelerator)


def test_loss_that_rises_while_the_rate_is_high_ends_no_training(tmp_path: Path) -> None:
    """The held-out loss of preferences often rises first, and falls below its beginning later."""
    trainer = make_trainer(tmp_path, [2.0, 2.1, 2.2, 2.2, 2.2, 2.1, 1.9, 1.8])
    assert trainer.run()
    assert trainer.state.step == 40
    assert trainer.state.best == pytest.approx(1.8)


def test_training_that_gains_nothing_ends_early(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [2.0, 1.5, 1.6])
    assert trainer.run()
    assert trainer.state.step == 36
    assert trainer.state.best_step == 4
    other = tmp_path / "other"
    other.mkdir()
    trainer = make_trainer(other, [2.0, 2.1])
    with pytest.raises(TrainingError, match="improved nothing"):
        trainer.run()
    assert trainer.state.step == 36


@pytest.mark.parametrize("spoilt", ["held-out loss", "gradients"])
def test_weights_that_are_no_numbers_do_not_replace_a_good_checkpoint(
    tmp_path: Path, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, [2.0, 1.5, 1.4])
    real_measure, real_loss = Curve.measure, Curve.loss

    def measure(self: Any, model: Any, *given: Any) -> Any:
        if spoilt == "held-out loss" and self.measured == 2:
            # What a step that diverged leaves.
            torch.nn.init.constant_(model.weight, float("nan"))
            self.losses = [float("nan")]
        return real_measure(self, model, *given)

    def loss(self: Any, model: Any, *given: Any) -> Any:
        value, tokens = real_loss(self, model, *given)
        if spoilt == "gradients" and self.measured == 2:
            value = value + 0 * (model.weight * 0).sum().sqrt()
        return value, tokens

    monkeypatch.setattr(Curve, "measure", measure)
    monkeypatch.setattr(Curve, "loss", loss)
    with pytest.raises(TrainingError, match=f"{spoilt} .*not.*The checkpoint of step 4 is kept"):
        trainer.run()
    assert torch.isfinite(load_file(tmp_path / "step-4.safetensors")["weight.weight"]).all()
    assert trainer.state.best == pytest.approx(1.5)


class Squares(Objective):
    """Examples of different sizes, each of which pulls the weights its own way."""

    unit, examples, example_tokens, held_out_tokens, domains = "nats", 6, 4, 4, ("",)

    def __init__(self, *, concurrent: bool) -> None:
        self.concurrent = concurrent
        self.prepared: set[int] = set()
        self.threads: set[str] = set()

    def prepare(self, model: Any, numbers: Sequence[int], device: Any) -> None:
        self.prepared.update(numbers)

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        assert self.prepared.issuperset(numbers)
        self.threads.add(threading.current_thread().name)
        rows = torch.stack([torch.arange(4.0) * number - 3 for number in numbers])
        return (model(rows) - 1).square().mean(), len(numbers) * 4

    def weigh(self, numbers: Sequence[int]) -> float:
        return len(numbers)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        return {"": (float((model(torch.ones(1, 4)) - 1).square().mean()), 1)}


def test_micro_batches_at_once_give_the_same_gradients(tmp_path: Path) -> None:
    """Several threads, and one after the other: the same weights after the same steps."""
    settings = LoopSettings(steps=3, batch_examples=5, micro_batch=2, learning_rate=1e-2)
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for name, at_once, concurrent in (("one", 1, True), ("all", 4, True), ("no", 4, False)):
            torch.manual_seed(0)
            model = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
            )
            objective = Squares(concurrent=concurrent)
            (tmp_path / name).mkdir()
            trainer = Trainer(
                model, objective, settings, tmp_path / name, accelerate.Accelerator(cpu=True),
                at_once=at_once,
            )  # fmt: skip
            assert trainer.run()
            used = {name for name in objective.threads if name.startswith("micro-batch")}
            assert bool(used) == (name == "all")
            found.append((trainer.state.losses, [p.detach().clone() for p in model.parameters()]))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0])
        for one, other in zip(weights, found[0][1], strict=True):
            torch.testing.assert_close(one, other)


def test_lora_computes_with_the_frozen_matrix_of_autocast() -> None:
    """The matrix is converted once, and the result is what conversions at every call give."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    x = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
    lora.attach(model, 4, seed=0)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), plain)
        found = model(x)
    assert torch.equal(found, plain)
    assert torch.allclose(model(x), exact)
    assert model(x).dtype == torch.float32
    found.sum().backward()
    assert model[0].up.grad is not None
    assert model[0].base.weight.grad is None
    before = model[0].base.weight.detach().clone()
    with torch.no_grad():
        model[0].up.fill_(0.1)
        after = model(x)
        lora.merge(model)
    assert not torch.equal(model[0].weight, before)
    assert torch.allclose(model(x), after, atol=1e-5)


def test_a_disk_that_is_full_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    before = (tmp_path / "a.safetensors").read_bytes()

    def fill(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("thrifty.train.loop.save_file", fill)
    with pytest.raises(TrainingError, match=r"No space left .* the same command goes on"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_student_that_is_near_its_teacher_learns_slowly() -> None:
    settings = LoopSettings(tokens=10_000, batch_tokens=1024)
    full = choose_rate(settings, 1024)
    assert choose_rate(settings, 1024, 2.0) == full
    rates = [choose_rate(settings, 1024, divergence) for divergence in (0.5, 0.1, 0.02, 0.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == full
    assert 0 < rates[-1] < rates[2] < full / 4
    chosen = LoopSettings(tokens=10_000, batch_tokens=1024, learning_rate=1e-3)
    assert choose_rate(chosen, 1024, 0.01) == 1e-3


# minutes


class Clock:
    """A clock that goes on as steps and evaluations take their time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Timed(Squares):
    """Takes a second for a micro-batch, and 7 for an evaluation."""

    held_out_tokens = 28

    def __init__(self, clock: Clock, few_tokens: int = 0) -> None:
        super().__init__(concurrent=False)
        self.clock, self.few_tokens = clock, few_tokens

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        self.clock.now_s += 1
        return super().loss(model, numbers, device)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        self.clock.now_s += 7
        return super().measure(model, device, rank, ranks)

    def measure_few(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        self.clock.now_s += 1
        total, count = super().measure(model, device, rank, ranks)[""]
        return {"": (2 * total, count)}  # On another scale.


def train_for(
    folder: Path, clock: Clock, budget_s: float, rates: list[float] | None = None, few_tokens: int = 0,
    notes: list[str] | None = None, **changes: Any,
) -> Trainer:  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    settings = LoopSettings(
        **{"minutes": budget_s / 60, "batch_examples": 1, "learning_rate": 1e-3, **changes}
    )
    trainer = Trainer(
        torch.nn.Linear(4, 1), Timed(clock, few_tokens), settings, folder,
        accelerate.Accelerator(cpu=True),
    )  # fmt: skip
    path = folder / "state.json"
    spent_s = json.loads(path.read_text())["seconds"] if path.exists() else 0.0

    def note_rate(progress: Any) -> None:
        if rates is not None:
            rates.append(trainer._optimizer.param_groups[0]["lr"])

    limits = Limits(deadline_s=clock.now_s + budget_s - spent_s, budget_s=budget_s)
    assert trainer.run(note_rate, (notes if notes is not None else []).append, limits)
    return trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("thrifty.train.loop.time", clock)
    return clock


def test_a_rate_falls_to_nothing_at_the_end_of_the_time(tmp_path: Path, clock: Clock) -> None:
    rates: list[float] = []
    trainer = train_for(tmp_path, clock, 400, rates)
    assert clock.now_s - 1000 <= 400
    first = trainer.state.falls_from
    assert first is not None
    assert 0.7 < first / len(rates) < 0.8
    assert rates[4:first] == [1e-3] * (first - 4), "five steps warm up"
    falling = rates[first:]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0.05e-3
    assert falling[len(falling) // 2] == pytest.approx(1e-3 * (1 - 0.5**0.5), rel=0.2)
    rates.clear()
    train_for(tmp_path / "stays", clock, 400, rates, schedule="constant")
    assert rates[-1] == 1e-3


def test_a_longer_training_goes_on_from_before_the_fall(tmp_path: Path, clock: Clock) -> None:
    short = train_for(tmp_path / "grows", clock, 400).state
    restore_trunk(tmp_path / "grows")
    longer = train_for(tmp_path / "grows", clock, 800).state
    whole = train_for(tmp_path / "whole", clock, 800).state
    assert short.falls_from is not None
    assert longer.falls_from is not None
    assert longer.falls_from > short.step
    kept = min(longer.falls_from, whole.falls_from or 0)
    assert longer.losses[:kept] == whole.losses[:kept]
    assert longer.losses[: short.falls_from] == short.losses[: short.falls_from]
    assert longer.losses[: short.step] != short.losses
    assert longer.held_out[-1][1] == pytest.approx(whole.held_out[-1][1], rel=0.02)
    assert longer.falls_for_s == 800


def test_a_training_that_was_killed_in_the_fall_goes_on_in_it(tmp_path: Path, clock: Clock) -> None:
    class KilledError(Exception):
        pass

    def kill(progress: Any) -> None:
        if (
            trainer.state.falls_from is not None
            and trainer.state.step == trainer.state.falls_from + 5
        ):
            raise KilledError

    torch.manual_seed(0)
    settings = LoopSettings(minutes=400 / 60, batch_examples=1, learning_rate=1e-3)
    trainer = Trainer(
        torch.nn.Linear(4, 1), Timed(clock), settings, tmp_path, accelerate.Accelerator(cpu=True)
    )
    with pytest.raises(KilledError):
        trainer.run(kill, limits=Limits(deadline_s=clock.now_s + 400, budget_s=400))
    first = trainer.state.falls_from
    again = train_for(tmp_path, clock, 400).state
    assert first is not None
    assert again.falls_from == first, "the checkpoint from before it is the last one"
    assert again.losses[: first + 1] == trainer.state.losses[: first + 1]


def test_a_restarted_training_knows_how_long_its_end_takes(tmp_path: Path, clock: Clock) -> None:
    train_for(tmp_path, clock, 100)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["evaluation_s"] == 7
    assert "saving_s" in state
    began_s = clock.now_s
    again = train_for(tmp_path, clock, 140)
    assert again.state.step > state["step"]
    assert clock.now_s - began_s <= 140 - state["seconds"], "the last evaluation is in time, too"


def test_few_examples_tell_the_end_before_there_is_a_curve(tmp_path: Path, clock: Clock) -> None:
    notes: list[str] = []
    plain = train_for(tmp_path / "plain", clock, 1500).state
    trainer = train_for(tmp_path / "few", clock, 1500, few_tokens=4, notes=notes)
    state = trainer.state
    assert "no curve yet" in notes[0]
    assert "now -> at the end" in notes[-1]
    assert state.forecasts[0]["seconds"] < 0.1 * 1500 < plain.forecasts[0]["seconds"]
    assert len(state.few[""]) < 8, "a full curve takes their place"
    scaled = dict(find_points(state, ""))
    assert scaled[state.few[""][1][0]] == pytest.approx(state.few[""][1][1] / 2)
    assert state.curves[""] == [(4 * step, value) for step, value in state.held_out]
