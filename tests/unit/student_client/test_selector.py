"""The selector alone: state, actions, what is saved; and its learning against plain references."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from student_client.method_config import SelectorLearningConfig
from student_client.selection.learning import (
    Learner,
    Phase,
    Transition,
    critic_target,
    exploration_reward,
    phase_reward,
    scaled_rewards,
)
from student_client.selection.selector import Selector, SelectorCard, hardened
from teaching_protocol.errors import ConfigError, NonFiniteError

KINDS = ("fine_tuning", "response", "feature", "relation")


def selector(seed: int = 0, **fields: Any) -> Selector:
    return Selector(SelectorCard(**({"kinds": KINDS, "student_width": 6, "teacher_width": 10} | fields)), seed)


def look(seed: int, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=draw), torch.randn(rows, 10, generator=draw)


def learning(**fields: Any) -> SelectorLearningConfig:
    return SelectorLearningConfig(**{"drawn_phases": 0, **fields})


def test_the_state_is_the_batch_mean_of_two_mlps() -> None:
    """Written out in float64: LayerNorm, linear, ReLU, linear, mean over rows, both sides joined."""
    found, parts = selector(), []
    for net, each in zip((found.student_state, found.teacher_state), look(1), strict=True):
        weights = {name: value.double() for name, value in net.state_dict().items()}
        rows = []
        for row in each.double():
            x = (row - row.mean()) / ((row - row.mean()).square().mean() + 1e-5).sqrt()
            x = (weights["0.weight"] @ x + weights["0.bias"]).clamp(min=0)
            rows.append(weights["2.weight"] @ x + weights["2.bias"])
        parts.append(sum(rows) / len(rows))
    torch.testing.assert_close(found.state(*look(1)).double(), torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_layers_are_as_many_as_the_paper_says() -> None:
    found = selector()
    layers = [
        sum(isinstance(each, torch.nn.Linear) for each in part)
        for part in (found.student_state, found.teacher_state, found.actor, found.critic)
    ]
    assert layers == [2, 2, 3, 3]


def test_soft_actions_lie_between_0_and_1_and_a_new_selector_prefers_nothing() -> None:
    states = torch.stack([selector().state(*look(seed)) for seed in range(20)])
    soft = selector().act(states)
    assert soft.shape == (20, 4)
    assert ((soft > 0.4) & (soft < 0.6)).all()
    extreme = selector().act(states * 1e6)
    assert ((extreme >= 0) & (extreme <= 1)).all()


def test_hard_actions_are_0_or_1_and_never_all_0() -> None:
    draw = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 0.7
    hard = hardened(draw, 0.5)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard[draw >= 0.5], torch.ones_like(hard[draw >= 0.5]))
    assert (hard.sum(-1) >= 1).all()
    low = draw.amax(-1) < 0.5
    assert low.any()
    assert (hard[low].sum(-1) == 1).all()
    action = selector(is_hard=True).choose(*look(3))
    assert set(action.tolist()) <= {0.0, 1.0}


def test_the_gradient_passes_a_hard_action_straight_through() -> None:
    soft = torch.tensor([0.2, 0.6, 0.9], requires_grad=True)
    (hardened(soft, 0.5) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert soft.grad is not None
    assert soft.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_selector_is_drawn_from_its_seed_and_moves_no_random_state() -> None:
    before = torch.get_rng_state()
    first, again, other = selector(1), selector(1), selector(2)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("is_hard", [False, True])
def test_what_is_saved_comes_back_and_is_frozen(tmp_path: Path, is_hard: bool) -> None:
    first = selector(3, is_hard=is_hard, threshold=0.501)
    first.save(tmp_path / "selector")
    first.save(tmp_path / "selector")  # in the place of the old one
    assert sorted(path.name for path in (tmp_path / "selector").iterdir()) == ["selector.json", "selector.safetensors"]
    again = Selector.load(tmp_path / "selector")
    assert again.card == first.card
    assert torch.equal(first.choose(*look(1)), again.choose(*look(1)))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_what_cannot_be_loaded_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="student-client select"):
        Selector.load(tmp_path / "nowhere")
    selector().save(tmp_path)
    card = json.loads((tmp_path / "selector.json").read_text())
    for spoiled, said in (
        ({**card, "version": 99}, "version 99"),
        ({**card, "student_width": 7}, "no selector that can be read"),
        ({**card, "colour": "red"}, "no selector that can be read"),
        ([], "no selector that can be read"),
    ):
        (tmp_path / "selector.json").write_text(json.dumps(spoiled))
        with pytest.raises(ConfigError, match=said):
            Selector.load(tmp_path)
    (tmp_path / "selector.json").write_text(json.dumps(card))
    (tmp_path / "selector.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no selector that can be read"):
        Selector.load(tmp_path)


def test_other_widths_and_kinds_are_refused_with_both_numbers() -> None:
    found = selector()
    with pytest.raises(ConfigError, match=r"students of width 6, received one of width 8.*student-client select"):
        found.state(torch.zeros(2, 8), torch.zeros(2, 10))
    with pytest.raises(ConfigError, match=r"teachers of width 10, received one of width 12"):
        found.state(torch.zeros(2, 6), torch.zeros(2, 12))
    with pytest.raises(ConfigError, match=r"received fine_tuning,feature, expected fine_tuning,response"):
        found.check_kinds(("fine_tuning", "feature"))


def test_an_improving_development_loss_is_a_positive_reward() -> None:
    assert phase_reward(0.9, 0.6, exploration=0.0, eta=0.1) == pytest.approx(0.3)
    assert phase_reward(0.6, 0.9, exploration=0.0, eta=0.1) == pytest.approx(-0.3)
    assert phase_reward(0.5, 0.5, exploration=-2.0, eta=0.1) == pytest.approx(-0.2)


def test_exploration_rewards_what_is_new() -> None:
    first, second = [0.9, 0.1, 0.4], [0.2, 0.8, 0.3]
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    cosine = dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    earlier, now = torch.tensor(first), torch.tensor(second)
    assert exploration_reward(now, [now, earlier], is_hard=False) == pytest.approx(-cosine)
    assert exploration_reward(now, [earlier, now], is_hard=False) == pytest.approx(-1.0)
    assert exploration_reward(now, [], is_hard=False) == 0.0
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    assert exploration_reward(a, [a, b, a, a], is_hard=True) == -3.0
    assert exploration_reward(b, [a, a], is_hard=True) == 0.0


def test_the_critic_target_in_both_readings() -> None:
    reward, following = torch.tensor([1.0, -2.0]), torch.tensor([10.0, 0.0])
    assert critic_target(reward, following, 0.5, "standard").tolist() == [6.0, -2.0]
    assert critic_target(reward, following, 0.5, "printed").tolist() == [10.5, -1.0]


def copied(found: Selector) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in found.state_dict().items()}


def test_the_actor_follows_the_gradient_of_q_and_moves_nothing_else() -> None:
    found = selector(5)
    states = torch.stack([found.state(*look(seed)) for seed in range(8)]).detach()
    learner = Learner(found, learning(lr=1e-2, actor_decay=0.0), seed=0)
    before, value = copied(found), found.value(states, found.act(states)).mean().item()
    learner._improve_actor(states)
    moved = {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"actor"}
    assert all(parameter.grad is None for name, parameter in found.named_parameters() if not name.startswith("actor"))
    assert found.value(states, found.act(states)).mean().item() > value
    # the gradient is dQ/da da/dtheta, by the chain rule
    actions = found.act(states)
    free = actions.detach().requires_grad_()
    (slope,) = torch.autograd.grad(-found.value(states, free).mean(), free)
    wanted = torch.autograd.grad(actions, list(found.actor.parameters()), slope)
    learner._improve_actor(states)
    for parameter, grad in zip(found.actor.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_where_q_says_nothing_weights_go_back_to_the_middle() -> None:
    found = selector(5)
    with torch.no_grad():
        found.actor[-1].bias += torch.tensor([4.0, -4.0, 4.0, -4.0])
        for parameter in found.critic[-1].parameters():
            parameter.zero_()
    states = torch.stack([found.state(*look(seed)) for seed in range(8)]).detach()
    before = (found.act(states) - 0.5).abs()
    for decay, falls in ((0.0, False), (0.01, True)):
        learner = Learner(found, learning(lr=1e-2, actor_decay=decay), seed=0)
        for _ in range(20):
            learner._improve_actor(states)
        assert bool(((found.act(states) - 0.5).abs() < before).all()) is falls


def test_an_update_fits_the_critic_to_its_target() -> None:
    """The error it reports is mean (Q(s, a) - y)^2, y written out, and it falls."""
    found, settings = selector(7), learning(gamma=0.5, lr=1e-2)
    action = torch.tensor([0.1, 0.9, 0.5, 0.3])
    transitions = [
        Transition(look(1), action, 0.5, look(2)),
        Transition(look(2), 1 - action, -0.25, None),
    ]
    with torch.no_grad():
        state, following = found.state(*look(1)), found.state(*look(2))
        spread = math.sqrt((0.5**2 + 0.25**2) / 2)
        targets = [0.5 / spread + 0.5 * found.value(following, found.act(following)).item(), -0.25 / spread]
        values = [found.value(state, action).item(), found.value(following, 1 - action).item()]
    learner = Learner(found, settings, seed=0)
    before = copied(found)
    first = learner.update(transitions)
    assert first == pytest.approx(sum((v - y) ** 2 for v, y in zip(values, targets, strict=True)) / 2, rel=1e-4)
    moved = {name.split(".")[0] for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"student_state", "teacher_state", "critic", "actor"}
    for _ in range(60):
        last = learner.update(transitions)
    assert last < first / 10


def episode(learner: Learner, phases: int, steps: int = 3, start: float = 1.0) -> None:
    learner.begin(start)
    for phase in range(phases):
        for step in range(steps):
            learner.act(*look(100 * phase + step))
        learner.measure(start - 0.1 * (phase + 1))
    learner.finish()


def test_it_updates_after_each_phase_and_reports_each() -> None:
    said: list[Phase] = []
    learner = Learner(selector(), learning(eta=0.0, updates=3), seed=0, report=said.append)
    for _ in range(2):
        episode(learner, phases=4)
    assert learner.updates == 3 * 8
    assert [(each.episode, each.phase) for each in said] == [(e, p) for e in (1, 2) for p in (1, 2, 3, 4)]
    assert [each.reward for each in said] == pytest.approx([0.1] * 8)
    assert [each.development_loss for each in said[:4]] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert all(0 <= weight <= 1 for each in said for weight in each.action)


def test_a_transition_is_state_mean_action_reward_and_the_next_state() -> None:
    learner = Learner(selector(), learning(eta=0.5), seed=0)
    learner.begin(1.0)
    actions = [learner.act(*look(step)) for step in range(2)]
    learner.measure(0.7)
    learner.act(*look(9))
    learner.act(*look(10))
    learner.measure(0.9)
    learner.finish()
    first, last = learner._memory
    assert torch.equal(first.look[0], look(0)[0])
    torch.testing.assert_close(first.action, (actions[0] + actions[1]) / 2)
    assert first.reward == pytest.approx(0.3)  # nothing was before it: no exploration reward
    assert first.following is not None
    assert torch.equal(first.following[1], look(9)[1])
    cosine = torch.nn.functional.cosine_similarity(first.action, last.action, dim=0).item()
    assert last.reward == pytest.approx(-0.2 - 0.5 * cosine)
    assert last.following is None


def test_noise_is_held_over_a_phase_drawn_from_the_seed_and_moves_no_random_state() -> None:
    before = torch.get_rng_state()
    learner, again, other = (Learner(selector(), learning(noise=0.3), seed) for seed in (1, 1, 2))
    found = []
    for each in (learner, again, other):
        each.begin(1.0)
        first, second = each.act(*look(0)), each.act(*look(0))
        assert torch.equal(first, second), "the noise of a phase is one"
        each.measure(0.5)
        found.append((first, each.act(*look(0))))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], found[2][0])
    assert not torch.equal(found[0][0], found[0][1])
    quiet = Learner(selector(), learning(noise=0.0), 1)
    quiet.begin(1.0)
    assert torch.equal(quiet.act(*look(0)), selector().choose(*look(0)))


def test_the_first_phases_are_drawn_evenly_and_the_actor_is_asked_after_them() -> None:
    """Of 400 phases of any episode the first 399 are draws between 0 and 1; the last is the actor's."""
    learner = Learner(selector(), learning(noise=0.0, drawn_phases=399, updates=1, memory=7, lr=1e-12), seed=0)
    actions = []
    for _ in range(4):
        learner.begin(0.0)
        for _ in range(100):
            actions.append(learner.act(*look(0)))
            assert torch.equal(learner.act(*look(1)), actions[-1]) or len(actions) == 400
            learner.measure(0.0)
        learner.finish()
    drawn = torch.stack(actions[:399])
    assert drawn.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.06)
    assert drawn.std(0).tolist() == pytest.approx([1 / math.sqrt(12)] * 4, abs=0.03)
    torch.testing.assert_close(actions[-1], selector().choose(*look(0)))


def test_rewards_are_scaled_by_their_root_mean_square_and_bounded() -> None:
    rewards = torch.tensor([0.01, -0.02, 0.02, 1.0])
    spread = math.sqrt((0.01**2 + 2 * 0.02**2 + 1.0) / 4)
    expected = torch.tensor([0.01 / spread, -0.02 / spread, 0.02 / spread, 1.5])
    torch.testing.assert_close(scaled_rewards(rewards, 1.5), expected)
    assert scaled_rewards(torch.zeros(3), 2.0).tolist() == [0.0] * 3


def test_states_of_many_batches_are_those_of_each() -> None:
    found, looks = selector(), [look(1), look(2, rows=3), look(3, rows=1)]
    torch.testing.assert_close(found.states(looks), torch.stack([found.state(*each) for each in looks]))


def test_noise_goes_on_from_phase_to_phase_and_keeps_its_deviation() -> None:
    """Phases of an actor at 0.5: deviation 0.1, correlation from one to the next 0.8."""
    learner = Learner(selector(), learning(noise=0.1, noise_kept=0.8, lr=1e-12, memory=1), seed=0)
    with torch.no_grad():
        for parameter in learner.selector.actor[-1].parameters():
            parameter.zero_()
    learner.begin(0.0)
    noise = []
    for _ in range(300):
        noise.append(learner.act(*look(0)) - 0.5)
        learner.measure(0.0)
    found = torch.stack(noise)  # [phases, kinds]
    assert found.std().item() == pytest.approx(0.1, rel=0.15)
    correlation = (found[1:] * found[:-1]).mean() / found.square().mean()
    assert correlation.item() == pytest.approx(0.8, abs=0.06)


def test_hard_actions_of_a_learner_are_hard_and_their_repetition_costs() -> None:
    learner = Learner(selector(is_hard=True), learning(noise=0.0, eta=0.1, lr=1e-12), seed=0)
    learner.begin(1.0)
    for _ in range(3):
        action = learner.act(*look(0))
        assert set(action.tolist()) <= {0.0, 1.0}
        learner.measure(1.0)
    learner.finish()
    assert [each.reward for each in learner._memory] == pytest.approx([0.0, -0.1, -0.2])


def test_it_learns_which_kind_pays() -> None:
    """A reward that only the first kind's weight brings: its weight rises above the others'."""
    found = selector(1)
    learner = Learner(found, learning(eta=0.0, noise=0.3, lr=1e-2, gamma=0.0), seed=0)
    for _ in range(8):
        learner.begin(0.0)
        loss = 0.0
        for phase in range(10):
            action = learner.act(*look(phase))
            loss -= float(action[0] - action[2])
            learner.measure(loss)
        learner.finish()
    chosen = found.choose(*look(77))
    assert chosen[0] > 0.8
    assert chosen[2] < 0.2


def test_a_development_loss_that_is_no_number_is_refused() -> None:
    learner = Learner(selector(), learning(), seed=0)
    learner.begin(1.0)
    learner.act(*look(0))
    with pytest.raises(NonFiniteError, match="development loss is nan"):
        learner.measure(math.nan)
