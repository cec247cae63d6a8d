"""Knowledge selection (arXiv 2302.00444): several kinds of knowledge, weighed anew at every step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import nn

from student_client.method_config import MethodConfig
from student_client.methods.kinds import KINDS, Kind, build_kind
from student_client.methods.method import Asking, Context, Seen, Terms
from student_client.methods.projection import masked_mean
from student_client.methods.served import require_port
from student_client.selection.selector import Selector, hardened
from student_client.teachers.pausing import Pausing
from student_client.teachers.teachers import Member, Teachers
from task_data import Batch
from teaching_protocol.errors import ConfigError

__all__ = ["FixedMix", "Policy", "RandomHard", "RandomSoft", "Selection", "Weighed"]

Policy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Student's vectors [batch, d_g] and teacher's [batch, d_h], on the CPU, to the weights [K] of a step."""

_PRIME = 1_000_003  # spreads seeds of runs apart
_SMALLEST = 1e-6
_HALF = 0.5


class Weighed(Asking):
    """L = sum_k a_k L_k / mean(L_k) over kinds of knowledge, the task loss being one of them.

    A subclass gives the weights a. That each loss is divided by its running mean is ours: their scales differ by orders
    of magnitude. What is not selected is neither asked of the teacher nor computed (ours).
    """

    predicts_rows = True
    replaces_task = True
    means: torch.Tensor
    counts: torch.Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.settings = context.config.selection
        self.kinds = nn.ModuleDict({name: build_kind(name, context) for name in self.settings.kinds})
        self.register_buffer("means", torch.zeros(len(self.kinds)))
        self.register_buffer("counts", torch.zeros(len(self.kinds)))

    @classmethod
    def converses_under(cls, config: MethodConfig) -> bool:
        """Whether the conversation is among the kinds."""
        return any(KINDS[name].converses for name in config.selection.kinds)

    @property
    def skip_below(self) -> float:
        """Weight under which a kind is not selected; 0 itself never is."""
        return self.settings.skip_below

    @abstractmethod
    def weigh(self, seen: Seen, batch: Batch, member: Member) -> torch.Tensor:
        """The weights [K] of a step, on the CPU."""

    def pausing_terms(self, seen: Seen, batch: Batch, teachers: Teachers) -> Pausing[Terms]:
        """The selected kinds' losses over their running means, by their weights."""
        kinds, member, terms = self._all(), teachers.first, Terms()
        weights = dict(zip(kinds, self.weigh(seen, batch, member).tolist(), strict=True))
        chosen = {name: kinds[name] for name, weight in weights.items() if weight and weight >= self.skip_below}
        ports = tuple(dict.fromkeys(port for kind in chosen.values() for port in kind.ports))
        known = member.observe(batch, ports) if ports else {}
        found: dict[str, Terms] = {}
        for name, kind in chosen.items():
            found[name] = yield from kind.pausing_terms(seen, batch, teachers, known)
        yield  # the running means go on in the order of the microbatches, whichever of them have asked
        for place, name in enumerate(kinds):
            if name in chosen:
                self._add(terms, name, weights[name], found[name], place)
        terms.monitors |= {f"action.{name}": weight for name, weight in weights.items()}
        terms.monitors |= self._count(chosen, member, len(batch))
        return terms

    def _add(self, terms: Terms, name: str, weight: float, found: Terms, place: int) -> None:
        """Adds one kind's loss, over its running mean, which this loss is part of."""
        terms.monitors |= found.monitors
        if not found.losses:
            return
        loss = torch.stack([own * term for own, term in found.losses.values()]).sum()
        with torch.no_grad():
            self.counts[place] += 1
            rate = (1.0 / self.counts[place]).clamp(min=1.0 - self.settings.mean_decay)
            self.means[place] += rate * (loss.detach() - self.means[place])
        terms.monitors[f"loss.{name}"] = float(loss.detach())
        terms.add(name, weight, loss / self.means[place].clamp(min=_SMALLEST))

    def _count(self, chosen: Mapping[str, Kind], member: Member, rows: int) -> dict[str, float]:
        """Counts the rows of calls that were not made; gives the share of what there is to fetch that was fetched."""
        kinds = self._all().values()
        asked, asking = ([kind for kind in each if kind.asks] for each in (chosen.values(), kinds))
        for converses in (False, True):  # what is observed is one call, the conversation another
            wanted, made = (any(kind.converses is converses for kind in each) for each in (asking, asked))
            member.rows_saved += rows if wanted and not made else 0
        return {"fetched": len(asked) / max(1, len(asking))}

    def _all(self) -> dict[str, Kind]:
        return {name: kind for name, kind in self.kinds.items() if isinstance(kind, Kind)}


class Selection(Weighed):
    """A frozen selector weighs the kinds by the state of student and teacher on the batch.

    Args:
        context: its config names the selector's folder.
        policy: in place of that selector, such as one that is being learned.

    Raises:
        ConfigError: no selector, or one for other kinds or widths.
    """

    def __init__(self, context: Context, policy: Policy | None = None) -> None:
        super().__init__(context)
        self._port = require_port(context.cards[0], "pooled")
        self._policy = _frozen(context) if policy is None else policy

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """What the state is made of; the rest is fetched once it is selected."""
        return {0: (self._port,)}

    def weigh(self, seen: Seen, batch: Batch, member: Member) -> torch.Tensor:
        """The selector's action."""
        teacher = member.observe(batch, (self._port,))[self._port]
        student = masked_mean(seen.upper).detach()
        with torch.autocast("cpu", enabled=False):
            return self._policy(student.float().cpu(), teacher.float().cpu())


class RandomSoft(Weighed):
    """Weights drawn evenly from 0 to 1 at every step: a baseline of the paper."""

    calls: torch.Tensor

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def weigh(self, seen: Seen, batch: Batch, member: Member) -> torch.Tensor:
        """A draw that only the seed and the number of the call decide."""
        self.calls += 1
        return torch.rand(
            len(self.kinds), generator=torch.Generator().manual_seed(self.seed * _PRIME + int(self.calls))
        )


class RandomHard(RandomSoft):
    """Each kind is taken or left out by the toss of a coin at every step, one at least: a baseline of the paper."""

    def weigh(self, seen: Seen, batch: Batch, member: Member) -> torch.Tensor:
        """The soft draw, hardened."""
        return hardened(super().weigh(seen, batch, member), _HALF)


class FixedMix(Weighed):
    """The same weights at every step: ordinary distillation by several kinds of knowledge at once."""

    @property
    def skip_below(self) -> float:
        """Every weight but 0 counts."""
        return 0.0

    @property
    def mix(self) -> tuple[float, ...]:
        """The weights [K]."""
        return self.settings.mix or (1.0,) * len(self.settings.kinds)

    @property
    def is_active(self) -> bool:
        """Whether any kind has a weight."""
        return any(self.mix)

    @property
    def observed(self) -> Mapping[int, tuple[str, ...]]:
        """The ports of all kinds that have a weight."""
        kinds = zip(self._all().values(), self.mix, strict=True)
        ports = tuple(dict.fromkeys(port for kind, weight in kinds if weight for port in kind.ports))
        return {0: ports} if ports else {}

    def weigh(self, seen: Seen, batch: Batch, member: Member) -> torch.Tensor:
        """The mix."""
        return torch.tensor(self.mix)


def _frozen(context: Context) -> Policy:
    settings = context.config.selection
    if settings.selector is None:
        raise ConfigError(
            "method.selection.selector: received none, expected the folder of a selector; make one by `student-client "
            "select --output FOLDER` with the flags of this run, then set method.selection.selector=FOLDER"
        )
    selector = Selector.load(settings.selector)
    selector.check_kinds(settings.kinds)
    selector.check_width("student", context.student.width)
    return selector.choose
