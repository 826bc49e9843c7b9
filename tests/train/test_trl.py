"""Our losses are those of trl on the same batch: `make test-train`, in an environment that has trl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.artifacts.models import Llama
from tests.engines.test_prompt import make_special_tokenizer
from tests.text import templates
from thrifty.train.examples import Example, encode_row
from thrifty.train.rows import Method, Row
from thrifty.train.settings import RowSettings

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore"),  # those of others' trainers
]

SHAPE = Llama(
    vocab=264, layers=2, head_dim=16, kv_heads=2, heads=4, hidden=64, inner=96, context=256
)
ROWS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = SHAPE.write_safetensors(tmp_path_factory.mktemp("m") / "model", eos_token_id=257)
    make_special_tokenizer(None).tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(templates.CHATML)
    return folder


def load_model(folder: Path, *, disturbed: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if disturbed:
        torch.manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.03 * torch.randn_like(parameter)
    return model


def make_examples(method: Method) -> list[Example]:
    tokenizer = make_special_tokenizer(templates.CHATML)
    found = []
    for number in range(ROWS):
        user = {"role": "user", "content": f"What is {number} times {number * 7}?"}
        answers = [
            {"role": "assistant", "content": text * (1 + number % 3)} for text in ("Yes. ", "No, ")
        ]
        if method is Method.SFT:
            row = Row(1, [user, answers[0]], learned=frozenset({1}))
        else:
            row = Row(1, [user], answers[: 1 + (method is Method.DPO)], label=number % 3 > 0)
        examples = encode_row(row, method, tokenizer, 256)
        assert not isinstance(examples, str)
        found += examples
    return found


def split(example: Example, side: int = 0) -> tuple[list[int], list[int]]:
    text = example.texts[side]
    return text.tokens[: text.answer_begin], text.tokens[text.answer_begin :]


def measure_ours(method: Method, folder: Path, examples: list[Example], **settings: Any) -> float:
    from thrifty.train.objectives import Judged, Pairs, Supervised
    from thrifty.train.student import Student

    made = RowSettings(steps=1, micro_batch=ROWS, **settings)
    student = Student(load_model(folder, disturbed=False))
    if method is Method.SFT:
        objective: Any = Supervised(examples, examples, made)
    else:
        objective = (Pairs if method is Method.DPO else Judged)(examples, examples, made, student)
    student.inner.load_state_dict(load_model(folder, disturbed=True).state_dict())
    loss, _ = objective.loss(student, range(ROWS), "cpu")
    return float(loss.detach())


def make_trainer(
    kind: str, folder: Path, rows: list[dict[str, Any]], tmp_path: Path, **settings: Any
) -> Any:
    import trl
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>",
        pad_token="<|im_end|>", chat_template=templates.CHATML,
    )  # fmt: skip
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=ROWS, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    more = {} if kind == "SFT" else {"ref_model": load_model(folder, disturbed=False)}
    trainer = getattr(trl, f"{kind}Trainer")(
        model=load_model(folder, disturbed=True), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, **more,
    )  # fmt: skip
    trainer.model.eval()
    if more:
        trainer.ref_model.eval()
    return trainer


def chat(number: int) -> dict[str, Any]:
    return {"role": "user", "content": f"q {number}"}


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_supervised(folder: Path, tmp_path: Path) -> None:
    examples = make_examples(Method.SFT)
    rows = [{"prompt": [chat(n)], "completion": say("a")} for n in range(ROWS)]
    trainer = make_trainer("SFT", folder, rows, tmp_path)
    parts = [split(example) for example in examples]
    batch = trainer.data_collator([
        {"input_ids": [*prompt, *answer], "labels": [*[-100] * len(prompt), *answer]}
        for prompt, answer in parts
    ])  # fmt: skip
    theirs = float(trainer.compute_loss(trainer.model, batch).detach())
    ours = measure_ours(Method.SFT, folder, examples)
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_dpo(folder: Path, tmp_path: Path, weight: float) -> None:
    examples = make_examples(Method.DPO)
    both = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, weight]} if weight else {}
    rows = [{"prompt": [chat(n)], "chosen": say("a"), "rejected": say("b")} for n in range(ROWS)]
    trainer = make_trainer("DPO", folder, rows, tmp_path, beta=0.2, **both)
    batch = trainer.data_collator([
        {"prompt_ids": split(one)[0], "chosen_ids": split(one)[1], "rejected_ids": split(one, 1)[1]}
        for one in examples
    ])  # fmt: skip
    theirs = float(trainer.compute_loss(trainer.model, batch).detach())
    ours = measure_ours(Method.DPO, folder, examples, beta=0.2, sft_weight=weight)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(ours - 0.6931) > 1e-3, "the models differ"


def test_kto(folder: Path, tmp_path: Path) -> None:
    examples = make_examples(Method.KTO)
    rows = [{"prompt": [chat(n)], "completion": say("a"), "label": n % 3 > 0} for n in range(ROWS)]
    trainer = make_trainer(
        "KTO", folder, rows, tmp_path, beta=0.2, desirable_weight=1.0, undesirable_weight=1.5
    )
    parts = [split(example) for example in examples]
    batch = trainer.data_collator([
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": parts[number - 1][1],
         "label": examples[number].liked}
        for number, (prompt, answer) in enumerate(parts)
    ])  # fmt: skip
    theirs = float(trainer.compute_loss(trainer.model, batch).detach())
    ours = measure_ours(Method.KTO, folder, examples, beta=0.2, disliked_weight=1.5)
    assert ours == pytest.approx(theirs, rel=1e-4)
