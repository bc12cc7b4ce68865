"""`measure.until`: launches are added until every ratio to the baseline is known well enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.judge.numbers import significant
from bench.judge.pairs import baseline_of
from bench.judge.ratio import pair
from bench.judge.stopping import Progress, Until
from bench.recipe.plan import Plan
from bench.record.run import Run
from bench.record.samples import block_columns


@dataclass
class Widths:
    """Asks the run for its ratios at every look. ``say`` gets a line per look: what is known, and what is planned."""

    run: Run
    until: Until
    say: Callable[[str], None]
    seen: int = 0

    def more_launches(self) -> int:
        """Launches to add to every cell; 0 when every interval is narrow enough, or when nothing was added."""
        found = self._progress()
        launches = min((one.ratio.launches for one in found.values()), default=0)
        if launches <= self.seen:  # the time budget has ended, or an arm failed
            return 0
        self.seen = launches
        for name, one in found.items():
            width = 100 * (one.ratio.high / one.ratio.value - 1)
            self.say(
                f"{name} after {one.ratio.launches} launches: {significant(one.ratio.value)} ± {width:.2g} %, "
                f"{one.planned} launches are expected to give {100 * self.until.half_width:g} %"
            )
        return max((one.more_launches for one in found.values()), default=0)

    def _progress(self) -> dict[str, Progress]:
        record, found = self.run.record(), {}
        arms = [arm for arm in self.run.arms() if arm.failure is None]
        for arm in arms:
            base = baseline_of(arm, arms, record.baseline)
            if base is None or base.id == arm.id:
                continue
            pairs = pair(*(block_columns(self.run.columns(one.id)) for one in (arm, base)))
            if pairs.log_ratio.size:
                found[arm.id] = self.until.ask(pairs.launch, pairs.log_ratio)
        return found


def growing(plan: Plan, run: Run, say: Callable[[str], None]) -> tuple[Plan, Callable[[], int]]:
    """The plan of the first look, and what says how many launches to add; as planned without `measure.until`.

    Args:
        plan: of the recipe; its launches are the most.
        run: where the blocks are; an interrupted run goes on from those it has.
        say: gets a line per look.
    """
    if plan.measure.until is None:
        return plan, lambda: 0
    widths = Widths(run, Until.within(plan.measure.until, plan.measure.launches), say)
    measured = max((block.launch + 1 for block in run.journal()), default=0)
    first = max(widths.until.looks[0], measured)
    return replace(plan, measure=plan.measure.model_copy(update={"launches": first})), widths.more_launches
