"""safetensors in and out for numpy arrays: u64 header length, JSON header, raw little-endian data.

Tensors are laid out by alignment (widest dtype first), then by name; the header is padded with
spaces to 8 bytes. The same arrays give the same bytes.
"""
import json
import struct

import numpy as np

DTYPES = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"),
          "I32": np.dtype("<i4"), "U8": np.dtype("u1")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(path, tensors, metadata):
    """tensors: name -> array; metadata: name -> anything, written as str."""
    # asarray(order="C"), for ascontiguousarray would turn rank 0 into rank 1.
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header = {"__metadata__": {key: str(value) for key, value in sorted(metadata.items())}}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    offset = 0
    for name in order:
        end = offset + arrays[name].nbytes
        header[name] = {"dtype": NAMES[arrays[name].dtype], "shape": list(arrays[name].shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(arrays[name].tobytes())


def load(path):
    """Returns (tensors, metadata)."""
    with open(path, "rb") as file:
        content = file.read()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = np.frombuffer(content[start + begin:start + end], DTYPES[entry["dtype"]])
        tensors[name] = data.reshape(entry["shape"])
    return tensors, metadata
