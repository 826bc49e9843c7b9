"""The losses are their papers' formulas, on a tiny model and batches of uneven rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.artifacts.models import Llama
from thrifty.errors import TrainingError
from thrifty.train.examples import Example, TokenText
from thrifty.train.settings import RowSettings

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from thrifty.evaluate.torch_model import load_torch_model  # noqa: E402
from thrifty.train import losses  # noqa: E402
from thrifty.train.contrastive import compare, embed  # noqa: E402
from thrifty.train.objectives import (  # noqa: E402
    Judged,
    Pairs,
    Supervised,
    mismatch,
    pack,
    sum_logprobs,
)
from thrifty.train.student import Student  # noqa: E402

pytestmark = pytest.mark.engine

SHAPE = Llama(vocab=61, layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, inner=48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SHAPE.write_safetensors(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def student(folder: Path) -> Any:
    return Student(load_torch_model(folder, "tiny").to(torch.float32))


def draw(count: int, sides: int = 1, seed: int = 3) -> list[Example]:
    """Examples with prompts and answers of uneven lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        prompt = rng.integers(0, 61, rng.integers(2, 9)).tolist()
        texts = []
        for _ in range(sides):
            answer = rng.integers(0, 61, rng.integers(1, 12)).tolist()
            begin = len(prompt)
            texts.append(TokenText([*prompt, *answer], ((begin, begin + len(answer)),)))
        found.append(Example(tuple(texts), liked=number % 3 > 0))
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def slowly(model: Any, text: TokenText) -> Any:
    """The log-probability of a text's answer, one text at a time and by the whole softmax."""
    logits = model.inner(torch.tensor([text.tokens])).logits[0, :-1].float()
    chosen = logits.log_softmax(dim=1)[torch.arange(len(text.tokens) - 1), text.tokens[1:]]
    return chosen[torch.from_numpy(text.mask())].sum()


def disturb(model: Any) -> None:
    """Move the weights away from what the reference has."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def test_batches_of_uneven_texts_say_what_single_ones_do(student: Any) -> None:
    texts = [example.texts[0] for example in draw(7)]
    found = sum_logprobs(student, texts, "cpu").detach()
    expected = torch.stack([slowly(student, text) for text in texts])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_step_is_the_mean_over_its_learned_tokens(student: Any) -> None:
    examples = draw(8)
    objective = Supervised(examples, examples[:3], RowSettings(steps=1))
    whole = sum(-slowly(student, one.texts[0]) for one in examples)
    tokens = sum(int(one.texts[0].mask().sum()) for one in examples)
    # As the loop adds up micro-batches.
    parts = [[0, 1, 2], [3, 4, 5], [6, 7]]
    total = sum(
        float(objective.loss(student, part, "cpu")[0].detach()) * objective.weigh(part) for part in parts
    ) / objective.weigh(range(8))  # fmt: skip
    assert total == pytest.approx(float(whole) / tokens, rel=1e-4)
    with torch.inference_mode():
        held, count = objective.measure(student, "cpu", 0, 1)[""]
    assert held / count == pytest.approx(
        float(sum(-slowly(student, one.texts[0]) for one in examples[:3])) / count, rel=1e-4
    )


def test_texts_that_share_a_window_do_not_see_one_another(student: Any) -> None:
    texts = [one.texts[0] for one in draw(24, seed=9)]
    assert len(pack([len(text.tokens) for text in texts])) < 20
    disturb(student)
    with torch.inference_mode():
        together = sum_logprobs(student, texts, "cpu").numpy()
    alone = [float(slowly(student, text)) for text in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_windows_are_as_long_as_the_longest_text(lengths: list[int]) -> None:
    packs = pack(lengths)
    assert sorted(number for one in packs for number in one) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in one) <= max(lengths) for one in packs)
    # At most one window is no more than half full: two of them would be one.
    assert sum(2 * sum(lengths[n] for n in one) <= max(lengths) for one in packs) <= 1


def test_pairs_have_the_loss_of_dpo(student: Any) -> None:
    examples = draw(6, sides=2)
    objective = Pairs(examples, examples, RowSettings(steps=1, beta=0.3), student)
    assert float(objective.loss(student, range(6), "cpu")[0].detach()) == pytest.approx(math.log(2))
    before = [[float(slowly(student, text)) for text in one.texts] for one in examples]
    disturb(student)
    after = [[float(slowly(student, text)) for text in one.texts] for one in examples]
    margins = [
        (new[0] - old[0]) - (new[1] - old[1]) for new, old in zip(after, before, strict=True)
    ]
    expected = [math.log(1 + math.exp(-0.3 * margin)) for margin in margins]
    found, _ = objective.loss(student, range(6), "cpu")
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-3)
    with torch.inference_mode():
        objective.measure(student, "cpu", 0, 1)
    details = objective.describe(objective.notes)
    assert details["preferred"] == pytest.approx(np.mean(np.array(margins) > 0))
    assert details["margin"] == pytest.approx(np.mean(margins), rel=1e-3)
    found.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_pairs_may_add_the_loss_of_sft_on_chosen_answers(student: Any) -> None:
    examples = draw(6, sides=2)
    plain, both = (
        Pairs(examples, examples, RowSettings(steps=1, sft_weight=weight), student)
        for weight in (0.0, 0.5)
    )
    disturb(student)
    chosen = Supervised(examples, examples, RowSettings(steps=1))
    losses = [
        float(one.loss(student, range(6), "cpu")[0].detach()) for one in (both, plain, chosen)
    ]
    assert losses[0] == pytest.approx(losses[1] + 0.5 * losses[2], rel=1e-4)


def test_pairs_ask_the_reference_once_for_a_row(
    student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = draw(6, sides=2)
    settings = RowSettings(steps=1, micro_batch=4)
    whole = Pairs(examples, examples, settings, student)
    objective = Pairs(examples, examples, settings, student)
    asked: list[int] = []
    ask = objective._ask_reference
    monkeypatch.setattr(
        objective, "_ask_reference", lambda *given: (asked.append(len(given[1])), ask(*given))[1]
    )
    disturb(student)
    expected = [float(whole.loss(student, [n], "cpu")[0].detach()) for n in range(6)]
    for numbers in ([5, 0, 2], [1, 2, 3, 4]):
        found = float(objective.loss(student, numbers, "cpu")[0].detach())
        assert found == pytest.approx(np.mean([expected[n] for n in numbers]), rel=1e-3)
    assert asked == [8, 4]
    with torch.inference_mode():
        first, second = (objective.measure(student, "cpu", 0, 1) for _ in range(2))
    assert first == second
    assert asked == [8, 4, 8, 4]


def test_judged_answers_have_the_loss_of_kto(student: Any) -> None:
    examples = draw(6)
    settings = RowSettings(steps=1, beta=0.2, micro_batch=3, liked_weight=1.5)
    objective = Judged(examples, examples, settings, student)
    texts = [one.texts[0] for one in examples]
    others = mismatch(texts)
    before = [float(slowly(student, text)) for text in (*texts, *others)]
    assert float(objective.loss(student, range(6), "cpu")[0].detach()) == pytest.approx(
        np.mean([(1.5 if one.liked else 1.0) / 2 for one in examples])
    )
    disturb(student)
    after = [float(slowly(student, text)) for text in (*texts, *others)]
    ratios = np.array(after) - np.array(before)
    kl = max(0.0, float(np.mean(ratios[6:])))
    expected = []
    for one, ratio in zip(examples, ratios[:6], strict=True):
        sign = 1 if one.liked else -1
        value = 1 - 1 / (1 + math.exp(-0.2 * sign * (ratio - kl)))
        expected.append(value * (1.5 if one.liked else 1.0))
    found, _ = objective.loss(student, range(6), "cpu")
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-3)
    with torch.inference_mode():
        objective.measure(student, "cpu", 0, 1)
    details = objective.describe(objective.notes)
    assert set(details) == {"liked", "disliked", "preferred", "by_chance"}
    assert 0 <= details["preferred"] <= 1


def test_the_estimate_of_the_distance_is_never_negative_and_has_no_gradient() -> None:
    policy = torch.tensor([-3.0, -4.0], requires_grad=True)
    assert float(losses.estimate_kl(policy, torch.tensor([-1.0, -1.0]))) == 0
    found = losses.estimate_kl(policy, torch.tensor([-5.0, -5.0]))
    assert float(found.detach()) == pytest.approx(1.5)
    assert not found.requires_grad


def test_neighbours_answers_stand_behind_each_prompt() -> None:
    first = TokenText([1, 2, 3, 4], ((2, 4),))
    second = TokenText([5, 6, 7], ((1, 3),))
    assert [text.tokens for text in mismatch([first, second])] == [[1, 2, 6, 7], [5, 3, 4]]
    assert mismatch([first, second])[1].mask().tolist() == [True, True]


def test_kto_needs_neighbours(student: Any) -> None:
    with pytest.raises(TrainingError, match="micro-batch to at least 2"):
        Judged(draw(4), draw(4), RowSettings(steps=1), student)


def test_queries_are_told_from_all_texts_but_their_own() -> None:
    generator = torch.Generator().manual_seed(2)
    queries, texts = (
        torch.nn.functional.normalize(torch.randn(rows, 8, generator=generator), dim=1)
        for rows in (3, 5)
    )
    # Texts 0 and 2 are the same, so neither is a negative of the other's query.
    said = [TokenText(tokens, ()) for tokens in ([1, 2], [3], [1, 2], [4], [5, 6])]
    found, nearest = compare(queries, texts, said, 0.1)
    for own in range(3):
        scores = [
            float(queries[own] @ texts[at]) / 0.1
            for at in range(5)
            if at == own or said[at].tokens != said[own].tokens
        ]
        mine = float(queries[own] @ texts[own]) / 0.1
        expected = math.log(sum(map(math.exp, scores))) - mine
        assert float(found[own]) == pytest.approx(expected, rel=1e-4)
        assert bool(nearest[own]) == (mine == max(scores))


def test_padding_is_no_part_of_an_embedding() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=32, vocab_size=30)).eval()  # fmt: skip
    texts = [TokenText(list(range(1, size)), ()) for size in (3, 9, 5)]
    with torch.no_grad():
        for pooling in ("mean", "cls"):
            together = embed(model, texts, pooling, "cpu")
            alone = torch.cat([embed(model, [text], pooling, "cpu") for text in texts])
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


def test_the_reference_of_low_rank_changes_is_the_model_without_them(folder: Path) -> None:
    from thrifty.train import lora

    model = load_torch_model(folder, "tiny").to(torch.float32)
    lora.attach(model, 4, seed=1)
    student = Student(model)
    examples = draw(4, sides=2)
    objective = Pairs(examples, examples, RowSettings(steps=1), student)
    assert sum(weight.numel() for weight in objective._before.values()) < 20_000
    text = examples[0].texts[0]
    plain = float(slowly(Student(load_torch_model(folder, "tiny").to(torch.float32)), text))
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    assert float(objective._ask_reference(student, [text], "cpu")[0]) == pytest.approx(
        plain, rel=1e-4
    )
    assert float(sum_logprobs(student, [text], "cpu")[0].detach()) != pytest.approx(plain, rel=1e-3)
