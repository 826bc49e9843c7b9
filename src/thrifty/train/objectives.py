"""What `thrifty train` learns: supervised turns, pairs of answers, judged answers.

Short examples share a window, and what is left of it is padded on the right, which a causal model
does not see. The reference of preferences is
the same model with the weights that it began with; with LoRA, these are the updates alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from thrifty.errors import TrainingError
from thrifty.train import losses
from thrifty.train.examples import Example, TokenText
from thrifty.train.settings import RowSettings
from thrifty.train.state import Objective

Tensor = Any
"""A `torch.Tensor`."""


class _Rows(Objective):
    """Examples to learn from, and others to evaluate on."""

    unit = ""

    def __init__(
        self, learned: Sequence[Example], held_out: Sequence[Example], settings: RowSettings
    ) -> None:
        self._learned = learned
        self._held_out = held_out
        self._settings = settings
        self.examples = len(learned)
        sizes = [example.tokens for example in learned]
        self.example_tokens = max(1, round(sum(sizes) / max(1, len(sizes))))
        """The mean here, not the longest: rows differ much in length."""
        self.held_out_tokens = sum(example.tokens for example in held_out)
        self.domains = [""]
        self.concurrent = True

    def weigh(self, numbers: Sequence[int]) -> float:
        """See `Objective`."""
        return len(numbers)

    def _groups(self, rank: int, ranks: int) -> list[Sequence[Example]]:
        """This rank's held-out examples, as many at once as in training."""
        own, size = self._held_out[rank::ranks], self._settings.micro_batch
        return [own[at : at + size] for at in range(0, len(own), size)]


class Supervised(_Rows):
    """Say what the assistant says: the mean negative log-likelihood of the learned tokens."""

    unit = "nats per token"

    def weigh(self, numbers: Sequence[int]) -> float:
        """The learned tokens, so that a step's loss is the mean over its tokens."""
        return sum(_count_learned(self._learned[number]) for number in numbers)

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """See `Objective`."""
        texts = [self._learned[number].texts[0] for number in numbers]
        found = sum_logprobs(model, texts, device).sum()
        return -found / self.weigh(numbers), sum(len(text.tokens) for text in texts)

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        total, count = 0.0, 0
        for group in self._groups(rank, ranks):
            texts = [example.texts[0] for example in group]
            total -= float(sum_logprobs(model, texts, device).sum())
            count += sum(map(_count_learned, group))
        return {"": (total, count)}

    def measure_each(self, model: Any, device: Any) -> list[float]:
        """The loss of each held-out example, in order."""
        found: list[float] = []
        for group in self._groups(0, 1):
            sums = sum_logprobs(model, [example.texts[0] for example in group], device).tolist()
            counts = map(_count_learned, group)
            found += [-total / max(1, n) for total, n in zip(sums, counts, strict=True)]
        return found


class _Preferences(_Rows):
    """What needs the model as it was before."""

    def __init__(
        self,
        learned: Sequence[Example],
        held_out: Sequence[Example],
        settings: RowSettings,
        model: Any,
    ) -> None:
        """`model` is the one to train, before anything is trained or resumed."""
        super().__init__(learned, held_out, settings)
        self._before = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def _ask_reference(self, model: Any, texts: Sequence[TokenText], device: Any) -> Tensor:
        """The log-probabilities of answers by the model as it was, [B], without a gradient."""
        before = {name: weight.to(device) for name, weight in self._before.items()}
        with torch.no_grad():
            return sum_logprobs(model, texts, device, before)


class Pairs(_Preferences):
    """Prefer the chosen answer (DPO).

    With `sft_weight`, the mean loss of the chosen answers' tokens is added, as in RPO (Pang et al.
    2024, 2404.19733, equation 1). DPO alone lowers the probability of chosen answers as long as
    that of rejected ones falls faster, and may end with the same safe answer to every prompt.
    """

    unit = "nats per pair"

    def __init__(
        self,
        learned: Sequence[Example],
        held_out: Sequence[Example],
        settings: RowSettings,
        model: Any,
    ) -> None:
        super().__init__(learned, held_out, settings, model)
        # What the reference says of a row is the same in every pass.
        self._known: dict[int, Tensor] = {}
        self._known_held_out: dict[int, Tensor] = {}

    def prepare(self, model: Any, numbers: Sequence[int], device: Any) -> None:
        """See `Objective`: ask the reference."""
        missing = {n // self._settings.micro_batch for n in numbers if n not in self._known}
        for block in sorted(missing):
            self._ask_block(model, block, device)

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """See `Objective`."""
        self.prepare(model, numbers, device)
        old = torch.stack([self._known[n] for n in numbers], dim=1)
        found, _, tokens = self._compare(model, [self._learned[n] for n in numbers], old, device)
        return found.mean(), tokens

    def _ask_block(self, model: Any, block: int, device: Any) -> None:
        """Ask the reference for a block of rows. Blocks are the same in every run, so that a
        training that was stopped goes on with the same figures.
        """
        begin = block * self._settings.micro_batch
        examples = self._learned[begin : begin + self._settings.micro_batch]
        found = self._ask_pairs(model, examples, device)
        self._known.update(zip(range(begin, begin + len(examples)), found.T, strict=True))

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        total, count = 0.0, 0
        notes: list[tuple[float, float]] = []
        for number, group in enumerate(self._groups(rank, ranks)):
            old = self._ask_held_out(model, number, group, device)
            found, margins, _ = self._compare(model, group, old, device)
            total, count = total + float(found.sum()), count + len(group)
            notes += [(1.0, margin) for margin in margins.tolist()]
        self.notes = notes
        return {"": (total, count)}

    def describe(self, notes: Sequence[tuple[float, float]]) -> dict[str, float]:
        """See `Objective`. The share of pairs in which the chosen answer gained more than the
        rejected one, the standard deviation of that share by chance, and how many nats more it
        gained.
        """
        if not notes:
            return {}
        margins = np.array([margin for _, margin in notes])
        return {
            "preferred": float((margins > 0).mean()), "by_chance": 0.5 / math.sqrt(len(margins)),
            "margin": float(margins.mean()),
        }  # fmt: skip

    def measure_each(self, model: Any, device: Any) -> list[float]:
        """The loss of each held-out example, in order."""
        found: list[float] = []
        for number, group in enumerate(self._groups(0, 1)):
            old = self._ask_held_out(model, number, group, device)
            found += self._compare(model, group, old, device)[0].tolist()
        return found

    def _ask_held_out(
        self, model: Any, number: int, group: Sequence[Example], device: Any
    ) -> Tensor:
        old = self._known_held_out.get(number)
        if old is None:
            old = self._known_held_out[number] = self._ask_pairs(model, group, device)
        return old

    def _ask_pairs(self, model: Any, examples: Sequence[Example], device: Any) -> Tensor:
        """The reference's log-probabilities of chosen and rejected answers, [2, B]."""
        return self._ask_reference(model, _list_texts(examples), device).view(2, -1)

    def _compare(
        self, model: Any, examples: Sequence[Example], old: Tensor, device: Any
    ) -> tuple[Tensor, Tensor, int]:
        texts = _list_texts(examples)
        chosen, rejected = sum_logprobs(model, texts, device).chunk(2)
        old_chosen, old_rejected = old
        loss = losses.dpo(chosen, rejected, old_chosen, old_rejected, self._settings.beta)
        if self._settings.sft_weight:
            learned = sum(_count_learned(example) for example in examples)
            loss = loss - self._settings.sft_weight * chosen.sum() / learned
        margins = (chosen - old_chosen) - (rejected - old_rejected)
        return loss, margins.detach(), sum(len(text.tokens) for text in texts)


class Judged(_Preferences):
    """Say what is liked, and not what is disliked (KTO).

    How far the model is from its reference is estimated on the answers of neighbours in the batch,
    each behind the prompt of the next one. The loop shuffles the rows anew for every pass, so that
    neighbours are mixed however the file is sorted.
    """

    unit = "loss per answer"

    def __init__(
        self,
        learned: Sequence[Example],
        held_out: Sequence[Example],
        settings: RowSettings,
        model: Any,
    ) -> None:
        super().__init__(learned, held_out, settings, model)
        if settings.micro_batch < 2:
            raise TrainingError(
                "KTO compares the answers of a micro-batch with one another; set --micro-batch to "
                "at least 2"
            )
        # Asking the reference changes the model for a moment.
        self.concurrent = False

    def loss(self, model: Any, numbers: Sequence[int], device: Any) -> tuple[Any, int]:
        """See `Objective`."""
        examples = [self._learned[number] for number in numbers]
        found, _, tokens = self._judge(model, examples, device)
        return found.mean(), tokens

    def measure(
        self, model: Any, device: Any, rank: int, ranks: int
    ) -> dict[str, tuple[float, int]]:
        """See `Objective`."""
        total, count = 0.0, 0
        notes: list[tuple[float, float]] = []
        for group in self._groups(rank, ranks):
            found, ratio, _ = self._judge(model, group, device)
            total, count = total + float(found.sum()), count + len(group)
            for example, value in zip(group, ratio.tolist(), strict=True):
                notes.append((float(example.liked), value))
        self.notes = notes
        return {"": (total, count)}

    def describe(self, notes: Sequence[tuple[float, float]]) -> dict[str, float]:
        """See `Objective`. How many nats likelier liked and disliked answers became, in what share
        of pairs of both the liked one gained more, and the standard deviation of that share by
        chance.
        """
        up, down = (np.array([v for liked, v in notes if liked == one]) for one in (1.0, 0.0))
        found = {"liked": up, "disliked": down}
        details = {name: float(values.mean()) for name, values in found.items() if len(values)}
        if len(up) and len(down):
            more = up[:, None] - down[None]
            details |= {
                "preferred": float(((more > 0) + 0.5 * (more == 0)).mean()),
                "by_chance": math.sqrt((len(up) + len(down) + 1) / (12 * len(up) * len(down))),
            }
        return details

    def measure_each(self, model: Any, device: Any) -> list[float]:
        """The loss of each held-out example, in order."""
        groups = self._groups(0, 1)
        return [one for group in groups for one in self._judge(model, group, device)[0].tolist()]

    def _judge(
        self, model: Any, examples: Sequence[Example], device: Any
    ) -> tuple[Tensor, Tensor, int]:
        settings = self._settings
        texts = [example.texts[0] for example in examples]
        others = mismatch(texts if len(texts) > 1 else [texts[0], self._learned[0].texts[0]])
        reference = self._ask_reference(model, [*texts, *others], device)
        with torch.no_grad():
            apart = sum_logprobs(model, others, device)
        policy = sum_logprobs(model, texts, device)
        kl = losses.estimate_kl(apart, reference[len(texts) :])
        liked = torch.tensor([example.liked for example in examples], device=device)
        loss = losses.kto(
            policy, reference[: len(texts)], liked, kl, beta=settings.beta,
            liked_weight=settings.liked_weight, disliked_weight=settings.disliked_weight,
        )  # fmt: skip
        ratio = (policy - reference[: len(texts)]).detach()
        return loss, ratio, sum(len(text.tokens) for text in texts)


def mismatch(texts: Sequence[TokenText]) -> list[TokenText]:
    """Each prompt with the answer of the text before it; the first with that of the last."""
    found = []
    for number, text in enumerate(texts):
        other = texts[number - 1]
        prompt = text.tokens[: text.answer_begin]
        answer = other.tokens[other.answer_begin :]
        found.append(TokenText([*prompt, *answer], ((len(prompt), len(prompt) + len(answer)),)))
    return found


def sum_logprobs(
    model: Any,
    texts: Sequence[TokenText],
    device: Any,
    weights: dict[str, Tensor] | None = None,
) -> Tensor:
    """The log-probability of the learned tokens of each text, [B], by a `Student`; with `weights`
    in place of its own, by name.

    Short texts share a window, so that less is padded: positions restart where the next one begins,
    and attention does not reach over that.
    """
    packs = pack([len(text.tokens) for text in texts])
    length = max(len(text.tokens) for text in texts)
    ids = np.zeros((len(packs), length), np.int64)
    places = np.tile(np.arange(length), (len(packs), 1))
    owner = np.full((len(packs), length - 1), -1)
    for window, members in enumerate(packs):
        begin = 0
        for number in members:
            text = texts[number]
            end = begin + len(text.tokens)
            ids[window, begin:end] = text.tokens
            places[window, begin:] = np.arange(length - begin)
            owner[window, begin : end - 1][text.mask()] = number
            begin = end
        places[window, begin:] = np.arange(length - begin)
    tokens, positions = (torch.from_numpy(one).to(device) for one in (ids, places))
    learned = np.flatnonzero(owner >= 0)
    chosen = torch.from_numpy(learned).to(device)
    wanted = tokens[:, 1:].reshape(-1, 1)[chosen]
    given = {"rows": chosen}
    if weights is None:
        found, _ = model(tokens, positions, wanted, **given)
    else:
        call = torch.func.functional_call
        # Weights have the names that they have in the model, not in what joins several processes.
        inner = getattr(model, "module", model)
        found, _ = call(inner, weights, (tokens, positions, wanted), given)
    owners = torch.from_numpy(owner.reshape(-1)[learned]).to(device)
    return torch.zeros(len(texts), device=device).index_add(0, owners, found[:, 0].float())


def pack(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of texts that share a window, none of which is longer than the longest text: the
    longest first, each into the first window that has room (first fit decreasing).
    """
    most = max(lengths)
    packs: list[list[int]] = []
    rooms: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        place = next((n for n, room in enumerate(rooms) if room >= lengths[number]), len(packs))
        if place == len(packs):
            packs.append([])
            rooms.append(most)
        packs[place].append(number)
        rooms[place] -= lengths[number]
    return packs


def _list_texts(examples: Sequence[Example]) -> list[TokenText]:
    """The chosen answers of pairs, then the rejected ones."""
    return [example.texts[side] for side in (0, 1) for example in examples]


def _count_learned(example: Example) -> int:
    return int(example.texts[0].mask().sum())
