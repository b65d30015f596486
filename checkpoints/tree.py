"""Trees of Python values and tensors as JSON plus raw bytes. No pickle, in either direction.

A state dict is nested dicts, lists and tuples of numbers, strings and tensors. `encode` turns it into a JSON value in
which each tensor is an index into a list of leaves; `decode` is the inverse. What JSON can't say is tagged:

    {"$tensor": 3}  {"$tuple": [...]}  {"$dict": [[key, value], ...]}  {"$size": [2, 3]}  {"$dtype": "bfloat16"}
    {"$float": "nan"}  {"$bytes": "base64"}  {"$int": "123"}

Anything else raises `TypeError` when it is saved, not when somebody needs it back.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash

_SAFE_INT = 1 << 53  # JSON readers other than Python's keep integers exactly up to here


class Digest(NamedTuple):
    """In a state tree, in the place of a tensor that can be recomputed from others: only its hash is stored.

    Hashed when the snapshot is copied, not when the tree is encoded. Comes back as the 16 bytes of `digest`.
    """

    tensor: Any


def digest(tensor: Any) -> bytes:
    """xxh3-128 of a torch tensor's bytes in C order, 16 bytes. From a GPU in pieces, so that it costs little memory."""
    torch = sys.modules["torch"]
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    state = xxhash.xxh3_128()
    for piece in flat.split(_DIGEST_PIECE_BYTES):
        state.update(piece.cpu().numpy())
    return state.digest()


_DIGEST_PIECE_BYTES = 64 << 20


class Leaf(NamedTuple):
    """A tensor that waits to be copied."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    source: Any
    """The tensor itself: a reference, not a copy."""

    def copy_to(self, target: memoryview) -> None:
        """Write the tensor's bytes, C order, into `target` (exactly `size_bytes` long, aligned).

        Copies straight from where the tensor is, strided or on a GPU. torch and numpy give the GIL away for that.
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

    Raises:
        TypeError: for a value that isn't plain data, naming where it stands.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if -_SAFE_INT < value < _SAFE_INT else {"$int": str(int(value))}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return _encode_mapping(value, name, leaves)
    if isinstance(value, Digest):
        leaves.append(Leaf(name, "numpy", "|u1", (16,), 16, value))
        return {"$tensor": len(leaves) - 1}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{name}: an object array can't go into a checkpoint")
        return _append(leaves, name, "numpy", value.dtype.str, value)
    if isinstance(value, np.generic):
        return encode(value.item(), name, leaves)
    if (torch := sys.modules.get("torch")) is not None:
        if isinstance(value, torch.Size):
            return {"$size": list(value)}
        if isinstance(value, torch.dtype):
            return {"$dtype": _dtype_name(value)}
        if isinstance(value, torch.Tensor):
            return _append(leaves, name, "torch", _dtype_name(value.dtype), value)
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, f"{name}/{i}", leaves) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [encode(item, f"{name}/{i}", leaves) for i, item in enumerate(value)]
    raise TypeError(f"{name}: a {type(value).__module__}.{type(value).__qualname__} can't go into a checkpoint")


def decode(value: Any, read: LeafReader, *, plain: bool = False) -> Any:
    """Inverse of `encode`; `read` returns a leaf by its index.

    `plain`: sizes as tuples and dtypes as names, whether torch is loaded or not. For another thread than the one that
    may be importing torch right now: half a torch has no `torch.Size`.
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


def _encode_mapping(value: Mapping[Any, Any], name: str, leaves: list[Leaf]) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item, f"{name}/{key}", leaves) for key, item in value.items()}
    return {"$dict": [[encode(k, name, leaves), encode(v, f"{name}/{k}", leaves)] for k, v in value.items()]}


def _decode_tagged(tag: str, content: Any, read: LeafReader, torch: Any) -> Any:
    def inner(item: Any) -> Any:
        return decode(item, read, plain=torch is None)

    match tag:
        case "$tensor":
            return read(content)
        case "$tuple":
            return tuple(inner(item) for item in content)
        case "$dict":
            return {inner(key): inner(item) for key, item in content}
        case "$float":
            return float(content)
        case "$int":
            return int(content)
        case "$bytes":
            return base64.b64decode(content)
        case "$size":
            return torch.Size(content) if torch is not None else tuple(content)
        case "$dtype":
            return getattr(torch, content) if torch is not None else content
    raise ValueError(f"unknown tag {tag} in a checkpoint tree: written by a newer version?")


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
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch_dtype = getattr(torch, dtype)
        if not data.nbytes:
            return torch.empty(shape, dtype=torch_dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(torch_dtype).reshape(shape)
    try:
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
    except TypeError:
        return np.frombuffer(data, dtype=np.uint8)
