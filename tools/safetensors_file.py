"""Reads and writes .safetensors with numpy alone: https://huggingface.co/docs/safetensors (format)."""
import json
import math

import numpy as np

DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I64': '<i8', 'I32': '<i4', 'U8': 'u1'}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


def read(path):
    """{name: array}. BF16 comes as float32. Errors: ValueError for a dtype that is not listed here."""
    with open(path, 'rb') as f:
        data = f.read()
    start = 8 + int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:start])
    header.pop('__metadata__', None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry['data_offsets']
        raw = data[start + begin:start + end]
        if entry['dtype'] == 'BF16':
            array = (np.frombuffer(raw, '<u2').astype(np.uint32) << 16).view(np.float32)
        elif entry['dtype'] in DTYPES:
            array = np.frombuffer(raw, DTYPES[entry['dtype']])
        else:
            raise ValueError(f'{path}: {name} has dtype {entry["dtype"]}')
        arrays[name] = array.reshape(entry['shape'])
    return arrays


def write(path, arrays):
    header, offset = {}, 0
    for name, array in arrays.items():
        size = array.dtype.itemsize * math.prod(array.shape)
        header[name] = {'dtype': NAMES[array.dtype], 'shape': list(array.shape), 'data_offsets': [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text)
        for array in arrays.values():
            f.write(np.ascontiguousarray(array).tobytes())
