"""The search: cheap screens first, then successive halving, then proof for the few that are left.

    screen   make each form, judge it on few tokens, a short trial of its speed
    prune    pruned forms that are faster: a short distillation, what a longer one can give, that one
    tune     trials of other settings of the engine
    halve    longer trials for ever fewer candidates (Jamieson & Talwalkar 2016)
    prove    its own form's drops, on more tokens where they leave it undecided, questions and the
             whole load, the cheapest first

A candidate goes for good only where its interval excludes the bound, where another one is certainly
cheaper and no worse, or where the time does not reach; each carries the reason. Nothing here knows
how anything is measured (`steps.Lab`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from thrifty.evaluate.gate import ANSWERS_KEPT, LEAST_RIGHT
from thrifty.optimize.candidate import LEARNS, Candidate, Candidates
from thrifty.optimize.intervals import (
    Interval,
    find_cost,
    find_lost,
    find_worst,
    is_beyond,
    is_within,
    predict_drop,
    read_drops,
    z_of,
)
from thrifty.optimize.standing import (
    Goal,
    Outcome,
    Standing,
    Status,
    costs_less,
    dominates,
    rank,
    rank_by_drop,
)
from thrifty.optimize.steps import ASK, JUDGE, LOAD, MAKE, TRIAL, Result, Session, Step

FINALISTS = 4
"""How many forms are proved at most. Intervals are wide enough to hold for all of them together."""
SCREEN_TOKENS, MOST_TOKENS = 2048, 8192
"""Tokens of each domain: at first, four windows, and where those leave it undecided."""
TRIAL_S = 4
"""Seconds of the first trial; each rung doubles them."""
RUNGS = 3
TUNE_SHARE = 0.2
"""The share of the budget that making models leaves for trials of the engine's settings."""


class Search:
    """One search over candidates."""

    def __init__(
        self,
        candidates: Candidates,
        goal: Goal,
        session: Session,
        on_rung: Callable[[str, int, float], None] = lambda rung, left, left_s: None,
    ) -> None:
        """`on_rung` is told of each rung, with the candidates and the seconds left."""
        self._goal = goal
        self._session = session
        self._on_rung = on_rung
        self._z = z_of(FINALISTS)
        self.standings = [Standing(one) for one in candidates.feasible]
        self._impossible = [
            Standing(one, Status.INFEASIBLE, why) for one, why in candidates.infeasible
        ]

    def run(self) -> Outcome:
        """Search until a winner is certain or the time is up."""
        for name, stage in (
            ("screen", self._screen), ("prune", self._prune), ("tune", self._tune),
            ("halve", self._halve), ("prove", self._prove),
        ):  # fmt: skip
            self._tell(name)
            stage()
        passed = [one for one in self.standings if one.status is Status.PASSED]
        winner = min(passed, key=rank, default=None)
        if winner is not None:
            winner.status, winner.why = Status.WINNER, "the cheapest that is certainly within"
            for one in passed:
                if one is not winner:
                    one.status = Status.DOMINATED
                    one.why = f"within the bound, and {winner.candidate} costs less"
        for one in self._open():
            one.close(Status.NO_TIME, "the budget did not reach for its proof")
        return Outcome(
            [*self.standings, *self._impossible], winner,
            None if winner is not None else self._find_nearest(), self._session.spent_s,
        )  # fmt: skip

    def least_s(self) -> float:
        """What the first candidate needs from its making to its proof."""
        first = self.standings[0].candidate
        return self._session.predict_s([*self._screen_steps(first), *self._proof_steps(first)])

    def list_steps(self) -> Iterator[Step]:
        """Every step that it may run."""
        for candidate in (one.candidate for one in self.standings):
            yield from (Step(MAKE, one) for one in (candidate, candidate.form, candidate.timed))
            yield from (Step(JUDGE, candidate.form, n) for n in (SCREEN_TOKENS, MOST_TOKENS))
            yield from (Step(ASK, candidate.form, number) for number in self._goal.questions)
            yield from (Step(TRIAL, candidate.timed, TRIAL_S << rung) for rung in range(RUNGS))
            yield Step(LOAD, candidate.timed, self._goal.load_s)

    # The stages

    def _screen(self) -> None:
        quick = [one for one in self._defaults() if not one.candidate.recipe.pruned]
        for one in quick:
            slow = one.candidate.recipe.scheme in LEARNS
            keep_s = TUNE_SHARE * self._session.budget_s if slow else 0.0
            self._screen_form(one, keep_s)

    def _screen_form(self, one: Standing, keep_s: float) -> None:
        """Make a form, judge it on few tokens and try it."""
        steps = self._screen_steps(one.candidate)
        proof_s = self._session.predict_s(self._proof_steps(one.candidate))
        if not self._session.fits(steps, keep_s + proof_s):
            needed_s = self._session.predict_s(steps)
            why = f"making and trying it takes about {needed_s / 60:.1f} minutes"
            self._close_recipe(one, Status.NO_TIME, why)
            return
        for step in steps:
            if not self._take(one, step):
                self._close_recipe(one, one.status, one.why)
                return

    def _prune(self) -> None:
        """A pruned form is judged on what a distillation makes of it: on a short one first."""
        families: dict[Candidate, list[Standing]] = {}
        for one in self._defaults():
            if one.candidate.recipe.pruned:
                families.setdefault(one.candidate.timed, []).append(one)
        for family in families.values():
            self._try_family(sorted(family, key=lambda one: one.candidate.recipe.distill_tokens))

    def _try_family(self, family: list[Standing]) -> None:
        short, longer = family[0], family[1:]
        session, shape = self._session, short.candidate.timed
        first = [Step(MAKE, shape), Step(TRIAL, shape, TRIAL_S)]
        second = [Step(MAKE, short.candidate), Step(JUDGE, short.candidate.form, SCREEN_TOKENS)]
        keep_s = self._keep_s()
        if not session.fits([*first, *second], keep_s):
            needed_s = session.predict_s([*first, *second])
            why = f"pruning and a short distillation take about {needed_s / 60:.1f} minutes"
            self._close_recipes(family, Status.NO_TIME, why)
            return
        for step in first:
            if not self._take(short, step):
                self._close_recipes(family, short.status, short.why)
                return
        # Its speed is known before it learns anything.
        cheaper = self._find_cheaper(short)
        if cheaper is not None:
            why = f"no cheaper than {cheaper.candidate}, which nothing was taken from"
            self._close_recipes(family, Status.DOMINATED, why)
            return
        for step in second:
            if not self._take(short, step) and short.status is not Status.BEYOND:
                self._close_recipes(family, short.status, short.why)
                return
        self._try_longer(short, longer)
        if short.status is not Status.OPEN:
            self._close_recipe(short, short.status, short.why)

    def _try_longer(self, short: Standing, longer: list[Standing]) -> None:
        """The longest distillation that fits, if the short one leaves a hope for it."""
        worst = find_worst(short.drops)
        taken = False
        for one in reversed(longer):
            recipe = one.candidate.recipe
            hoped = predict_drop(
                worst[1].low if worst else 0.0, short.candidate.recipe.distill_tokens,
                recipe.distill_tokens,
            )  # fmt: skip
            steps = [Step(MAKE, one.candidate), Step(JUDGE, one.candidate.form, SCREEN_TOKENS)]
            if taken:
                self._close_recipe(one, Status.DOMINATED, "distilled for less time, no cheaper")
            elif hoped > self._goal.max_drop:
                why = f"predicted from a short distillation: a drop of {hoped:.1%} at least"
                self._close_recipe(one, Status.BEYOND, why)
            elif not self._session.fits(steps, self._keep_s()):
                needed_s = self._session.predict_s(steps)
                why = f"its distillation takes about {needed_s / 60:.1f} minutes"
                self._close_recipe(one, Status.NO_TIME, why)
            else:
                self._read(one, TRIAL, TRIAL_S)
                taken = all(self._take(one, step) for step in steps)
                if not taken:
                    self._close_recipe(one, one.status, one.why)

    def _tune(self) -> None:
        """Settings beside the engine's defaults, those nearest to them first."""
        waiting = sorted(
            (one for one in self._open() if one.candidate.settings.deviations),
            key=lambda one: one.candidate.settings.deviations,
        )
        for one in waiting:
            worse = self._find_worse_part(one)
            step = Step(TRIAL, one.candidate.timed, TRIAL_S)
            if worse is not None:
                one.close(Status.DOMINATED, f"{worse} costs more by itself")
            elif not self._session.fits([step], self._proof_s()):
                one.close(Status.NO_TIME, "the budget did not reach for a trial")
            elif self._take(one, step):
                self._share_drops(one)
                self._drop_dominated()

    def _halve(self) -> None:
        seconds = TRIAL_S
        for rung in range(1, RUNGS):
            there = sorted(self._open(), key=rank)
            if len(there) <= FINALISTS:
                return
            keep = max(FINALISTS, -(-len(there) // 2))
            kept = there[:keep]
            safest = min(there, key=rank_by_drop)
            if safest not in kept:
                kept[-1] = safest
            for one in there:
                if one not in kept:
                    one.close(Status.HALVED, f"not among the cheaper half after rung {rung}")
            seconds *= 2
            self._tell(f"halve {rung}")
            for one in kept:
                step = Step(TRIAL, one.candidate.timed, seconds)
                if self._session.fits([step], self._proof_s()):
                    self._take(one, step)
            self._drop_dominated()

    def _prove(self) -> None:
        there = sorted(self._open(), key=rank)
        safest = min(there, key=rank_by_drop, default=None)
        best: Standing | None = None
        forms: set[str] = set()
        for one in there:
            form = one.candidate.form.id
            room = FINALISTS - (safest is not None and safest.candidate.form.id not in forms)
            if one is not safest and form not in forms and len(forms) >= room:
                one.close(Status.HALVED, f"{FINALISTS} forms are proved at most")
                continue
            if best is not None and rank(one) >= rank(best):
                one.close(Status.DOMINATED, f"{best.candidate} costs less and is within the bound")
                continue
            keep_s = 0.0
            waiting = safest if safest is not one and best is None else None
            if waiting is not None and waiting.status is Status.OPEN:
                keep_s = self._session.predict_s(self._proof_steps(waiting.candidate))
            proof = self._proof_steps(one.candidate)
            if not self._session.fits(proof, keep_s):
                needed_s = self._session.predict_s(proof)
                one.close(Status.NO_TIME, f"its proof takes about {needed_s / 60:.1f} minutes")
                continue
            forms.add(form)
            if self._prove_one(one, keep_s):
                one.status = Status.PASSED
                best = min([one, *([best] if best else [])], key=rank)
        # What is left of the time may decide what was not certain, or had to wait for the safest.
        for one in there:
            undecided = one.status in (Status.UNCERTAIN, Status.NO_TIME)
            ahead = best is None or rank(one) < rank(best)
            room = one.candidate.form.id in forms or len(forms) < FINALISTS
            if (
                undecided
                and ahead
                and room
                and self._session.fits(self._proof_steps(one.candidate))
            ):
                one.status = Status.OPEN
                forms.add(one.candidate.form.id)
                if self._prove_one(one, 0.0):
                    one.status = Status.PASSED
                    best = one

    def _prove_one(self, one: Standing, keep_s: float) -> bool:
        """As many tokens as it takes, the questions and the whole load; whether it is certainly within
        the bound.
        """
        goal, form = self._goal, one.candidate.form
        if not self._take(one, Step(JUDGE, form, SCREEN_TOKENS)):
            return False
        more = Step(JUDGE, form, MOST_TOKENS)
        undecided = not is_within(one.drops, goal.max_drop)
        proof = self._proof_steps(one.candidate)
        fits = self._session.fits([more, *proof], keep_s)
        if undecided and fits and not self._take(one, more):
            return False
        for number, questions in enumerate(goal.questions):
            # More of them only where the first ones leave it undecided.
            if (number == 0) != is_within(one.drops, goal.max_drop):
                break
            ask = Step(ASK, form, questions)
            if number and not self._session.fits([ask, *proof], keep_s):
                break
            if not self._take(one, ask):
                return False
        if not is_within(one.drops, goal.max_drop):
            name, drop = max(one.drops.items(), key=lambda item: item[1].high)
            one.close(
                Status.UNCERTAIN,
                f"{name} may drop by up to {drop.high:.1%}, and {goal.max_drop:.1%} are allowed",
            )
            return False
        if not self._take(one, Step(LOAD, one.candidate.timed, goal.load_s)):
            return False
        if one.cost is None or not math.isfinite(one.cost.value):
            one.close(Status.FAILED, "no request met the objective under the whole load")
            return False
        return True

    # Steps

    def _screen_steps(self, candidate: Candidate) -> list[Step]:
        return [
            Step(MAKE, candidate.form), Step(JUDGE, candidate.form, SCREEN_TOKENS),
            Step(TRIAL, candidate.timed, TRIAL_S),
        ]  # fmt: skip

    def _proof_steps(self, candidate: Candidate) -> list[Step]:
        asked = [Step(ASK, candidate.form, number) for number in self._goal.questions[:1]]
        return [
            Step(JUDGE, candidate.form, SCREEN_TOKENS), *asked,
            Step(LOAD, candidate.timed, self._goal.load_s),
        ]  # fmt: skip

    def _take(self, one: Standing, step: Step) -> bool:
        """Run a step and note what it says of a candidate; whether the candidate is still in."""
        result = self._session.run(step)
        self._note(one, step, result)
        return one.status is Status.OPEN

    def _read(self, one: Standing, kind: str, amount: int) -> None:
        """Note what is known of a candidate without running anything."""
        step = Step(kind, one.candidate.timed if kind == TRIAL else one.candidate.form, amount)
        result = self._session.find(step)
        if result is not None:
            self._note(one, step, result)

    def _note(self, one: Standing, step: Step, result: Result) -> None:
        one.rung = f"{step.kind} {step.amount}" if step.amount else step.kind
        if result.stopped:
            one.close(Status.NO_TIME, f"the budget ended during its step {one.rung!r}")
            return
        if result.fault is not None:
            one.close(Status.FAILED, f"{step.kind}: {result.fault}")
            return
        values, goal = result.values, self._goal
        one.measured |= values
        if step.kind == JUDGE:
            one.drops |= read_drops(values["domains"], self._z)
        elif step.kind == ASK and values["reference_right"] >= LEAST_RIGHT:
            one.drops[ANSWERS_KEPT] = find_lost(
                values["still_right"], values["reference_right"], self._z
            )
        elif step.kind in (TRIAL, LOAD):
            one.speed = Interval(*values["good_tokens_per_s"])
            one.cost = find_cost(one.speed, goal.price_per_hour)
        if is_beyond(one.drops, goal.max_drop):
            name, drop = max(one.drops.items(), key=lambda item: item[1].low)
            one.close(
                Status.BEYOND,
                f"{name} drops by {drop.value:.1%} [{drop.low:.1%}, {drop.high:.1%}], and "
                f"{goal.max_drop:.1%} are allowed",
            )

    def _share_drops(self, one: Standing) -> None:
        """Until it is judged itself: the drops of the same recipe with the engine's defaults."""
        default = next(
            (other for other in self._defaults()
             if other.candidate.recipe == one.candidate.recipe and other.drops), None,
        )  # fmt: skip
        if default is not None and not one.drops:
            one.drops = dict(default.drops)

    # What goes

    def _find_cheaper(self, one: Standing) -> Standing | None:
        """A form that nothing was taken from, cheaper and no worse: the same one unpruned, or one
        that is certainly within the bound on its domains.
        """
        scheme, bound = one.candidate.recipe.scheme, self._goal.max_drop
        return next(
            (other for other in self._open() if other is not one and costs_less(other, one)
             and not other.candidate.recipe.pruned
             and (other.candidate.recipe.scheme == scheme or is_within(other.drops, bound))), None,
        )  # fmt: skip

    def _find_worse_part(self, one: Standing) -> str | None:
        """A single setting of a combination that certainly costs more than the default alone."""
        recipe, settings = one.candidate.recipe, one.candidate.settings
        if settings.deviations < 2:
            return None
        singles = [
            other for other in self.standings
            if other.candidate.recipe == recipe and other.candidate.settings.deviations == 1
            and (set(other.candidate.settings.options) <= set(settings.options))
            and other.candidate.settings.replicas in (1, settings.replicas)
        ]  # fmt: skip
        default = next(s for s in self._defaults() if s.candidate.recipe == recipe)
        return next(
            (str(other.candidate.settings) for other in singles if costs_less(default, other)),
            None,
        )

    def _drop_dominated(self) -> None:
        for one in self._open():
            if one.cost is None:
                continue
            better = next((b for b in self._open() if b is not one and dominates(b, one)), None)
            if better is not None:
                one.close(
                    Status.DOMINATED, f"{better.candidate} costs less and is no worse, for certain"
                )

    def _close_recipe(self, one: Standing, status: Status, why: str) -> None:
        for other in self.standings:
            if other.candidate.recipe == one.candidate.recipe:
                other.close(status, why)

    def _close_recipes(self, family: Iterable[Standing], status: Status, why: str) -> None:
        for one in family:
            self._close_recipe(one, status, why)

    # What there is

    def _open(self) -> list[Standing]:
        return [one for one in self.standings if one.status is Status.OPEN]

    def _defaults(self) -> list[Standing]:
        return [one for one in self.standings if not one.candidate.settings.deviations]

    def _proof_s(self) -> float:
        """What the proof of one candidate takes: time that no earlier stage may use."""
        there = sorted((one for one in self._open() if one.cost is not None), key=rank)
        return max(
            (self._session.predict_s(self._proof_steps(one.candidate)) for one in there[:2]),
            default=0.0,
        )

    def _keep_s(self) -> float:
        return self._proof_s() + TUNE_SHARE * self._session.budget_s

    def _find_nearest(self) -> Standing | None:
        judged = [one for one in self.standings if one.drops]
        return min(judged, key=lambda one: max(d.value for d in one.drops.values()), default=None)

    def _tell(self, rung: str) -> None:
        self._on_rung(rung, len(self._open()), self._session.left_s)
