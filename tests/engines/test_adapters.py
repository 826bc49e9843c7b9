"""Adapters beside their base: the same answers as merged, and nothing of another version."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.artifacts.adapters import make_lora, put_adapter
from tests.artifacts.models import Llama
from tests.engines.test_prepare import END, MODEL, PROMPT, generate, ids, make_settings, put
from thrifty.artifacts import Artifact, NamedVersion, Store
from thrifty.artifacts.look_only import LookOnlyStore, NotMadeYet
from thrifty.engines.machine import detect_machine
from thrifty.engines.openvino.adapter import OpenVinoEngine, find_lora
from thrifty.engines.openvino.prepare import prepare_model
from thrifty.engines.plain_checkpoint import make_plain
from thrifty.engines.server.backend import Sampling
from thrifty.errors import IntegrityError
from thrifty.evaluate.openvino_scorer import OpenVinoScorer
from thrifty.spec import Spec
from thrifty.types import Format, ignore_progress

pytestmark = pytest.mark.engine

Model = tuple[NamedVersion, Artifact]
TOKENS = 12
SCHEMES = ("none", "int8", "int4")
NOISE = 0.05
"""Nats: what arithmetic and rounding to 16 bits change of a log-probability, where logits are of the
order of 10.
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("adapters") / "models")


@pytest.fixture(scope="module")
def base(store: Store) -> Model:
    return put(store)


@pytest.fixture(scope="module")
def tuned(store: Store, base: Model) -> Model:
    return put_adapter(store, base, make_lora(store, base[1]))


def answer(store: Store, artifact: Artifact) -> tuple[list[int], list[float]]:
    """Greedy tokens with their log-probabilities, as a replica generates them."""
    from thrifty.engines.openvino.decoder_worker import DecoderWorker

    folder = store.folder_of(artifact.id)
    settings = make_settings(
        str(folder), "decoder", 1, kv_blocks=32, kv_precision="f16", eos_token_ids=(END,)
    )
    worker = DecoderWorker(msgspec.structs.replace(settings, lora=find_lora(folder)))
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=True)
    (outputs,) = generate(worker, (PROMPT, sampling))
    return ids(outputs), [value for one in outputs for value in one.logprobs or ()]


def score(store: Store, artifact: Artifact, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of a text, as evaluations have them."""
    scorer = OpenVinoScorer.load(store.folder_of(artifact.id), "it", artifact.id, exact=True)
    given = np.array(tokens, np.int64)
    return scorer.score(given, given[1:, None]).logprobs[:, 0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_says_what_the_merged_model_says(
    store: Store, base: Model, tuned: Model, scheme: str
) -> None:
    """As nearly as the merged model in the same form says what it says in 16 bits."""
    merged = make_plain(store, *tuned)
    assert merged[1].description.format is Format.SAFETENSORS

    def find(model: Model, form: str) -> np.ndarray:
        return score(store, prepare_model(store, *model, form, ignore_progress)[1], PROMPT)

    exact = find(merged, "none")
    error = np.abs(find(tuned, scheme) - exact).mean()
    assert error <= 1.5 * np.abs(find(merged, scheme) - exact).mean() + NOISE
    assert np.abs(find(base, scheme) - exact).mean() > 2 * error


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_replica_answers_with_its_adapter(
    store: Store, base: Model, tuned: Model, scheme: str
) -> None:
    """The engine's own way of loading adapters comes to the same as the graph that is evaluated."""
    _, prepared = prepare_model(store, *tuned, scheme, ignore_progress)
    tokens, logprobs = answer(store, prepared)
    assert len(tokens) == len(logprobs) == TOKENS
    found = score(store, prepared, PROMPT + tokens)[-TOKENS:]
    np.testing.assert_allclose(logprobs, found, atol=NOISE)
    of_base = prepare_model(store, *base, scheme, ignore_progress)[1]
    assert np.abs(score(store, of_base, PROMPT + tokens)[-TOKENS:] - found).max() > 1


def test_what_is_prepared_of_an_adapter_takes_megabytes(
    store: Store, base: Model, tuned: Model
) -> None:
    """The graph of the base is one file for all."""
    found = [
        store.folder_of(prepare_model(store, *one, "int8", ignore_progress)[1].id)
        for one in (base, tuned)
    ]
    for name in ("openvino_model.bin", "openvino_model.xml", "tokenizer.json"):
        assert (found[0] / name).samefile(found[1] / name)
    assert not (found[0] / "adapter").exists()
    assert not (found[0] / "known_answers.json").samefile(found[1] / "known_answers.json")


def test_versions_of_one_base_are_versions_of_their_own(
    store: Store, base: Model, tuned: Model
) -> None:
    """Gateways tell versions by their revision, and a replica holds one: nothing cached is shared."""
    other = put_adapter(store, base, make_lora(store, base[1], seed=1))
    engine, spec = OpenVinoEngine(), Spec(model="it")
    served = [
        engine.prepare(spec, one, store, detect_machine(), ignore_progress)
        for one in (base, tuned, other)
    ]
    assert len({one.revision for one in served}) == len({one.artifact for one in served}) == 3
    launched = [engine.launch(one, store, 1, [0], 0.5).command[-1] for one in served]
    assert ["adapter_model.safetensors" in one for one in launched] == [False, True, True]


def test_planning_an_adapter_makes_nothing(store: Store, base: Model) -> None:
    """Beside a prepared base only the adapter has to be made."""
    prepare_model(store, *base, "int8", ignore_progress)
    own = put_adapter(store, base, make_lora(store, base[1], seed=2))
    with pytest.raises(NotMadeYet) as raised:
        prepare_model(LookOnlyStore(store.root), *own, "int8", ignore_progress)
    assert raised.value.size_bytes == own[1].size_bytes + 50_000_000


def test_an_adapter_of_another_model_is_refused(store: Store, base: Model) -> None:
    smaller = put(store, Llama(vocab=257, hidden=32, head_dim=32, heads=2, kv_heads=2, tied=False))
    wrong = put_adapter(store, smaller, make_lora(store, base[1]), "wrong")
    with pytest.raises(IntegrityError, match="for another model"):
        prepare_model(store, *wrong, "none", ignore_progress)
    with pytest.raises(IntegrityError, match="for another model"):
        make_plain(store, *wrong)
    deeper = put_adapter(store, base, make_lora(store, put(store, replace(MODEL, layers=3))[1]))
    with pytest.raises(IntegrityError, match=r"for another model: it changes model.layers.2"):
        prepare_model(store, *deeper, "none", ignore_progress)
    with pytest.raises(IntegrityError, match=r"for another model: it changes model.layers.2"):
        make_plain(store, *deeper)
