"""From what a student sends (bytes of text, images, ids, pixels) to checked model inputs; knows no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import interpolate

from teaching_protocol.errors import InvalidSetting, InvalidTensor, UnknownPort

__all__ = ["ImageInputs", "ImageSettings", "Inputs", "Tensors", "TextInputs", "Tokenize", "check_ports", "expect"]

Tensors = Mapping[str, torch.Tensor]

Tokenize = Callable[[Sequence[str], int], Sequence[Sequence[int]]]
"""The ids of each text, at most so many a text."""

_KNOWN_PORTS = ("attention_mask", "image", "input_ids", "item", "pixel_values", "text", "user")


class Inputs(Protocol):
    """Checks and prepares a teacher's own inputs."""

    @property
    def ports(self) -> tuple[str, ...]:
        """The input ports of the teacher's own input, sorted."""
        ...

    @property
    def padding(self) -> Mapping[str, int]:
        """The prepared inputs that have tokens, and what a row of them is filled up with."""
        ...

    def prepare(self, inputs: Tensors, max_tokens: int) -> dict[str, torch.Tensor]:
        """What the model takes, from the ports among `inputs` that are the teacher's own; others pass by."""
        ...

    def example(self) -> dict[str, torch.Tensor]:
        """One row that `prepare` takes."""
        ...


@dataclass(frozen=True)
class ImageSettings:
    """How the teacher wants its pixels: side in pixels, then (x / 255 - mean) / std a channel."""

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class TextInputs:
    """Prepares `text` | `input_ids` (+ `attention_mask`) for a text teacher.

    Args:
        tokenize: from texts to ids, or None: then there is no port `text`.
        vocabulary_size: ids are in [0, vocabulary_size).
        pad_id: the id put under the mask's zeros, whatever was sent there.
        empty_id: the id of the one token that an empty text becomes.
        token_limit: the most tokens of a row the teacher takes; None for no limit.
    """

    def __init__(
        self, tokenize: Tokenize | None, vocabulary_size: int, pad_id: int, empty_id: int, token_limit: int | None
    ) -> None:
        self._tokenize = tokenize
        self._one_at_a_time = threading.Lock()  # a tokenizer of transformers is set anew by every call
        self._vocabulary_size = vocabulary_size
        self._pad_id = pad_id
        self._empty_id = empty_id
        self._token_limit = token_limit

    @property
    def ports(self) -> tuple[str, ...]:
        """The input ports of the teacher's own input, sorted."""
        return ("attention_mask", "input_ids") + (("text",) if self._tokenize is not None else ())

    @property
    def padding(self) -> Mapping[str, int]:
        """The padding id, under a mask of zeros."""
        return {"attention_mask": 0, "input_ids": self._pad_id}

    def prepare(self, inputs: Tensors, max_tokens: int) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, both [batch, tokens] int64.

        `text` [batch, bytes] uint8 is UTF-8 padded with zeros; it is cut to `max_tokens` and the teacher's limit.

        Raises:
            UnknownPort: a port this teacher does not read.
            InvalidSetting: `text` and `input_ids` together.
            InvalidTensor: no input, or one whose dtype, shape or values do not fit.
        """
        check_ports(inputs, self.ports)
        if "text" in inputs and "input_ids" in inputs:
            raise InvalidSetting("received `text` and `input_ids`, which exclude each other; send one of them")
        limit = min(max_tokens, self._token_limit or max_tokens)
        if "text" in inputs:
            return self._check(self._ids(inputs["text"], limit), limit)
        return self._check(inputs, limit)

    def example(self) -> dict[str, torch.Tensor]:
        """Two ids."""
        return {name: torch.full((1, 2), value) for name, value in (("input_ids", 0), ("attention_mask", 1))}

    def _ids(self, text: torch.Tensor, limit: int) -> dict[str, torch.Tensor]:
        assert self._tokenize is not None  # else there is no such port
        with self._one_at_a_time:
            encoded = self._tokenize(_decode(text), limit)
        tokens = [torch.tensor(list(row) or [self._empty_id]) for row in encoded]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self._pad_id)
        lengths = torch.tensor([len(row) for row in tokens])
        mask = torch.arange(ids.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _check(self, inputs: Tensors, limit: int) -> dict[str, torch.Tensor]:
        ids = inputs.get("input_ids")
        if ids is None:
            raise InvalidTensor(f"no `input_ids` received; send one of {', '.join(self.ports)}")
        expect(ids, "input_ids", (torch.int64,), "[batch, tokens] int64", ids.dim() == 2 and ids.numel() > 0)
        if ids.shape[1] > limit:
            raise InvalidTensor(f"`input_ids` has {ids.shape[1]} tokens a row, the limit is {limit}; send fewer")
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        like = f"{list(ids.shape)} int64 or bool, as `input_ids`"
        expect(mask, "attention_mask", (torch.int64, torch.bool), like, mask.shape == ids.shape)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocabulary_size:
            raise InvalidTensor(
                f"`input_ids` holds ids from {low} to {high}, expected 0 to {self._vocabulary_size - 1}; "
                "use the tokenizer of this teacher, or send `text`"
            )
        if not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any(dim=1).all()):
            raise InvalidTensor("`attention_mask` must hold 0 and 1 only, and a 1 in every row; drop empty rows")
        return {"input_ids": ids.masked_fill(mask == 0, self._pad_id), "attention_mask": mask.long()}


class ImageInputs:
    """Prepares `image` | `pixel_values` for an image teacher.

    Args:
        settings: size and normalisation; `mean` and `std` have one value a channel.
        channels: channels the teacher takes.
        dtype: of the pixels given.
    """

    def __init__(self, settings: ImageSettings, channels: int, dtype: torch.dtype) -> None:
        self._settings = settings
        self._channels = channels
        self._dtype = dtype

    @property
    def ports(self) -> tuple[str, ...]:
        """The input ports of the teacher's own input, sorted."""
        return ("image", "pixel_values")

    @property
    def padding(self) -> Mapping[str, int]:
        """None: pixels are all of one size."""
        return {}

    def prepare(self, inputs: Tensors, max_tokens: int) -> dict[str, torch.Tensor]:
        """`pixel_values` [batch, channels, size, size]; `max_tokens` is of no meaning here.

        `image` [batch, 1 or channels, height, width] uint8 is resized (bilinear, antialiased) and normalised.

        Raises:
            UnknownPort: a port this teacher does not read.
            InvalidSetting: `image` and `pixel_values` together.
            InvalidTensor: no input, or one whose dtype, shape or values do not fit.
        """
        check_ports(inputs, self.ports)
        if "image" in inputs and "pixel_values" in inputs:
            raise InvalidSetting("received `image` and `pixel_values`, which exclude each other; send one of them")
        if "image" in inputs:
            return {"pixel_values": self._normalise(inputs["image"])}
        return {"pixel_values": self._check(inputs)}

    def example(self) -> dict[str, torch.Tensor]:
        """A black image of 8x8."""
        return {"image": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        channels = " or ".join(str(number) for number in sorted({1, self._channels}))
        fits = image.dim() == 4 and image.shape[1] in (1, self._channels) and image.numel() > 0
        expect(image, "image", (torch.uint8,), f"[batch, {channels}, height, width] uint8", fits)
        size = self._settings.size
        pixels = interpolate(image.float(), (size, size), mode="bilinear", antialias=True) / 255.0
        pixels = pixels.expand(-1, self._channels, -1, -1)
        mean, std = (
            pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self._settings.mean, self._settings.std)
        )
        return ((pixels - mean) / std).to(self._dtype)

    def _check(self, inputs: Tensors) -> torch.Tensor:
        pixels = inputs.get("pixel_values")
        if pixels is None:
            raise InvalidTensor(f"no `pixel_values` received; send one of {', '.join(self.ports)}")
        shape = (self._channels, self._settings.size, self._settings.size)
        fits = pixels.dim() == 4 and tuple(pixels.shape[1:]) == shape and len(pixels) > 0
        kinds = (torch.float32, torch.bfloat16, torch.float16)
        expect(pixels, "pixel_values", kinds, f"[batch, {', '.join(map(str, shape))}] float", fits)
        if not bool(pixels.isfinite().all()):
            raise InvalidTensor("`pixel_values` holds NaN or infinity; expected finite numbers, or send `image`")
        return pixels.to(self._dtype)


def check_ports(inputs: Tensors, ports: tuple[str, ...]) -> None:
    """Refuses the other modalities' ports; ports that are no teacher's own input pass by.

    Raises:
        UnknownPort: a port that another teacher would read.
    """
    for name in _KNOWN_PORTS:
        if name in inputs and name not in ports:
            raise UnknownPort(f"this teacher does not read `{name}`; its inputs are {', '.join(ports)}")


def expect(tensor: torch.Tensor, name: str, dtypes: Sequence[torch.dtype], expected: str, fits: bool) -> None:
    """Refuses a tensor of another dtype, or one whose shape does not fit.

    Raises:
        InvalidTensor: what was received, and what was `expected`.
    """
    if tensor.dtype not in dtypes or not fits:
        received = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise InvalidTensor(f"`{name}` is {received}, expected {expected}; send it in that shape and dtype")


def _decode(text: torch.Tensor) -> list[str]:
    expect(text, "text", (torch.uint8,), "[batch, bytes] uint8, zero padded", text.dim() == 2 and len(text) > 0)
    rows: list[str] = []
    for number, row in enumerate(text.cpu()):
        try:
            rows.append(row.numpy().tobytes().rstrip(b"\0").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidTensor(
                f"row {number} of `text` is no UTF-8 ({error.reason}); cut text between characters"
            ) from error
    return rows
