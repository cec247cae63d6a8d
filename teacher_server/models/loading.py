"""From a name or folder to a frozen teacher: a transformers model or a trained student; knows no session."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    T5EncoderModel,
)
from transformers.utils import cached_file

from command_config import hint
from student_models import Student, load_student
from student_models.loading import has_own_head
from teacher_server.config import PACKAGED, ServerConfig
from teacher_server.families import ImageSettings, family_class, head_of
from teacher_server.families.cnn import GridFamily
from teacher_server.models.packaged import packaged_folder
from teacher_server.models.sharding import Shards
from teacher_server.models.split import FrozenTeacher
from teacher_server.models.spreading import Spread
from teaching_protocol.errors import ModelLoadError, TeachingError

__all__ = ["empty_teacher", "load_teacher", "spread_of"]


def load_teacher(
    name_or_folder: str | Path,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    image_size: int | None = None,
    spread: Spread | Shards | None = None,
) -> FrozenTeacher:
    """Loads, places and freezes a teacher; with its head where its config names one that gives logits.

    Args:
        name_or_folder: a Hugging Face model name, a folder with config.json and safetensors weights, the folder of a
            training run, a folder that `Student.save` wrote, or the name of a packaged teacher.
        dtype: float32 | bfloat16 | float16.
        device: auto (the first GPU, or else the CPU), or a torch device.
        trust_remote_code: whether code that comes with the model may run.
        image_size: side in pixels that a convolutional teacher's images are brought to; None is the model's own.
        spread: over which devices or processes the weights are spread, in place of `device`; None puts all on one.

    Raises:
        UnsupportedFamily: a model type without an adapter.
        ModelLoadError: whatever else keeps the model from loading; the text says what to do.
    """
    shown = _shown(str(name_or_folder))
    name = _place(str(name_or_folder))
    place, kind = _device(device), _dtype(dtype)
    student = _student_folder(Path(name))
    if student is not None:
        _check_resized(image_size, shown, resizable=False)
        _check_whole(spread, shown)
        return FrozenTeacher(_student(student, place, kind), shown)
    config = _config(name)
    family = family_class(str(config["model_type"]))
    _check_resized(image_size, shown, resizable=issubclass(family, GridFamily))
    if issubclass(family, GridFamily):
        _check_whole(spread, shown)
    where = {"device_map": {"": place}}
    if spread is not None:
        where = spread.options(_without_weights(name, config, trust_remote_code))
    model = _model(name, config, place, **where, dtype=kind, trust_remote_code=trust_remote_code)
    if family.modality == "text":
        return FrozenTeacher(model, shown, tokenizer=_tokenizer(name, trust_remote_code))
    image = _image_settings(name, model)
    return FrozenTeacher(model, shown, image=image if image_size is None else replace(image, size=image_size))


def empty_teacher(
    name_or_folder: str | Path,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    image_size: int | None = None,
) -> FrozenTeacher:
    """The teacher's shapes without its numbers: weights on the meta device, where they take no memory; no tokenizer.

    A trained student is small and comes with its weights. Raises and takes what `load_teacher` does.
    """
    shown, kind = _shown(str(name_or_folder)), _dtype(dtype)
    name = _place(str(name_or_folder))
    student = _student_folder(Path(name))
    if student is not None:
        return FrozenTeacher(_student(student, torch.device("cpu"), kind), shown)
    config = _config(name)
    family = family_class(str(config["model_type"]))
    model = _without_weights(name, config, trust_remote_code).to(kind)
    model.tie_weights()  # which came apart when each was put on the meta device
    if family.modality == "text":
        return FrozenTeacher(model, shown)
    image = _image_settings(name, model)
    return FrozenTeacher(model, shown, image=image if image_size is None else replace(image, size=image_size))


def _without_weights(name: str, config: dict[str, Any], trust_remote_code: bool) -> PreTrainedModel:
    loader, _ = _loader(config)
    with init_empty_weights(include_buffers=False):
        whole = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        model: PreTrainedModel = loader.from_config(whole) if hasattr(loader, "from_config") else loader(whole)
    return model


def spread_of(config: ServerConfig) -> Spread | None:
    """How a configuration has the weights spread; None puts them on one device."""
    if config.device_map is None:
        return None
    return Spread(config.device_map, config.device_memory, config.offload_folder)


def _check_whole(spread: object | None, shown: str) -> None:
    if spread is not None:
        raise ModelLoadError(
            f"device_map: {shown} is a trained student or a convolutional model, which is small and lies on one device; leave it away"
        )


def _check_resized(image_size: int | None, shown: str, resizable: bool) -> None:
    if image_size is not None and not resizable:
        raise ModelLoadError(
            f"image_size is {image_size}, but {shown} is no convolutional image model and takes one size only; "
            "leave image_size away"
        )


def _shown(name: str) -> str:
    """What students are told: a hub's name as it is, of a folder no more than its own name."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _place(name: str) -> str:
    """The name or folder to load: of a packaged teacher its folder, of a run with a transformers student the student's."""
    own = Path(name) / "student"
    if not (own / "student.json").is_file() and has_own_head(own):
        return str(own)
    return str(packaged_folder(name) or name)


def _student_folder(folder: Path) -> Path | None:
    """Where the trained student of a run folder or a student's own folder lies, if it is one."""
    if (folder / "student.json").is_file():
        return folder
    return folder / "student" if (folder / "student").is_dir() else None


def _student(folder: Path, place: torch.device, dtype: torch.dtype) -> Student:
    try:
        return load_student(folder).to(place, dtype)
    except TeachingError:
        raise
    except Exception as error:  # sizes of a card can be wrong in as many ways as there are layers
        raise ModelLoadError(
            f"the student in {folder} does not load ({type(error).__name__}: {_line(error)}); train or save it again"
        ) from error


def _dtype(dtype: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelLoadError(f"dtype {dtype!r} is not served; use one of {', '.join(known)}")
    return known[dtype]


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(
            f"device {device!r} cannot be used ({_line(error)}); use auto, cpu, or a device of this machine such as cuda:0"
        ) from error
    return place


def _config(name: str) -> dict[str, Any]:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{name} has no config.json; give a folder written by save_pretrained(), or of a run that saved a student"
        )
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~"))):
        raise ModelLoadError(f"{name} is no folder; give a Hugging Face model name or an existing folder")
    try:
        config: dict[str, Any] = PreTrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"no configuration of {name} could be read: there is no such folder here, and as a model's name it was not found "
            f"({_line(error)}); give an existing folder, or a model name that this machine has or can fetch{hint(name, PACKAGED)}"
        ) from error
    if "model_type" not in config:
        raise ModelLoadError(
            f"config.json of {name} names no model_type; give a model, or a run that has saved its `student`"
        )
    return config


def _model(name: str, config: dict[str, Any], place: torch.device, **options: Any) -> PreTrainedModel:
    """Weights a checkpoint lacks are drawn from a fixed seed, so that loading twice gives the same model."""
    loader, head = _loader(config)
    options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            torch.manual_seed(0)
            model, info = loader.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelLoadError(
            f"the weights of {name} do not load ({_line(error)}); give a model with whole safetensors files that fit "
            "its config.json (save_pretrained() writes them; pickled .bin weights are refused)"
        ) from error
    _drop_missing(model, sorted(info["missing_keys"]), name, head)
    return model


def _loader(config: dict[str, Any]) -> tuple[Any, str]:
    heads = {
        "sequence_classification": AutoModelForSequenceClassification,
        "token_classification": AutoModelForTokenClassification,
        "causal_lm": AutoModelForCausalLM,
        "image_classification": AutoModelForImageClassification,
    }
    if config["model_type"] == "t5":
        return T5EncoderModel, ""
    architectures = config.get("architectures") or [""]
    head = head_of(architectures[0])
    return heads.get(head, AutoModel), head


def _drop_missing(model: PreTrainedModel, missing: list[str], name: str, head: str) -> None:
    """A base model may come without its pooler, which nothing here reads; nothing else may be missing."""
    base = model.base_model
    if missing and not head and all("pooler." in key for key in missing):
        base.pooler = None
    elif missing:
        raise ModelLoadError(
            f"{name} lacks {len(missing)} weights, first {missing[0]}; give a model whose weights fit its config.json"
        )


def _tokenizer(name: str, trust_remote_code: bool) -> Any | None:
    folder = Path(name)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The tokenizers library raises bare Exception for a broken file.
        raise ModelLoadError(
            f"the tokenizer of {name} does not load ({_line(error)}); repair its files, or remove them: ids only"
        ) from error


def _image_settings(name: str, model: PreTrainedModel) -> ImageSettings:
    """Size from the model's config, or else from preprocessor_config.json, which also has mean and std."""
    path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    found: dict[str, Any] = json.loads(Path(path).read_text("utf-8")) if path else {}
    asked = found.get("crop_size") or found.get("size") or ImageSettings.size
    size = getattr(model.config, "image_size", None) or asked
    channels = int(model.config.num_channels)
    mean, std = (tuple(found.get(key) or (0.5,) * channels) for key in ("image_mean", "image_std"))
    if len(mean) != channels or len(std) != channels:
        raise ModelLoadError(
            f"preprocessor_config.json of {name} has {len(mean)} means and {len(std)} deviations, "
            f"expected {channels} of each; repair it"
        )
    if model.config.model_type == "efficientnet" and found.get("include_top"):
        std = tuple(value * value for value in std)  # its image processor divides by std twice
    return ImageSettings(_side(size), mean, std)


def _side(size: Any) -> int:
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if isinstance(size, int) else int(size[0])


def _line(error: BaseException) -> str:
    """The first line of an error of a library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
