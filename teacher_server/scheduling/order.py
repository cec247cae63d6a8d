"""Which batch is next and how long it is held back: what is known of the students, put before the pure choices.

Fairness, rhythm, pace and quarantine each keep their own facts; here they meet. Its caller holds the lock and says the time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from teacher_server.jobs import Batch, Job
from teacher_server.live import LiveSettings
from teacher_server.metrics.metrics import Metrics
from teacher_server.scheduling.admission import Admission
from teacher_server.scheduling.fairness import Counters, cost
from teacher_server.scheduling.pace import Pace
from teacher_server.scheduling.policy import Rules, Turn, area, next_batch
from teacher_server.scheduling.quarantine import Quarantine
from teacher_server.scheduling.rhythm import Expected, Rhythm, kind_of
from teacher_server.scheduling.waiting import Outlook, Patience, companions, linger_s

__all__ = ["Choice", "Order"]


_AT_ONCE = 8  # batches at most, however many cores there are
_FILLED = 8  # times the tokens that take as long as starting a batch: with so many in it, more gain nothing
_SHORT = 2  # a batch that goes first in between is so many times smaller, or pauses cost more than they save


@dataclass(frozen=True)
class Choice:
    """A batch, the seconds to hold it back first, and the students at work when it was chosen."""

    batch: Batch
    hold_s: float
    active: int


class Order:
    """Chooses batches, and how many cores each has.

    Args:
        admission: says each student's weight.
        cores: that batches share which run at the same time; 1, where there is one batch at a time.

    Attributes:
        under_way: jobs of each lane that wait or run.
    """

    def __init__(self, live: LiveSettings, metrics: Metrics, admission: Admission, cores: int = 1) -> None:
        self._live = live
        self._metrics = metrics
        self._admission = admission
        self._cores, self.at_once = cores, min(cores, _AT_ONCE)
        self._counters = Counters(live.now.batch_tokens / 2)  # of the thread that has the model
        self._short_counters = Counters(live.now.batch_tokens / 2)  # of the other: Steps take no turn at the model
        self._rhythm = Rhythm()
        self._pace = Pace()
        self._quarantine = Quarantine(live, metrics)
        self.under_way: Counter[str] = Counter()
        self._number = 0

    def check(self, job: Job, now: float) -> None:
        """Refuses the model work of a student in quarantine; what it has, it may still export.

        Raises:
            Quarantined: with the reason and the time.
        """
        if job.session is not None and kind_of(job) is not None:
            self._quarantine.check(job.session.account, now)

    def arrived(self, job: Job, now: float) -> None:
        """A job has come."""
        if not self.under_way[job.lane]:
            at_work = self._rhythm.at_work(job.lane, now)
            for counters in (self._counters, self._short_counters):
                counters.arrive(job.lane, at_work, self.under_way)
        self.under_way[job.lane] += 1
        self._rhythm.called(job, now)

    def choose(self, heads: Sequence[Job], waited_s: float, now: float, running: Sequence[Batch] = ()) -> Choice:
        """The next batch of the lanes' first jobs, on cores that the running ones have left, and how long to hold it back."""
        turns = [self._turn(job) for job in heads]
        first = min(turns, key=lambda turn: turn.counter).job
        kind = kind_of(first)
        if kind is None:
            config = self._live.now
            return Choice(next_batch(turns, Rules(config.batch_tokens, merge=not config.deterministic)), 0.0, 1)
        expected = self._rhythm.expected(now)
        lanes = {job.lane for job in heads} | {job.lane for batch in running for job in batch.jobs}
        active = len(lanes | {each.lane for each in expected})
        free = self._cores - sum(batch.cores for batch in running)
        # who comes before this batch would be over, had it all cores, would have to wait for it
        soon = self._pace.seconds(_line(kind, self._cores), area([first]))
        rivals = len(lanes | {each.lane for each in expected if each.in_s < soon})
        cores = max(1, min(free, self._cores // min(rivals, self.at_once)))
        rules = self._rules(_line(kind, cores), rivals)
        batch = replace(next_batch(turns, rules), cores=cores)
        return Choice(batch, self._hold_s(batch, expected, rules, waited_s, is_last=cores == free), active)

    def aside(self, heads: Sequence[Job], running: Batch, done: float) -> Choice | None:
        """A batch of at most half the size of the one that runs, of lanes that are then no further than that one; None: there is none.

        What runs is charged in full when it begins; here it counts as far as it is `done`, so that two who are at work take
        turns in pieces of about the same size, however large their calls are.
        """
        room = min(job.tokens for job in running.jobs) // _SHORT
        standing = min(self._counters.of(job.lane) - (1 - done) * cost(job) / self._weight(job) for job in running.jobs)
        turns = [self._turn(job) for job in heads if job.tokens <= room]
        turns = [turn for turn in turns if turn.counter + cost(turn.job) / self._weight(turn.job) <= standing]
        if not turns:
            return None
        rules = Rules(room, merge=not self._live.now.deterministic)
        return Choice(replace(next_batch(turns, rules), cores=running.cores), 0.0, len(turns))

    def take(self, choice: Choice, waited_s: float) -> None:
        """The chosen batch is about to run: charges its students."""
        self._number += kind_of(choice.batch.jobs[0]) is not None
        counters = self._counters_for(choice.batch.jobs[0])
        counters.turn(choice.batch.jobs[0].lane)
        for job in choice.batch.jobs:
            job.batch = self._number
            tokens = cost(job)
            counters.charge(job.lane, tokens, self._weight(job))
            self._metrics.served_tokens.labels(job.method).inc(tokens)
            if job.session is not None:
                job.session.usage.charge(tokens)
        method = choice.batch.jobs[0].method
        self._metrics.batch_students.labels(method).observe(len(choice.batch.jobs))
        self._metrics.active_students.labels(method).observe(choice.active)
        self._metrics.linger_seconds.labels(method).observe(waited_s)

    def ran(self, batch: Batch, seconds: float) -> None:
        """A batch is done and took so long; a Forward that was run once more for it is charged once more."""
        again = [job for job in batch.jobs if job.run_again]
        for job in again:
            self._counters.charge(job.lane, cost(job), self._weight(job))
        if again:
            return  # what it took says nothing of batches of its kind
        self._pace.learn(_line(kind_of(batch.jobs[0]), batch.cores), area(batch.jobs), seconds)

    def done(self, job: Job, error: BaseException | None, ran: bool, now: float) -> None:
        """A job is answered; `ran`: by the engine."""
        self.under_way[job.lane] -= 1
        if not self.under_way[job.lane]:
            del self.under_way[job.lane]
        self._rhythm.replied(job, now, job.batch, error is None)
        if ran and job.session is not None and kind_of(job) is not None:
            self._quarantine.judge(job.session.account, error, now)

    def forget(self, lane: str) -> None:
        """A session has ended."""
        self._counters.forget(lane)
        self._short_counters.forget(lane)
        self._rhythm.forget(lane)

    def _turn(self, job: Job) -> Turn:
        batch = self._rhythm.batch_of(job.lane) if kind_of(job) == "backward" else 0
        return Turn(job, self._counters_for(job).of(job.lane), self._is_alone(job), batch)

    def _rules(self, line: str, rivals: int) -> Rules:
        config, free_tokens = self._live.now, self._pace.free_tokens(line)
        rules = Rules(config.batch_tokens, free_tokens, not config.deterministic)
        if self._cores == 1:
            return rules
        told = self._pace.told_tokens(line)
        enough = math.inf if told is None else _FILLED * told
        return replace(rules, most_calls=-(-rivals // self.at_once), enough_tokens=enough)

    def _counters_for(self, job: Job) -> Counters:
        return self._counters if kind_of(job) is not None else self._short_counters

    def _weight(self, job: Job) -> float:
        return self._admission.weight(job.session.account if job.session is not None else "")

    def _is_alone(self, job: Job) -> bool:
        return job.session is not None and self._quarantine.is_alone(job.session.account)

    def _hold_s(
        self, batch: Batch, expected: Sequence[Expected], rules: Rules, waited_s: float, *, is_last: bool
    ) -> float:
        """Seconds to hold a batch back; for others' turns alone where it takes the last cores (`is_last`)."""
        config = self._live.now
        if not config.linger or not config.linger_s or not expected:
            return 0.0
        first = batch.jobs[0]
        batches = {number for job in batch.jobs if (number := self._rhythm.batch_of(job.lane))}
        joining = [] if self._is_alone(first) else companions(batch, expected, batches, rules)
        standing = self._counters.of(first.lane)
        in_turn = [each for each in expected if is_last and self._counters.of(each.lane) + each.tokens <= standing]
        line = _line(kind_of(first), batch.cores)
        outlook = Outlook(self._pace.seconds(line, area(batch.jobs)), self._pace.start_s(line), waited_s)
        patience = Patience(config.linger_s, config.linger_share, config.turn_share)
        return linger_s(joining, in_turn, outlook, patience)


def _line(kind: str | None, cores: int) -> str:
    """What the pace of batches is learned by."""
    return f"{kind} on {cores}"
