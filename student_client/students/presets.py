"""Sizes of a new student by modality and preset; knows no layer."""

from __future__ import annotations

from student_client.config import StudentConfig
from teaching_protocol.errors import ConfigError

__all__ = ["PRESETS", "sizes_of"]

PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "text": {
        "tiny": {"width": 32, "layers": 2, "heads": 2, "vocabulary_size": 512, "max_tokens": 32},
        "small": {"width": 128, "layers": 4, "heads": 4, "vocabulary_size": 8192, "max_tokens": 128},
        "complementary": {"width": 256, "layers": 6, "heads": 8, "vocabulary_size": 16384, "max_tokens": 128},
    },
    "ratings": {
        "tiny": {"width": 16, "layers": 2},
        "small": {"width": 64, "layers": 4},
        "complementary": {"width": 128, "layers": 6},
    },
    "image": {
        "tiny": {"width": 16, "layers": 2},
        "small": {"width": 32, "layers": 4},
        "complementary": {"width": 96, "layers": 6},
    },
}
"""Sizes of a student by modality and preset; a setting that is missing there does not exist for that modality."""


def sizes_of(config: StudentConfig, modality: str) -> dict[str, int]:
    """The preset's sizes with the overrides of `config` in their place.

    Raises:
        ConfigError: an override that this modality's student does not have, a width its heads do not divide, or
            a modality without a student.
    """
    if modality not in PRESETS:
        raise ConfigError(
            f"modality: received {modality!r}, but students exist for {', '.join(PRESETS)}; use one of them"
        )
    sizes = dict(PRESETS[modality][config.size])
    for name in ("width", "layers", "heads", "vocabulary_size", "max_tokens"):
        value = getattr(config, name)
        if value is not None and name not in sizes:
            raise ConfigError(f"student.{name}: received {value}, but a student of {modality} has none; leave it out")
        if value is not None:
            sizes[name] = value
    if sizes["width"] % sizes.get("heads", 1):
        raise ConfigError(f"student.width: received {sizes['width']}, expected a multiple of heads = {sizes['heads']}")
    return sizes
