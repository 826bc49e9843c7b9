"""Our adapters are those of peft: `make test-train`, in an environment that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama
from thrifty.artifacts import Lineage, Store
from thrifty.artifacts.lora import read_lora
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.engines.plain_checkpoint import make_plain

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

PROMPT = [5, 17, 3, 9, 22, 31]


def compute(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def test_peft_reads_our_adapters_as_we_do(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    store = Store(tmp_path / "models")
    with store.stage("base") as stage:
        folder = Llama().write_safetensors(stage / "model")
        make_tokenizer().tokenizer.save(str(folder / "tokenizer.json"))
        base = store.add(folder, "base", Lineage())
    tuned = put_adapter(store, base, make_lora(store, base[1]))

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    plain = compute(load(store.folder_of(base[1].id)))
    adapted = PeftModel.from_pretrained(
        load(store.folder_of(base[1].id)), store.folder_of(tuned[1].id)
    )
    merged = load(store.folder_of(make_plain(store, *tuned)[1].id))
    np.testing.assert_allclose(compute(adapted), compute(merged), atol=0.02)
    assert np.abs(compute(adapted) - plain).max() > 0.5


def test_we_read_adapters_of_peft(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = Llama().write_safetensors(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True,
                        init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    lora = read_lora(tmp_path / "adapter")
    assert (lora.rank, lora.scale) == (4, 3.0)
    before = model.state_dict()
    name = "model.layers.0.self_attn.q_proj"
    original = before[f"{name}.base_layer.weight"].numpy().copy()
    merged = wrapped.merge_and_unload().state_dict()[f"{name}.weight"].numpy()
    np.testing.assert_allclose(original + lora.read_change(name), merged, atol=1e-5)
