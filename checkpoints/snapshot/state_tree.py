"""Trees of Python values and tensors as JSON plus raw bytes. No pickle, in either direction.

A state dict is nested dicts, lists and tuples of numbers, strings and tensors. `encode` turns it into a JSON value in
which each tensor is an index into a list of leaves; `decode` is the inverse. What JSON can't express is tagged:

    {"$tensor": 3}  {"$tuple": [...]}  {"$dict": [[key, value], ...]}  {"$size": [2, 3]}  {"$dtype": "bfloat16"}
    {"$float": "nan"}  {"$bytes": "base64"}  {"$int": "0x7b"}  {"$scalar": ["<f4", "base64"]}

Anything else raises `TypeError` when it is saved, not when it is restored.
"""

from __future__ import annotations

import base64
import collections
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash

MOST_DEPTH = 100
"""Maximum depth of the JSON below a tree; its parsers stop at about 200."""
_SAFE_INT = 1 << 53  # JSON readers other than Python's keep integers exact up to here


class Digest(NamedTuple):
    """Stands in a state tree for a tensor that can be recomputed from others: only its hash is stored.

    Hashed when the snapshot is copied, not when the tree is encoded. Restored as the 16 bytes of `digest`.
    """

    tensor: Any


def digest(tensor: Any) -> bytes:
    """xxh3-128 of a torch tensor's bytes in C order, 16 bytes. A GPU's tensor is read in pieces, to save memory."""
    torch = sys.modules["torch"]
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    state = xxhash.xxh3_128()
    for piece in flat.split(_DIGEST_PIECE_BYTES):
        state.update(piece.cpu().numpy())
    return state.digest()


_DIGEST_PIECE_BYTES = 64 << 20


class Leaf(NamedTuple):
    """A tensor that is yet to be copied."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    source: Any
    """The tensor itself: a reference, not a copy."""

    def copy_to(self, target: memoryview) -> None:
        """Write the tensor's bytes, C order, into `target` (exactly `size_bytes` long, aligned).

        Copies straight from where the tensor is, strided or on a GPU. torch and numpy release the GIL meanwhile.
        """
        if not self.size_bytes:
            return
        if isinstance(self.source, Digest):
            target[:] = digest(self.source.tensor)
        elif self.kind == "numpy":
            np.frombuffer(target, dtype=self.source.dtype).reshape(self.shape)[...] = self.source
        else:
            torch = sys.modules["torch"]
            view = torch.frombuffer(target, dtype=torch.uint8).view(self.source.dtype).reshape(self.shape)
            view.copy_(self.source.detach(), non_blocking=False)


LeafReader = Callable[[int], Any]
"""Returns the tensor with this index."""


def encode(value: Any, name: str, leaves: list[Leaf]) -> Any:
    """Return `value` as JSON and append its tensors to `leaves`, named `name/path/in/the/tree`.

    What would be restored as another type is refused, with three exceptions that every training needs: an OrderedDict
    is restored as a dict in its order, a Parameter as a tensor, and a numpy array as one with its own memory.

    Raises:
        TypeError: for a value that isn't plain data, naming where it is.
    """
    return _encode(value, name, leaves, 0)


def _encode(value: Any, name: str, leaves: list[Leaf], depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise TypeError(f"{name[:60]}...: nested more than {MOST_DEPTH} deep, and nothing could read that again")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return _readable(value, name)
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if kind in (dict, collections.OrderedDict):
        return _encode_mapping(value, name, leaves, depth)
    if kind is tuple:
        return {"$tuple": [_encode(item, f"{name}/{i}", leaves, depth + 2) for i, item in enumerate(value)]}
    if kind is list:
        return [_encode(item, f"{name}/{i}", leaves, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Digest):
        leaves.append(Leaf(name, "numpy", "|u1", (16,), 16, value))
        return {"$tensor": len(leaves) - 1}
    if isinstance(value, np.generic | np.ndarray):
        return _encode_numpy(value, name, leaves)
    if (torch := sys.modules.get("torch")) is not None:
        if kind is torch.Size:
            return {"$size": list(value)}
        if isinstance(value, torch.dtype):
            return {"$dtype": _dtype_name(value)}
        if isinstance(value, torch.Tensor):
            return _append(leaves, name, "torch", _dtype_name(value.dtype), _plain_tensor(value, name, torch))
    raise TypeError(f"{name}: a {kind.__module__}.{kind.__qualname__} can't go into a checkpoint{_way_out(value)}")


def _way_out(value: Any) -> str:
    """The hint for a value that looks like plain data but isn't."""
    for plain in (bool, int, float, str, bytes, tuple, list, dict, Mapping):
        if isinstance(value, plain):
            name = "dict" if plain is Mapping else plain.__name__
            return f": it would come back as a plain {name}; save {name}(...) of it"
    return ""


def _readable(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"{name}: text with half a character (a lone surrogate) can't go into a checkpoint") from error
    return text


def _encode_numpy(value: Any, name: str, leaves: list[Leaf]) -> Any:
    if value.dtype.hasobject or value.dtype.names is not None or not value.dtype.itemsize:
        raise TypeError(f"{name}: an array of {value.dtype} can't go into a checkpoint")
    if isinstance(value, np.generic):
        return {"$scalar": [value.dtype.str, base64.b64encode(value.tobytes()).decode()]}
    if type(value) not in (np.ndarray, np.memmap):
        raise TypeError(f"{name}: a {type(value).__qualname__} can't go into a checkpoint; save its plain arrays")
    return _append(leaves, name, "numpy", value.dtype.str, value)


def _plain_tensor(value: Any, name: str, torch: Any) -> Any:
    """Return the tensor if it is just numbers in memory. Raises `TypeError` otherwise."""
    odd = (
        "sparse"
        if value.layout is not torch.strided
        else "quantized"
        if value.is_quantized
        else "nested"
        if value.is_nested
        else "meta"
        if value.device.type == "meta"
        else ""
        if type(value) in (torch.Tensor, torch.nn.Parameter)
        else type(value).__qualname__
    )
    if odd:
        raise TypeError(f"{name}: a {odd} tensor can't go into a checkpoint; save its parts as plain tensors")
    return value


def decode(value: Any, read: LeafReader, *, plain: bool = False) -> Any:
    """Inverse of `encode`; `read` returns a leaf by its index.

    `plain`: sizes as tuples and dtypes as names, whether torch is loaded or not. For use while another thread may be
    importing torch: a partly imported torch has no `torch.Size`.
    """
    if isinstance(value, list):
        return [decode(item, read, plain=plain) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        tag, content = next(iter(value.items()))
        if tag.startswith("$"):
            return _decode_tagged(tag, content, read, None if plain else sys.modules.get("torch"))
    return {key: decode(item, read, plain=plain) for key, item in value.items()}


def _encode_mapping(value: Mapping[Any, Any], name: str, leaves: list[Leaf], depth: int) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {_readable(key, name): _encode(item, f"{name}/{key}", leaves, depth + 1) for key, item in value.items()}
    return {
        "$dict": [
            [_encode(key, name, leaves, depth + 3), _encode(item, f"{name}/{key}", leaves, depth + 3)]
            for key, item in value.items()
        ]
    }


def _decode_tagged(tag: str, content: Any, read: LeafReader, torch: Any) -> Any:
    def inner(item: Any) -> Any:
        return decode(item, read, plain=torch is None)

    match tag:
        case "$tensor":
            if type(content) is not int or content < 0:  # which Python would count from the end
                raise ValueError(f"{content!r} is not the number of a tensor")
            return read(content)
        case "$tuple":
            return tuple(inner(item) for item in content)
        case "$dict":
            return {inner(key): inner(item) for key, item in content}
        case "$float":
            return float(content)
        case "$int":
            return int(content, 0)
        case "$scalar":
            dtype, data = content
            return np.frombuffer(base64.b64decode(data), dtype=_numpy_dtype(dtype))[0]
        case "$bytes":
            return base64.b64decode(content)
        case "$size":
            sizes = tuple(_whole(item) for item in content)
            return torch.Size(sizes) if torch is not None else sizes
        case "$dtype":
            _torch_bits(content)
            return _torch_dtype(torch, content) if torch is not None else content
    raise ValueError(f"unknown tag {tag} in a checkpoint tree: written by a newer version?")


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value


def check_leaf(kind: str, dtype: str, shape: tuple[int, ...], size_bytes: int) -> None:
    """Raises `ValueError` if no tensor can be built of `size_bytes` bytes as described. Needs no torch."""
    bits = _torch_bits(dtype) if kind == "torch" else 8 * _numpy_dtype(dtype).itemsize
    needed = bits * math.prod(_whole(size) for size in shape)
    if needed != 8 * size_bytes:
        raise ValueError(f"{shape} of {dtype} are {needed // 8} bytes, not {size_bytes}")


_TORCH_BITS = {
    **dict.fromkeys(("complex128",), 128),
    **dict.fromkeys(("float64", "double", "int64", "long", "uint64", "complex64"), 64),
    **dict.fromkeys(("float32", "float", "int32", "int", "uint32", "complex32"), 32),
    **dict.fromkeys(("float16", "half", "bfloat16", "int16", "short", "uint16"), 16),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"), 8),
    **dict.fromkeys(("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"), 8),
}
"""Bits of an element, by torch's name of its dtype."""


def _torch_bits(name: Any) -> int:
    if not isinstance(name, str) or name not in _TORCH_BITS:
        raise ValueError(f"{name!r} is not a dtype of torch")
    return _TORCH_BITS[name]


def _append(leaves: list[Leaf], name: str, kind: str, dtype: str, source: Any) -> Any:
    leaves.append(Leaf(name, kind, dtype, tuple(source.shape), source.nbytes, source))
    return {"$tensor": len(leaves) - 1}


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_from(kind: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> Any:
    """Build a tensor over `data` (no copy; writable if `data` is).

    A torch tensor in a process that has imported torch, else a numpy array; a dtype that numpy lacks (bfloat16)
    comes as its bytes, shape (size_bytes,).
    """
    if kind == "numpy":
        return np.frombuffer(data, dtype=_numpy_dtype(dtype)).reshape(shape)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch_dtype = _torch_dtype(torch, dtype)
        if not data.nbytes and 0 in shape:
            return torch.empty(shape, dtype=torch_dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(torch_dtype).reshape(shape)
    try:
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
    except TypeError:
        return np.frombuffer(data, dtype=np.uint8)


def _torch_dtype(torch: Any, name: str) -> Any:
    """The dtype of that name. Raises `ValueError` if torch has something else under it."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is not a dtype of torch")
    return found


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name. Raises `ValueError` for one that holds more than numbers and text."""
    try:
        found = np.dtype(name)
    except TypeError as error:
        raise ValueError(f"{name!r} is not a dtype of numpy") from error
    if found.hasobject or found.names is not None or not found.itemsize:
        raise ValueError(f"{name!r} is not a plain dtype")
    return found
