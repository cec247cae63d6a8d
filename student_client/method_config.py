"""Every setting of every method as frozen values; knows no method's mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

__all__ = [
    "METHOD_NAMES",
    "AveragedConfig",
    "CommitteeConfig",
    "FitNetsConfig",
    "MethodConfig",
    "MethodName",
    "MiniLMConfig",
    "PkdConfig",
    "RkdConfig",
    "SelectionConfig",
    "SelectorLearningConfig",
    "SoftLabelsConfig",
]


MethodName = Literal[
    "task_only",
    "soft_labels",
    "fitnets",
    "rkd",
    "pkd",
    "minilm",
    "averaged",
    "fixed_mix",
    "random_soft",
    "random_hard",
    "selection",
    "one_way",
    "talking",
    "committee",
]
"""The names of the methods that come along; `methods.METHODS` has what each is."""

METHOD_NAMES: list[str] = list(get_args(MethodName))
"""What a configuration may name: these, and what `methods.register` adds."""


def _is_known(name: str) -> str:
    if name not in METHOD_NAMES:
        known = ", ".join(map(repr, METHOD_NAMES))
        raise PydanticCustomError("literal_error", "one of {known}", {"known": known})
    return name


class SoftLabelsConfig(BaseModel):
    """Soft labels: the teacher's own predictions for the task."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0.0, description="Weight of the loss against what the teacher predicts.")
    temperature: float = Field(2.0, gt=0.0, description="Temperature of both softmaxes; a regression has none.")
    top: int = Field(
        64, ge=1, description="Next tokens only: how many of the teacher's likeliest are compared one by one."
    )
    head: str | None = Field(
        None,
        min_length=1,
        description="Next tokens only: the teacher's model, by name or folder, whose head is held here so that all are compared.",
    )


class FitNetsConfig(BaseModel):
    """FitNets: the teacher's hidden state as a hint."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0.0, description="Weight of the squared error to the hint.")
    layer: int | None = Field(None, ge=0, description="Teacher's layer that gives the hint; None takes its exit layer.")
    at: Literal["upper", "lower"] = Field("upper", description="Student's tap that learns it: exit or entry.")
    normalise: bool = Field(True, description="Whether both sides are LayerNormed before they are compared.")


class RkdConfig(BaseModel):
    """RKD: distances and angles between the rows of a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    w_distance: float = Field(1.0, ge=0.0, description="Weight of the error of distances.")
    w_angle: float = Field(2.0, ge=0.0, description="Weight of the error of angles.")


class PkdConfig(BaseModel):
    """PKD: the direction of the states of several layers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0.0, description="Weight of the squared error of the normalised states.")
    layers: Literal["skip", "last"] = Field(
        "skip", description="Teacher's layers that the student's learn from: evenly spread, or the last ones."
    )


class MiniLMConfig(BaseModel):
    """MiniLM: how the states of the last layer relate to each other."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0.0, description="Weight of the divergence of the relations.")
    layer: int | None = Field(None, ge=0, description="Teacher's layer that is related; None takes its exit layer.")
    tokens: int = Field(
        8, ge=1, description="Segments that both sides' tokens are pooled to; 1 relates the rows of a batch instead."
    )
    relation_heads: int = Field(4, ge=1, description="Relation heads; they divide both sides' widths.")


class AveragedConfig(BaseModel):
    """Averaged teachers: soft labels of their mean, and the mean of the errors to their hints."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    w_labels: float = Field(1.0, ge=0.0, description="Weight of the loss against the mean of their predictions.")
    w_features: float = Field(1.0, ge=0.0, description="Weight of the mean squared error to their hints.")
    temperature: float = Field(2.0, gt=0.0, description="Temperature of all softmaxes; a regression has none.")
    normalise: bool = Field(True, description="Whether both sides of a hint are LayerNormed before they are compared.")


class SelectorLearningConfig(BaseModel):
    """How `student-client select` learns a selector; a run that uses one does not read it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hard: bool = Field(False, description="Whether a kind is either taken whole or left out.")
    threshold: float = Field(0.5, ge=0.0, le=1.0, description="Weight from which a hard selector takes a kind.")
    phase_steps: int = Field(10, ge=1, description="Steps of a phase: of one reward and one update.")
    development_share: float = Field(
        0.2, gt=0.0, lt=1.0, description="Part of the labelled training rows that the reward is measured on."
    )
    calibrated: bool = Field(
        True, description="Whether cross-entropy is measured at its best temperature: a sure student is no worse one."
    )
    eta: float = Field(0.01, ge=0.0, description="Weight of the exploration reward.")
    noise: float = Field(0.2, ge=0.0, description="Standard deviation of the exploration noise on the weights.")
    noise_kept: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the noise that goes on from one phase of an episode to the next."
    )
    gamma: float = Field(0.9, ge=0.0, le=1.0, description="Discount of later rewards.")
    critic_target: Literal["standard", "printed"] = Field(
        "standard", description="What Q(s, a) learns: r + gamma Q(s', a'), or gamma r + Q(s', a')."
    )
    lr: float = Field(3e-3, gt=0.0, description="Learning rate of actor and critic.")
    actor_decay: float = Field(0.1, ge=0.0, description="How strongly the actor is held near weights of 0.5.")
    memory: int = Field(1024, ge=1, description="Latest phases that an update learns from.")
    updates: int = Field(16, ge=1, description="Updates of critic and actor after each phase.")
    drawn_phases: int = Field(
        20, ge=0, description="First phases, whose weights are drawn evenly from 0 to 1, before the actor is asked."
    )
    reward_limit: float = Field(
        2.0, gt=0.0, description="Largest reward, in standard deviations of those remembered; larger ones count as it."
    )


class SelectionConfig(BaseModel):
    """Knowledge selection: several kinds of knowledge, weighed anew at every step."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    selector: Path | None = Field(None, description="Folder of a selector that `student-client select` made.")
    kinds: tuple[Literal["fine_tuning", "response", "feature", "relation", "conversation"], ...] = Field(
        ("fine_tuning", "response", "feature", "relation"), min_length=1, description="Kinds that are weighed."
    )
    mix: tuple[float, ...] = Field(
        (), description="Weights of fixed_mix, in the order of the kinds; empty takes 1 each."
    )
    skip_below: float = Field(
        0.05, ge=0.0, le=1.0, description="Weight under which a kind is neither asked of the teacher nor computed."
    )
    temperature: float = Field(2.0, gt=0.0, description="Temperature of the response knowledge.")
    segments: int = Field(8, ge=1, description="Segments that the teacher's tokens are pooled to for the relation.")
    teacher_layers: tuple[int, int] | None = Field(
        None, description="Teacher's layers of feature and relation, lower and upper; None takes entry and exit layer."
    )
    mean_decay: float = Field(
        0.99, ge=0.0, lt=1.0, description="How slowly the running means forget that the losses are divided by."
    )
    learning: SelectorLearningConfig = Field(
        default_factory=lambda: SelectorLearningConfig.model_validate({}), description="How a selector is learned."
    )

    @field_validator("kinds", "mix", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("kinds")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("name each kind once")
        return value

    @model_validator(mode="after")
    def _one_weight_each(self) -> SelectionConfig:
        if self.mix and (len(self.mix) != len(self.kinds) or min(self.mix) < 0):
            raise ValueError(
                f"mix holds {list(self.mix)}, expected a weight of 0 or more for each of {list(self.kinds)}"
            )
        return self


class CommitteeConfig(BaseModel):
    """DiverseDistill: questions to several teachers, answers weighed for each sample."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(1.0, ge=0.0, description="Weight of the error between the student's state and the answers.")
    target: Literal["each", "mixture"] = Field(
        "each", description="Whether that error is to each answer, weighed by importance, or to their mixture."
    )
    answer_labels: bool = Field(
        True, description="Whether the mixture of the answers speaks by w_answer_task and w_answer_labels, too."
    )
    question: Literal["asked", "none"] = Field(
        "asked", description="Whether teachers are asked, or say what they think of the input by themselves."
    )
    embedding: bool = Field(
        True, description="Whether teachers have embeddings, of which importance and questions are made."
    )
    embedding_width: int = Field(32, ge=1, description="Width of the teacher embeddings.")
    importance: Literal["learned", "uniform"] = Field(
        "learned", description="Whether the importance of a teacher for a sample is learned, or the same for all."
    )
    importance_from: Literal["all", "labels"] = Field(
        "all",
        description="Which losses move the importance: all, or those that look at labels; the error to the answers alone "
        "prefers the teacher that is easiest to match.",
    )
    w_labels: float = Field(
        0.0, ge=0.0, description="Weight of the teachers' own predictions by importance; of those with the task's head."
    )
    temperature: float = Field(2.0, gt=0.0, description="Temperature of these predictions.")
    tau: float = Field(
        0.0, ge=0.0, lt=1.0, description="Importance under which a teacher is not asked about a sample; less than 1/n."
    )
    filter_after: int = Field(100, ge=0, description="Training batches before `tau` counts.")
    on_missing: Literal["fail", "wait", "skip"] = Field(
        "wait",
        description="When a teacher cannot be reached: end the run, wait until it is back and wind both sides back to where "
        "they last agreed, or go on without it.",
    )
    wait_s: float = Field(300.0, gt=0.0, description="Seconds that `wait` waits for a teacher without progress.")
    retry_s: float = Field(
        3.0, ge=0.0, description="Seconds between two attempts of `skip` to reach a missing teacher."
    )


class MethodConfig(BaseModel):
    """What is learned from the teacher, and how much each part of it counts."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    names: tuple[Annotated[str, AfterValidator(_is_known)], ...] = Field(
        ("talking",), min_length=1, description="Methods whose losses are added, such as talking, soft_labels."
    )
    w_interact: float = Field(1.0, ge=0.0, description="Weight of L_interact: the answer against the student's state.")
    w_message_consistency: float = Field(0.1, ge=0.0, description="Weight of L_MC, the message consistency.")
    w_state_consistency: float = Field(0.1, ge=0.0, description="Weight of L_SC, the state consistency of both sides.")
    w_answer_task: float = Field(
        1.0, ge=0.0, description="Weight of the task loss on what the head makes of the answer."
    )
    w_answer_labels: float = Field(1.0, ge=0.0, description="Weight of the answer's prediction as a soft label.")
    consistency: Literal["contrastive", "batch_standardised", "cross", "layernorm_mse"] = Field(
        "contrastive", description="Reading of L_MC; `layernorm_mse` alone can collapse."
    )
    pairing: Literal["same_input", "question_answer"] = Field(
        "same_input", description="Which two messages L_MC compares."
    )
    temperature: float = Field(0.1, gt=0.0, description="Temperature of the contrastive consistency.")
    label_temperature: float = Field(1.0, gt=0.0, description="Temperature of the answer's soft labels.")
    rounds: int = Field(1, ge=1, description="Exchanges with the teacher in one step.")
    detach_target: bool = Field(
        False, description="Whether L_interact leaves the answer alone and moves the student only."
    )
    answer_from: Literal["message", "message_and_input"] = Field(
        "message_and_input", description="Whether the teacher's own state on the input joins its answer."
    )
    inject: Literal["replace", "add", "prefix"] = Field(
        "replace", description="How the message enters the teacher's states."
    )
    message_dropout: float = Field(0.5, ge=0.0, le=1.0, description="Share of the rows whose message is not heard.")
    silent_steps: int = Field(
        0, ge=0, description="First exchanges in which no message is heard: a one-way warm-up before the conversation."
    )
    question_scale: float = Field(0.3, ge=0.0, description="Factor on the message before it joins the teacher's state.")
    answer_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout on the answer before the head reads it.")
    message_width: int = Field(128, ge=1, description="Width of the messages.")
    message_tokens: int = Field(1, ge=0, description="Tokens of a message; 0 sends as many as the student has.")
    pooling: Literal["mean", "cls", "attention"] = Field("mean", description="How states become message tokens.")
    codec_depth: int = Field(2, ge=1, description="Linear layers of each encoder and decoder.")
    seed: int = Field(0, ge=0, description="Seed of codecs and projections, and of the message dropout.")
    soft_labels: SoftLabelsConfig = Field(
        default_factory=lambda: SoftLabelsConfig.model_validate({}), description="Settings of soft_labels."
    )
    fitnets: FitNetsConfig = Field(
        default_factory=lambda: FitNetsConfig.model_validate({}), description="Settings of fitnets."
    )
    rkd: RkdConfig = Field(default_factory=lambda: RkdConfig.model_validate({}), description="Settings of rkd.")
    pkd: PkdConfig = Field(default_factory=lambda: PkdConfig.model_validate({}), description="Settings of pkd.")
    minilm: MiniLMConfig = Field(
        default_factory=lambda: MiniLMConfig.model_validate({}), description="Settings of minilm."
    )
    averaged: AveragedConfig = Field(
        default_factory=lambda: AveragedConfig.model_validate({}), description="Settings of averaged."
    )
    committee: CommitteeConfig = Field(
        default_factory=lambda: CommitteeConfig.model_validate({}), description="Settings of committee."
    )
    selection: SelectionConfig = Field(
        default_factory=lambda: SelectionConfig.model_validate({}),
        description="Settings of selection, random_soft, random_hard and fixed_mix.",
    )

    @property
    def is_active(self) -> bool:
        """Whether any term has a weight, so that the teacher is asked at all."""
        return any(
            (
                self.w_interact,
                self.w_message_consistency,
                self.w_state_consistency,
                self.w_answer_task,
                self.w_answer_labels,
            )
        )

    @property
    def asks_about_input(self) -> bool:
        """Whether the teacher needs its own view of the example, and not the message alone."""
        about_input = self.w_message_consistency and self.pairing == "same_input"
        joins = self.answer_from == "message_and_input" or self.inject != "replace"
        return bool(joins or about_input or self.w_state_consistency)

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
