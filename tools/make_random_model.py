#!/usr/bin/env python3
"""Writes a random-weight RWKV-7 or RWKV-X checkpoint as .safetensors in bfloat16, for benchmarks and tests of speed.

The tensors have the names and shapes of the public checkpoints, and scales that keep activations lively but sane:
they neither explode nor vanish over the blocks, and every gate, decay and learning rate takes varied values. --shape
takes the blocks, channels and ranks of a World model (65536 tokens): 0.19b is 12 blocks x 768 channels, 1.5b 24 x 2048.
With the same seed an RWKV-X has the embedding and the RWKV-7 blocks of the plain model, bit for bit.

Needs only numpy; memory stays small (0.2 GB), since tensors are written as they are made.
"""
import argparse
import json
import math
import os
import statistics
import sys

import numpy as np

HEAD = 64                  # channels of a head
VALUES_AT_ONCE = 1 << 22     # values generated at a time
SHAPES = {'0.19b': (12, 768, '64,64,32,128'), '1.5b': (24, 2048, '96,96,64,256')}  # blocks, channels, ranks


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', required=True, metavar='FILE', help='the .safetensors file to write')
    p.add_argument('--shape', choices=SHAPES, default='0.19b', help='of a World model (default %(default)s)')
    p.add_argument('--layers', type=int, help='RWKV-7 blocks (default: those of --shape)')
    p.add_argument('--channels', type=int, help='a multiple of 64 (default: those of --shape)')
    p.add_argument('--vocab', type=int, default=65536, help='tokens (default %(default)s)')
    p.add_argument('--sparse-blocks', type=int, default=0,
                   help='top-k chunk attention blocks of an RWKV-X; 0 makes a plain RWKV-7 (default %(default)s)')
    p.add_argument('--ranks', metavar='W,A,V,G',
                   help='ranks of the decay, learning-rate, value and gate matrices (default: those of --shape)')
    p.add_argument('--active-share', type=float, default=0.5, metavar='P',
                   help='of the squared ReLUs that are not zero; trained models have some 0.1 (default %(default)s)')
    p.add_argument('--seed', type=int, default=0, help='same seed, same file (default %(default)s)')
    a = p.parse_args()
    for name, value in zip(('layers', 'channels', 'ranks'), SHAPES[a.shape]):
        if getattr(a, name) is None:
            setattr(a, name, value)
    try:
        a.ranks = dict(zip('wavg', [int(r) for r in a.ranks.split(',')], strict=True))
    except ValueError:
        p.error('--ranks takes four numbers, for instance 64,64,32,128')
    if a.channels < HEAD or a.channels % HEAD:
        p.error(f'--channels must be a multiple of {HEAD}')
    if a.layers < 1 or a.vocab < 1 or min(a.ranks.values()) < 1:
        p.error('--layers, --vocab and --ranks must be positive')
    if not 0 < a.active_share < 1:
        p.error('--active-share must be between 0 and 1')
    if not 0 <= a.sparse_blocks <= a.layers:
        p.error('--sparse-blocks must be between 0 and --layers')
    return a


def tensors(a):
    """Yields (name, shape, fill) for each tensor; fill(rng, n) makes n of its values in float32."""
    c = a.channels

    def normal(scale, mean=0.0):
        return lambda rng, n: rng.standard_normal(n, np.float32) * np.float32(scale) + np.float32(mean)

    def uniform(rng, n):
        return rng.random(n, np.float32)

    def norm(name, bias=0.0):
        yield name + '.weight', [c], normal(0.1, 1)
        yield name + '.bias', [c], normal(0.1, bias)

    # With inputs of mean 1, the mean of the keys moves what the ReLUs see: a variance of 1 comes from the mean,
    # 2/3 from the shifted tokens.
    lively = a.active_share == 0.5
    ln2_bias = 0.0 if lively else 1.0
    key_mean = 0.0 if lively else math.sqrt(5 / 3) * statistics.NormalDist().inv_cdf(a.active_share) / c

    def channel_mix(block):
        yield block + 'x_k', [1, 1, c], uniform
        yield block + 'key.weight', [4 * c, c], normal(1 / math.sqrt(c), key_mean)
        yield block + 'value.weight', [c, 4 * c], normal(0.5 / math.sqrt(c))

    def time_mix(block, first):
        for x in 'rwkvag':
            yield block + 'x_' + x, [1, 1, c], uniform
        for x, rank in a.ranks.items():
            if x == 'v' and first:
                continue
            if x != 'g':
                yield f'{block}{x}0', [1, 1, c], normal(0.5, -2 if x == 'w' else 0)
            yield f'{block}{x}1', [c, rank], normal(1 / math.sqrt(c))
            yield f'{block}{x}2', [rank, c], normal(1 / math.sqrt(rank))
        yield block + 'k_k', [1, 1, c], normal(0.1, 0.85)
        yield block + 'k_a', [1, 1, c], normal(0.1, 1)
        yield block + 'r_k', [c // HEAD, HEAD], normal(0.1)
        for name in ('receptance', 'key', 'value', 'output'):
            yield f'{block}{name}.weight', [c, c], normal(1 / math.sqrt(c))
        yield from norm(block + 'ln_x')

    prefix = 'rwkv.' if a.sparse_blocks else ''
    yield prefix + 'emb.weight', [a.vocab, c], normal(1)
    for i in range(a.layers):
        block = f'{prefix}blocks.{i}.'
        for name in (['ln0'] if i == 0 else []) + ['ln1']:
            yield from norm(block + name)
        yield from norm(block + 'ln2', ln2_bias)
        yield from time_mix(block + 'att.', i == 0)
        yield from channel_mix(block + 'ffn.')
    for j in range(a.sparse_blocks):
        block = f'moba.{j}.'
        yield from norm(block + 'ln1')
        yield from norm(block + 'ln2', ln2_bias)
        for name in ('receptance', 'key', 'value', 'output'):
            # Sharper queries and keys, so that the attention and its gate prefer some chunks to others.
            sharp = 2 if name in ('receptance', 'key') else 1
            yield f'{block}att.{name}.weight', [c, c], normal(sharp / math.sqrt(c))
        yield from channel_mix(block + 'ffn.')
    yield from norm(prefix + 'ln_out')
    yield prefix + 'head.weight', [a.vocab, c], normal(1 / math.sqrt(c))


def to_bfloat16(values):
    """float32 -> the upper 16 bits, rounded to nearest even. The values are finite."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7fff) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype('<u2')


def main():
    a = parse_arguments()
    plan = list(tensors(a))
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, shape, _ in plan:
        size = 2 * math.prod(shape)
        header[name] = {'dtype': 'BF16', 'shape': shape, 'data_offsets': [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    rng = np.random.default_rng(a.seed)
    unfinished = a.out + '.unfinished'
    try:
        with open(unfinished, 'wb') as f:
            f.write(len(text).to_bytes(8, 'little') + text)
            for _, shape, fill in plan:
                left = math.prod(shape)
                while left:
                    n = min(left, VALUES_AT_ONCE)
                    f.write(to_bfloat16(fill(rng, n)).tobytes())
                    left -= n
        os.replace(unfinished, a.out)
    except OSError as e:
        if os.path.exists(unfinished):
            os.remove(unfinished)
        sys.exit(f'{a.out}: {e.strerror}')
    print(f'{a.out}: {offset // 2:,} parameters in {len(plan)} tensors, {(8 + len(text) + offset) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
