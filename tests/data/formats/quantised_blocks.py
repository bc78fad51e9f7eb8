#!/usr/bin/env python3
"""Wrote quantised_blocks.safetensors, with the GGUF package of ggml's authors: pip install gguf==0.19.0 numpy

values            f32 [16, 256]; some blocks of zeros, of one value, of ties, of subnormal scales
q8_0, q4_0        u8: its quantisation of them
*.blocks, *.values  blocks (random bytes but for the float16 scales) and the f32 values that it reads in them
"""
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type, quants

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[2] / 'tools'))
import safetensors_file  # noqa: E402

# Where the float16 scales are, in a block.
SCALES = {'q8_0': [0], 'q4_0': [0], 'q4_k': [0, 2], 'q5_k': [0, 2], 'q6_k': [208]}
BYTES = {'q8_0': 34, 'q4_0': 18, 'q4_k': 144, 'q5_k': 176, 'q6_k': 210}

rng = np.random.default_rng(7)
values = rng.standard_t(4, (16, 256)).astype(np.float32) * np.float32(0.05)
values[1, :32] = 0
values[1, 32:64] = -0.37
values[1, 64:96] = np.arange(-16, 16) / 2  # ties
values[1, 96:128] = 0
values[1, 100] = 3
values[2] *= np.float32(1e-5)  # scales that are subnormal in float16
values[3] *= np.float32(1e4)
out = {'values': values}
for name, places in SCALES.items():
    kind = Type[name.upper()]
    if name in ('q8_0', 'q4_0'):
        out[name] = quants.quantize(values, kind)
    blocks = rng.integers(0, 256, (12, BYTES[name]), np.uint8)
    for place in places:
        scales = (rng.standard_normal(12) * 2.0 ** rng.integers(-20, 5, 12)).astype(np.float16)
        blocks[:, place:place + 2] = scales.view(np.uint8).reshape(12, 2)
    out[f'{name}.blocks'] = blocks
    out[f'{name}.values'] = quants.dequantize(blocks, kind)
safetensors_file.write(FOLDER / 'quantised_blocks.safetensors', out)
