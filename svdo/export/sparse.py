"""A network in few bytes: of each weight the gaps between what is left and the values, in one safetensors file; exact.

``layout``  JSON: the network's description and, for each tensor, its name, shape, and how it is stored
``gaps``    uint8, over all sparse tensors: how many zeros come before the next value; 255 stands for 255 zeros and no value
``values``  the values of all tensors, sparse and dense, one after the other
and every tensor of integers (the indices of a ``Select``, a batch norm's count), under its own name, in the narrowest type.

With ``coding="lzma"``, which is the default, each of the first three is compressed, values after their bytes have been sorted
by significance. A tensor's trailing zeros are counted, too, so that no file can ask for more memory than a fixed multiple of
its own size.
"""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conversion import plain
from ..errors import UserError, require
from . import architecture, container

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
KIND = "sparse"
CODINGS = ("lzma", "none")
FULL = 255  # a gap's entry for so many zeros without a value behind them
DENSE_ABOVE = 0.8  # a tensor with a larger share of values than this is stored without gaps
EXPANSION = 64  # the most that compression may make of a byte; what compresses better is stored as it is
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0, "dict_size": 1 << 24}]


def save(module: nn.Module, path: str | Path, *, half: bool = False, coding: str = "lzma", overwrite: bool = False) -> int:
    """Write the network that evaluation uses, without its zeros.

    Args:
        module: a converted network, or a plain one with zeros; it is not changed.
        path: the file; nothing is left of it where writing fails.
        half: store values as float16, half the bytes; they come back rounded to 11 bits.
        coding: "lzma" compresses the file's parts; "none" leaves them to be read by anything that reads safetensors.
        overwrite: replace an existing file.

    Returns:
        The file's size in bytes. ``svdo.load`` reads it: by itself where the network is a ``Sequential`` of known layers, else
        into a network given with ``into=``. -0.0 comes back as 0.0, everything else bit by bit.

    Raises:
        UserError: on an unknown coding, an existing file, tensors of several floating point types or others than numbers, or
            with ``half`` on values that float16 does not hold.
    """
    require(coding in CODINGS, f"coding={coding} is not a choice; take one of: {', '.join(CODINGS)}")
    network = plain(module)
    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    require(len(dtypes) == 1, "a sparse file holds one floating point type; bring the network to one, with .float()")
    dtype = dtypes.pop()
    require(dtype in (torch.float32, torch.float64), "a sparse file is written from float32 or float64; use .float()")
    gaps: list[np.ndarray] = []
    values: list[np.ndarray] = []
    tensors: list[list[Any]] = []
    integers: dict[str, Tensor] = {}
    for key, value in state.items():
        if not value.is_floating_point():
            integers[f"tensor.{key}"] = _narrowest(key, value)
            tensors.append([key, _name(value.dtype), list(value.shape)])
            continue
        flat = _rounded(key, value, half).flatten().numpy()
        kept = np.flatnonzero(flat)
        sparse = len(kept) <= DENSE_ABOVE * len(flat)
        if sparse:
            gaps.append(_gaps(kept, len(flat)))
        values.append(flat[kept] if sparse else flat + 0.0)
        tensors.append([key, "sparse" if sparse else "dense", list(value.shape)])
    layout = {"network": architecture.describe(network), "tensors": tensors}
    parts = {
        "layout": np.frombuffer(json.dumps(layout, separators=(",", ":")).encode(), np.uint8),
        "gaps": np.concatenate(gaps) if gaps else np.empty(0, np.uint8),
        "values": np.concatenate(values) if values else np.empty(0, np.float32),
    }
    stored, lengths = {}, {}
    for key, part in parts.items():
        stored[key], lengths[key] = _packed(part) if coding == "lzma" else (torch.from_numpy(part.copy()), 0)
    kind = {"kind": KIND, "dtype": _name(dtype), "values": str(parts["values"].dtype), "lzma": lengths}
    return container.write(Path(path), stored | integers, kind, overwrite)


def _rounded(key: str, value: Tensor, half: bool) -> Tensor:
    if not half:
        return value
    result = value.half()
    require(bool((result.isfinite() | ~value.isfinite()).all()), f"{key} has values that float16 does not hold; leave half out")
    return result


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _narrowest(key: str, value: Tensor) -> Tensor:
    require(value.dtype in INTEGERS or value.dtype == torch.bool, f"{key} is of type {value.dtype}, which no sparse file holds")
    low, high = (int(value.min()), int(value.max())) if value.numel() else (0, 0)
    kinds = (kind for kind in INTEGERS if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)
    return value.to(next(kinds))


def _gaps(kept: np.ndarray, length: int) -> np.ndarray:
    """The entries for values at the places ``kept``, ascending, of ``length``: fillers, then each value's gap; uint8."""
    gaps = np.diff(kept, prepend=-1, append=length) - 1
    fillers = gaps // FULL
    ends = np.cumsum(fillers + 1) - 1
    entries = np.full(int(ends[-1]) + 1, FULL, np.uint8)
    entries[ends] = gaps % FULL
    return entries  # the last one says how many zeros come after the last value


def _packed(part: np.ndarray) -> tuple[Tensor, int]:
    """Compressed, with the length before; or as it was, with 0, where compression gains nothing or more than it may."""
    raw = _by_significance(part)
    packed = lzma.compress(raw, lzma.FORMAT_RAW, filters=_FILTERS)
    if len(packed) < len(raw) <= EXPANSION * len(packed):
        return torch.from_numpy(np.frombuffer(packed, np.uint8).copy()), len(raw)
    return torch.from_numpy(part.copy()), 0


def _by_significance(part: np.ndarray) -> bytes:
    """All highest bytes, then all next ones: what signs and exponents repeat then stands together."""
    return part.view(np.uint8).reshape(-1, part.itemsize)[:, ::-1].T.tobytes()


def read(stored: dict[str, Tensor], kind: container.Description) -> tuple[Any, Shapes, _Decoder]:
    """The network's description (or None), each tensor's shape and type, and what decodes them: they take no memory yet.

    Raises:
        UserError: where the parts do not fit together.
    """
    try:
        parts = {key: _unpacked(stored[key], kind["lzma"][key], _dtype(key, kind)) for key in ("layout", "gaps", "values")}
        layout = json.loads(parts["layout"].tobytes())
        decoder = _Decoder(stored, parts["gaps"], parts["values"], layout["tensors"], getattr(torch, kind["dtype"]))
        return layout["network"], decoder.check(), decoder
    except UserError:
        raise
    except Exception:  # a file that somebody made up can be wrong anywhere
        raise UserError("its parts do not fit together") from None


def _dtype(key: str, kind: container.Description) -> np.dtype[Any]:
    require(kind["values"] in ("float16", "float32", "float64"), "its values are of no type that is known")
    require(kind["dtype"] in ("float32", "float64"), "its network is of no type that is known")
    return np.dtype(kind["values"] if key == "values" else "uint8")


def _unpacked(tensor: Tensor, length: int, dtype: np.dtype[Any]) -> np.ndarray:
    array = tensor.numpy()
    if not length:
        require(array.dtype == dtype and array.ndim == 1, "its parts are of other types than it says")
        return array
    require(
        0 < length <= EXPANSION * len(array) and length % dtype.itemsize == 0, "its parts are of other lengths than it says"
    )
    packed = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    raw = packed.decompress(array.tobytes(), max_length=length)
    require(len(raw) == length, "its parts are of other lengths than it says")
    planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes[::-1].T).view(dtype).reshape(-1)


class _Decoder:
    """Finds each tensor's gaps and values in the common streams."""

    def __init__(
        self, stored: dict[str, Tensor], gaps: np.ndarray, values: np.ndarray, tensors: list[list[Any]], dtype: torch.dtype
    ) -> None:
        self.stored, self.gaps, self.values, self.tensors, self.dtype = stored, gaps, values, tensors, dtype
        self.slices: dict[str, tuple[slice, slice]] = {}

    def check(self) -> Shapes:
        """Each tensor's shape; every entry and every value must belong to one, so that no shape is larger than they say."""
        shapes: Shapes = {}
        gap = value = 0
        # A value or the end of a tensor takes 1 + its gap, a filler FULL: a tensor of n places takes n + 1.
        reach = np.cumsum(np.where(self.gaps == FULL, FULL, self.gaps.astype(np.int64) + 1))
        for key, how, shape in self.tensors:
            require(key not in shapes and all(type(size) is int and size >= 0 for size in shape), "it has no such shapes")
            require(how in ("sparse", "dense", *map(_name, INTEGERS), "bool"), f"{key} is of no type that is known")
            count = math.prod(shape)
            shapes[key] = tuple(shape), self.dtype if how in ("sparse", "dense") else getattr(torch, how)
            first_gap, first_value = gap, value
            if how == "sparse":
                before = int(reach[gap - 1]) if gap else 0
                gap = int(np.searchsorted(reach, before + count + 1)) + 1
                require(gap <= len(reach) and reach[gap - 1] == before + count + 1, f"the gaps of {key} do not fit its shape")
                require(self.gaps[gap - 1] != FULL, f"the gaps of {key} do not end where it does")
                value += int((self.gaps[first_gap:gap] != FULL).sum()) - 1
            elif how == "dense":
                value += count
            else:
                require(tuple(self.stored[f"tensor.{key}"].shape) == tuple(shape), f"{key} is not of the shape it says")
            require(value <= len(self.values), f"there are too few values for {key}")
            self.slices[key] = slice(first_gap, gap), slice(first_value, value)
        require(gap == len(self.gaps) and value == len(self.values), "it holds more than its tensors")
        return shapes

    def state(self) -> dict[str, Tensor]:
        """All tensors, decoded."""
        state = {}
        for key, how, shape in self.tensors:
            gaps, values = self.slices[key]
            if how == "sparse":
                flat = np.zeros(math.prod(shape), self.values.dtype)
                flat[_places(self.gaps[gaps])] = self.values[values]
            elif how == "dense":
                flat = self.values[values].copy()
            else:
                state[key] = self.stored[f"tensor.{key}"].to(getattr(torch, how))
                continue
            state[key] = torch.from_numpy(flat).to(self.dtype).reshape(shape)
        return state


def _places(entries: np.ndarray) -> np.ndarray:
    """Where the values stand: the inverse of ``_gaps``."""
    steps = np.where(entries == FULL, FULL, entries.astype(np.int64) + 1)
    places: np.ndarray = (np.cumsum(steps) - 1)[entries != FULL][:-1]
    return places
