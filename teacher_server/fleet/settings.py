"""What a fleet of teachers can be told, as one frozen value; knows no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FleetSettings"]


class FleetSettings(BaseModel):
    """A fleet, beside the configuration of each of its teachers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")] = Field(
        "teachers", description="What the fleet is called; one Ray cluster may have several."
    )
    replicas: int = Field(2, ge=1, description="Teachers at the start.")
    least: int | None = Field(None, ge=1, description="Fewest teachers; None is as many as at the start.")
    most: int | None = Field(None, ge=1, description="Most teachers; None is as many as at the start.")
    host: str = Field("127.0.0.1", description="Address the directory's port binds.")
    port: int = Field(
        50050, ge=0, le=65535, description="gRPC port of the directory; 0 takes a free one and prints it."
    )
    ray: str | None = Field(
        None,
        description="Address of the Ray cluster, or `auto`; None takes RAY_ADDRESS, or starts Ray on this machine.",
    )
    cpus: float = Field(1.0, ge=0, description="CPUs that Ray keeps for each teacher.")
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs that Ray keeps for each; None is one where the cluster has any, or as many as a split or mapped teacher uses.",
    )
    max_restarts: int = Field(
        10,
        ge=-1,
        description="How often Ray starts a teacher that died again before its place is given up; -1: always.",
    )
    up_queue_s: float = Field(
        0.5, gt=0, description="Seconds that calls wait, in the mean, above which one teacher joins."
    )
    down_queue_s: float = Field(0.02, ge=0, description="The same below which one leaves.")
    up_after_s: float = Field(15.0, ge=0, description="Seconds it must have been above before.")
    down_after_s: float = Field(300.0, ge=0, description="Seconds it must have been below before.")
    beat_s: float = Field(0.5, gt=0, description="Seconds from one report of a teacher to the next.")
    stale_s: float = Field(3.0, gt=0, description="Seconds without a report after which students are not sent there.")
    hung_s: float = Field(
        30.0, gt=0, description="Seconds without a report after which a teacher is killed, and started again."
    )
    room_s: float = Field(
        300.0,
        gt=0,
        description="Seconds that a teacher may wait for room in the cluster before the fleet makes do with fewer, or ends where none serves.",
    )
    targets: Path | None = Field(
        None, description="File that is kept up to date with the metrics ports, for Prometheus' file_sd_configs."
    )
    metrics_port: int = Field(
        0, ge=-1, le=65535, description="Port of the fleet's own metrics; 0 takes a free one, -1 opens none."
    )

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most teachers."""
        return self.least or self.replicas, self.most or self.replicas

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least, most = self.bounds
        if not least <= self.replicas <= most:
            raise ValueError(f"replicas: received {self.replicas}, expected min to max, {least} to {most}")
        if self.down_queue_s >= self.up_queue_s:
            raise ValueError(
                f"down_queue_s: received {self.down_queue_s}, expected less than up_queue_s, {self.up_queue_s}"
            )
        if self.hung_s < self.stale_s:
            raise ValueError(f"hung_s: received {self.hung_s}, expected stale_s, {self.stale_s}, or more")
        return self
