"""Every setting of every method as frozen values; knows no method's mathematics."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["MethodConfig"]


class MethodConfig(BaseModel):
    """What is learned from the teacher, and how much each part of it counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(
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
    question_scale: float = Field(0.3, ge=0.0, description="Factor on the message before it joins the teacher's state.")
    answer_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="Dropout on the answer before the head reads it.")
    message_width: int = Field(128, ge=1, description="Width of the messages.")
    message_tokens: int = Field(1, ge=0, description="Tokens of a message; 0 sends as many as the student has.")
    pooling: Literal["mean", "cls", "attention"] = Field("mean", description="How states become message tokens.")
    codec_depth: int = Field(2, ge=1, description="Linear layers of each encoder and decoder.")
    seed: int = Field(0, ge=0, description="Seed of both codecs' initial weights and of the message dropout.")

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
