"""How a selector is learned: rewards, transitions, updates after a phase; knows no student, no teacher and no loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional

from student_client.method_config import SelectorLearningConfig
from student_client.selection.selector import Selector, hardened
from teaching_protocol.errors import NonFiniteError

__all__ = ["Learner", "Phase", "Transition", "critic_target", "exploration_reward", "phase_reward", "scaled_rewards"]

_SMALLEST = 1e-6

Look = tuple[torch.Tensor, torch.Tensor]
"""What a batch is to student and teacher: last-layer vectors [batch, d_g] and [batch, d_h]."""


@dataclass(frozen=True)
class Transition:
    """(s, a, r, s') of one phase: `following` is None where the episode ended, since nothing comes after it."""

    look: Look
    action: torch.Tensor  # [K]
    reward: float
    following: Look | None


@dataclass(frozen=True)
class Phase:
    """What came of one phase, a line of selector.jsonl. `critic_loss` is the critic's error before its update."""

    episode: int
    phase: int
    development_loss: float
    reward: float
    action: tuple[float, ...]
    critic_loss: float


def phase_reward(before: float, after: float, exploration: float, eta: float) -> float:
    """r = (development loss before the phase - after it) + eta * exploration reward: learning is rewarded."""
    return before - after + eta * exploration


def exploration_reward(action: torch.Tensor, earlier: Sequence[torch.Tensor], is_hard: bool) -> float:
    """What is new is rewarded: -cos(a_p, a_{p-1}) of soft actions, minus the count of repetitions of hard ones.

    Forms ours: the cosine of an action of zeros is 0, the first phase has nothing to repeat, and a hard action is
    repeated as often as earlier phases of the episode took it.

    Args:
        action: a_p [K].
        earlier: the episode's actions before it, oldest first.
        is_hard: whether actions are 0 or 1.
    """
    if not earlier:
        return 0.0
    if is_hard:
        return -float(sum(torch.equal(action, each) for each in earlier))
    return -float(functional.cosine_similarity(action, earlier[-1], dim=0))


def critic_target(reward: torch.Tensor, following: torch.Tensor, gamma: float, reading: str) -> torch.Tensor:
    """What Q(s, a) is to become: r + gamma Q(s', a'), or as `printed` gamma r + Q(s', a').

    Args:
        reward: r [transitions].
        following: Q(s', mu(s')) [transitions]; 0 where the episode ended.
        gamma: discount.
        reading: `standard` or `printed`.
    """
    return gamma * reward + following if reading == "printed" else reward + gamma * following


def scaled_rewards(rewards: torch.Tensor, limit: float) -> torch.Tensor:
    """Rewards [transitions] over their root mean square, and no further from 0 than `limit`.

    Ours: what a phase is worth depends on the task's loss and falls as a student learns, and one phase that goes wrong
    would otherwise be all that the critic fits.
    """
    return (rewards / rewards.square().mean().sqrt().clamp(min=_SMALLEST)).clamp(-limit, limit)


@dataclass
class _Episode:
    """Where an episode stands: the development loss before the phase, its noise, its first look and its steps' actions.

    `ended` is the phase before, until the state after it is seen; `phases` are the actions of all that ended.
    """

    loss: float
    noise: torch.Tensor
    look: Look | None = None
    steps: list[torch.Tensor] = field(default_factory=list)
    phases: list[torch.Tensor] = field(default_factory=list)
    ended: Transition | None = None
    drawn: torch.Tensor | None = None


class Learner:
    """Learns a selector while students train; to them it is the policy.

    Every step is weighed by the actor with noise that is the same over a phase, since the phase is what is rewarded
    (ours), and goes on from phase to phase as in DDPG (Lillicrap et al. 2015, arXiv 1509.02971), since students answer
    late to what they are taught. The first phases are weighed by draws instead, since an actor that knows nothing would
    see little but its own beginning (ours). A phase's transition is closed when the state after it is seen; then critic and state
    are fitted to their targets over the remembered transitions (a memory of several phases is ours), and the actor
    follows the deterministic policy gradient through Q, which moves nothing but the actor. Several updates a phase are
    ours: phases are what costs.

    Args:
        selector: learned in place.
        settings: of the learning.
        seed: of the exploration noise.
        report: receives every phase once its transition is closed.
    """

    def __init__(
        self,
        selector: Selector,
        settings: SelectorLearningConfig,
        seed: int,
        report: Callable[[Phase], None] = lambda phase: None,
    ) -> None:
        self.selector, self.settings = selector, settings
        self.updates = 0
        """Updates so far."""
        self.episode = 0
        """Number of the current episode, from 1."""
        self._report, self._generator = report, torch.Generator().manual_seed(seed)
        critic = [*selector.student_state.parameters(), *selector.teacher_state.parameters()]
        critic += list(selector.critic.parameters())
        self._critic_optimizer = torch.optim.Adam(critic, lr=settings.lr)
        self._actor_optimizer = torch.optim.Adam(selector.actor.parameters(), lr=settings.lr)
        self._memory: deque[Transition] = deque(maxlen=settings.memory)
        self._closed = 0  # phases of all episodes; the memory may hold fewer
        self._now = _Episode(0.0, torch.zeros(len(selector.card.kinds)))

    def begin(self, loss: float) -> None:
        """Begins an episode, whose student starts at this development loss."""
        self.episode += 1
        self._now = _Episode(loss, self.settings.noise * self._normal())
        self._draw()

    def act(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The weights [K] of a step, with noise; the first step of a phase closes the phase before.

        Args:
            student: the student's last-layer vectors [batch, d_g].
            teacher: the teacher's `pooled` [batch, d_h].
        """
        look, now = (student, teacher), self._now
        self._close(look)
        with torch.no_grad():
            if now.drawn is None:
                soft = (self.selector.act(self.selector.state(*look)) + now.noise).clamp(0.0, 1.0)
            else:
                soft = now.drawn
            action = self.selector.settle(soft)
        now.look = now.look or look
        now.steps.append(action)
        return action

    def measure(self, loss: float) -> None:
        """Ends a phase, behind at least one step, with the development loss after it.

        Raises:
            NonFiniteError: a loss that is no number.
        """
        if not math.isfinite(loss):
            raise NonFiniteError(f"the development loss is {loss}, expected a number; lower training.lr")
        now, is_hard = self._now, self.selector.card.is_hard
        assert now.look is not None, "a phase has a step"
        action = torch.stack(now.steps).mean(0)
        if is_hard:
            action = hardened(action, 0.5)  # what most of its steps chose
        exploration = exploration_reward(action, now.phases, is_hard)
        reward = phase_reward(now.loss, loss, exploration, self.settings.eta)
        now.ended = Transition(now.look, action, reward, None)
        now.phases.append(action)
        now.loss, now.look, now.steps = loss, None, []
        kept = self.settings.noise_kept  # an Ornstein-Uhlenbeck process: its deviation stays what it is
        now.noise = kept * now.noise + math.sqrt(1.0 - kept**2) * self.settings.noise * self._normal()
        self._draw()

    def finish(self) -> Phase | None:
        """Ends the episode, and gives its last phase, which has no state after it."""
        return self._close(None)

    def _draw(self) -> None:
        """Draws the next phase's weights, while too few have ended for the actor to know anything."""
        count = len(self.selector.card.kinds)
        is_early = self._closed + (self._now.ended is not None) < self.settings.drawn_phases
        self._now.drawn = torch.rand(count, generator=self._generator) if is_early else None

    def _normal(self) -> torch.Tensor:
        return torch.randn(len(self.selector.card.kinds), generator=self._generator)

    def _close(self, following: Look | None) -> Phase | None:
        """Remembers the phase that ended, with the state after it, and learns from the memory."""
        now = self._now
        ended, now.ended = now.ended, None
        if ended is None:
            return None
        self._memory.append(replace(ended, following=following))
        self._closed += 1
        critic_loss = self.update(tuple(self._memory))
        for _ in range(self.settings.updates - 1):
            self.update(tuple(self._memory))
        action = tuple(round(weight, 6) for weight in ended.action.tolist())
        phase = Phase(self.episode, len(now.phases), now.loss, ended.reward, action, critic_loss)
        self._report(phase)
        return phase

    def update(self, transitions: Sequence[Transition]) -> float:
        """One update of critic and state, then one of the actor; gives the critic's error before it."""
        rewards = scaled_rewards(torch.tensor([each.reward for each in transitions]), self.settings.reward_limit)
        actions = torch.stack([each.action for each in transitions])
        states = self.selector.states([each.look for each in transitions])
        targets = critic_target(rewards, self._following(transitions), self.settings.gamma, self.settings.critic_target)
        loss = functional.mse_loss(self.selector.value(states, actions), targets)
        self._critic_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._critic_optimizer.step()
        self._improve_actor(states.detach())
        self.updates += 1
        return loss.item()

    def _following(self, transitions: Sequence[Transition]) -> torch.Tensor:
        """Q(s', mu(s')) [transitions], without gradient."""
        values = torch.zeros(len(transitions))
        places = [place for place, each in enumerate(transitions) if each.following is not None]
        if places:
            with torch.no_grad():
                states = self.selector.states([each.following for each in transitions if each.following is not None])
                values[places] = self.selector.value(states, self.selector.settle(self.selector.act(states)))
        return values

    def _improve_actor(self, states: torch.Tensor) -> None:
        """The deterministic policy gradient: mu goes where Q(s, mu(s)) grows; Q itself is left alone.

        Ours: the actor's outputs before the sigmoid pay a little for their squares. Where Q says nothing, weights go
        back to 0.5, from where either way is open, instead of to an end of the sigmoid.
        """
        actor = list(self.selector.actor.parameters())
        outputs = self.selector.actor(states)
        actions = self.selector.settle(torch.sigmoid(outputs))
        loss = self.settings.actor_decay * outputs.square().mean() - self.selector.value(states, actions).mean()
        grads = torch.autograd.grad(loss, actor)
        for parameter, grad in zip(actor, grads, strict=True):
            parameter.grad = grad
        self._actor_optimizer.step()
