"""The methods that are compared and the settings tried out for each; a table to be read and edited."""

from __future__ import annotations

from typing import Any

from student_client.compare.suites import Role, Variant

__all__ = ["CONTRASTS", "GRID", "VARIANTS"]

Settings = dict[str, Any]


def _grid(usual: Settings, other: Settings) -> tuple[Settings, ...]:
    """Three trials: a method's usual setting at two learning rates, another setting at the second."""
    return {"training.lr": 1e-3, **usual}, {"training.lr": 3e-3, **usual}, {"training.lr": 3e-3, **other}


GRID = tuple({"training.lr": rate} for rate in (1e-3, 3e-3, 5e-4))
"""Trials of a variant without a grid of its own."""

_TALKING = _grid({"method.w_interact": 1.0}, {"method.w_interact": 0.3})
_COMMITTEE = _grid({"method.committee.weight": 1.0}, {"method.committee.weight": 0.3})
_BOTH: tuple[Role, ...] = ("foundation", "complementary")


def _weights(name: str, usual: float = 1.0, other: float = 0.1) -> tuple[Settings, ...]:
    return _grid({f"method.{name}": usual}, {f"method.{name}": other})


_BASELINES = {
    "task_only": Variant(methods=("task_only",), teachers=(), about="the labels alone"),
    "soft_labels": Variant(
        methods=("soft_labels",),
        grid=_grid({"method.soft_labels.temperature": 2.0}, {"method.soft_labels.temperature": 1.0}),
        about="the teacher's predictions (Hinton et al.)",
    ),
    "fitnets": Variant(
        methods=("fitnets",), grid=_weights("fitnets.weight", 1.0, 10.0), about="a hidden state as a hint"
    ),
    "fitnets_soft_labels": Variant(
        methods=("fitnets", "soft_labels"), grid=_weights("fitnets.weight", 1.0, 10.0), about="hint and predictions"
    ),
    "rkd": Variant(
        methods=("rkd",),
        grid=_grid({}, {"method.rkd.w_distance": 10.0, "method.rkd.w_angle": 20.0}),
        about="distances and angles between rows",
    ),
    "pkd": Variant(methods=("pkd",), grid=_weights("pkd.weight", 1.0, 10.0), about="states of several layers"),
    "minilm": Variant(
        methods=("minilm",), grid=_weights("minilm.weight", 1.0, 10.0), about="relations of the last layer"
    ),
    "one_way": Variant(methods=("one_way",), grid=_TALKING, about="the codec of talking, and no question"),
    "one_way_no_labels": Variant(
        methods=("one_way",),
        grid=_TALKING,
        settings={"method.w_answer_task": 0.0, "method.w_answer_labels": 0.0},
        about="one_way without answer labels",
    ),
    "averaged": Variant(
        methods=("averaged",), teachers=_BOTH, grid=_weights("averaged.w_features"), about="the mean of both teachers"
    ),
    "soft_labels_complementary": Variant(
        methods=("soft_labels",),
        teachers=("complementary",),
        grid=_grid({"method.soft_labels.temperature": 2.0}, {"method.soft_labels.temperature": 1.0}),
        about="soft labels of the complementary teacher",
    ),
    "fixed_mix": Variant(
        methods=("fixed_mix",),
        grid=_grid({}, {"method.selection.mix": [1.0, 1.0, 0.1, 0.1]}),
        about="four kinds of knowledge, always the same weights",
    ),
    "random_soft": Variant(methods=("random_soft",), about="random weights at every step"),
    "random_hard": Variant(methods=("random_hard",), about="random kinds at every step"),
}


def _selected(learning: Settings, about: str, settings: Settings | None = None, **fields: Any) -> Variant:
    """Knowledge selection. Its trials are its selector's episodes; its learning rate is the one that the others mostly choose."""
    chosen = {"training.lr": 3e-3, **(settings or {})}
    return Variant(methods=("selection",), selector=learning, settings=chosen, about=about, **fields)


_METHODS = {
    "talking": Variant(methods=("talking",), grid=_TALKING, about="Talking Models"),
    "talking_soft_labels": Variant(
        methods=("talking", "soft_labels"), grid=_TALKING, about="Talking Models with soft labels"
    ),
    "talking_fitnets": Variant(
        methods=("talking", "fitnets"), grid=_weights("fitnets.weight", 1.0, 10.0), about="Talking Models with a hint"
    ),
    "committee": Variant(methods=("committee",), teachers=_BOTH, grid=_COMMITTEE, about="DiverseDistill"),
    "committee_labels": Variant(
        methods=("committee",),
        teachers=_BOTH,
        grid=_COMMITTEE,
        settings={"method.committee.w_labels": 1.0, "method.committee.importance_from": "labels"},
        about="DiverseDistill, and the teachers' predictions by importance",
    ),
    "committee_tau": Variant(
        methods=("committee",),
        teachers=_BOTH,
        grid=_COMMITTEE,
        settings={"method.committee.tau": 0.4, "method.committee.filter_after": 50},
        about="DiverseDistill that does not ask teachers of little importance",
    ),
    "selection": _selected({}, "selected knowledge, soft"),
    "selection_hard": _selected({"method.selection.learning.hard": True}, "selected knowledge, hard"),
    "selection_conversation": _selected(
        {},
        "selected knowledge, the conversation among it",
        {"method.selection.kinds": ["fine_tuning", "response", "feature", "relation", "conversation"]},
    ),
}


def _without(of: str, about: str, settings: Settings, teachers: tuple[Role, ...] | None = None) -> Variant:
    """An ablation: another variant in the setting chosen for it, but for one thing."""
    whole = _METHODS[of]
    return Variant(
        methods=whole.methods,
        role="ablation",
        teachers=teachers or whole.teachers,
        settings={**whole.settings, **settings},
        settings_of=of,
        about=about,
    )


_ABLATIONS = {
    "talking_no_question": _without("talking", "no message is heard", {"method.message_dropout": 1.0}),
    "talking_message_only": _without(
        "talking", "the answer is about the message alone", {"method.answer_from": "message"}
    ),
    "talking_two_rounds": _without("talking", "two rounds", {"method.rounds": 2}),
    "talking_no_mc": _without("talking", "without message consistency", {"method.w_message_consistency": 0.0}),
    "talking_no_sc": _without("talking", "without state consistency", {"method.w_state_consistency": 0.0}),
    "talking_detached": _without("talking", "the answer is a fixed target", {"method.detach_target": True}),
    "committee_foundation": _without("committee", "the foundation alone", {}, ("foundation",)),
    "committee_complementary": _without("committee", "the complementary teacher alone", {}, ("complementary",)),
    "committee_from_labels": _without(
        "committee", "importance moved by labels alone", {"method.committee.importance_from": "labels"}
    ),
    "committee_no_embedding": _without(
        "committee", "without teacher embeddings", {"method.committee.embedding": False}
    ),
    "committee_uniform": _without(
        "committee", "all teachers count the same", {"method.committee.importance": "uniform"}
    ),
    "committee_no_question": _without("committee", "teachers speak unasked", {"method.committee.question": "none"}),
    "selection_no_exploration": _selected(
        {"method.selection.learning.eta": 0.0}, "without the exploration reward", role="ablation"
    ),
    "selection_every_step": _selected(
        {
            "method.selection.learning.phase_steps": 1,
            "method.selection.learning.drawn_phases": 200,  # as many steps
            "method.selection.learning.updates": 2,  # about as many updates in all
        },
        "a reward at every step instead of every phase",
        role="ablation",
    ),
    "selection_uncalibrated": _selected(
        {"method.selection.learning.calibrated": False}, "the cross-entropy as it is as reward", role="ablation"
    ),
}

_CONTROLLED = (
    "soft_labels", "fitnets", "rkd", "pkd", "minilm", "one_way", "averaged", "fixed_mix", "talking", "committee", "selection"
)  # fmt: skip


def _control(of: str) -> Variant:
    """The same method with teachers of random weights, in the setting chosen for it."""
    whole = {**_BASELINES, **_METHODS}[of]
    return Variant(
        methods=whole.methods,
        role="control",
        teachers=whole.teachers,
        weights="random",
        settings=whole.settings,
        settings_of=of,
        about=f"{of}, with teachers of random weights",
    )


VARIANTS: dict[str, Variant] = {
    **{name: variant.model_copy(update={"role": "baseline"}) for name, variant in _BASELINES.items()},
    **_METHODS,
    **_ABLATIONS,
    **{f"{name}~random": _control(name) for name in _CONTROLLED},
}
"""Every variant of the suites text, ratings and vision, in the order of their tables."""

CONTRASTS = (
    ("talking", "one_way"),
    ("talking", "soft_labels"),
    ("talking_soft_labels", "soft_labels"),
    ("talking_fitnets", "fitnets"),
    ("talking_fitnets", "fitnets_soft_labels"),
    ("one_way", "one_way_no_labels"),
    ("committee", "averaged"),
    ("committee_labels", "averaged"),
    ("committee_labels", "soft_labels_complementary"),
    ("committee", "soft_labels_complementary"),
    ("committee", "committee_tau"),
    ("selection", "fixed_mix"),
    ("selection", "random_soft"),
    ("selection_hard", "random_hard"),
    ("selection", "selection_hard"),
    ("selection_conversation", "selection"),
    ("selection", "selection_uncalibrated"),
    ("selection", "selection_every_step"),
    ("selection", "selection_no_exploration"),
)
"""What the papers claim, the better one first."""
