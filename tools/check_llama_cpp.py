#!/usr/bin/env python3
"""Checks that the GGUF rwkvx writes for a plain RWKV-7 runs in llama.cpp with the same next-token distribution.

For each of the dtypes f32, f16 and bf16: converts the model to GGUF, feeds the same tokens to llama.cpp and to rwkvx
(both reading that GGUF), and compares the log-probabilities of every next token at every position. llama.cpp runs
the texts both as one batch and one token at a time, and a long random prompt as batches. The texts must also tokenize
to the same ids in both. Prints a table; exits 1 where a bound is exceeded.

Needs numpy and llama-cpp-python, a release build of rwkvx, and for a model with the World vocabulary that does not
carry its tokenizer, the vocabulary file.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

import safetensors_file
from llama_cpp_model import LlamaCppModel, import_llama_cpp

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TEXTS = {
    'English': 'The Eiffel tower is in the city of Paris, which lies on the Seine. In 1889 it was "the tallest".\n\nIts',
    'dialogue': 'User: What is the capital of Japan?\n\nAssistant:',
    'code': 'def f(x):\n    """Twice x."""\n\treturn 2 * x  # \\n\r\n\nprint(f(21), \'it\\\'s\')\n',
    'UTF-8': 'Čeština, 日本語のテキスト, 中文，Ελληνικά 🙂 a\u0000b',
}
# GGUF dtype -> max |difference of log-probabilities|, mean KL divergence in nats, least share of equal top tokens.
# In float32 both sum the same products in another order. With 16-bit weights llama.cpp also rounds every input of a
# product to that type (2^-12 or 2^-9 relative), where rwkvx in float32 does not: the bounds grow with the rounding,
# that of KL with its square.
BOUNDS = {'f32': (1e-3, 1e-7, 1.0), 'f16': (0.1, 1e-4, 0.99), 'bf16': (1.0, 1e-2, 0.95)}


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', type=pathlib.Path, help='a plain RWKV-7 in any format that rwkvx reads')
    p.add_argument('--vocab', type=pathlib.Path, help='the World vocabulary file, where the model carries no tokenizer')
    p.add_argument('--rwkvx', type=pathlib.Path, default=REPOSITORY / 'build/release/rwkvx')
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--long', type=int, default=700, help='tokens of the random prompt (default %(default)s)')
    p.add_argument('--markdown', action='store_true', help='print the table as markdown')
    a = p.parse_args()
    if not a.rwkvx.is_file():
        p.error(f'{a.rwkvx} is not there; build it with: cmake --preset release && cmake --build --preset release')
    return a


def run(command, stdin=None):
    done = subprocess.run([str(c) for c in command], input=stdin, capture_output=True)
    if done.returncode:
        sys.exit(f'{" ".join(str(c) for c in command)}\nfailed: {done.stderr.decode(errors="replace").strip()}')
    return done.stdout


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(ours, theirs):
    """Logits [T,V] twice -> max |log p - log q|, mean KL(p || q) in nats, share of equal most probable tokens."""
    p, q = log_softmax(ours), log_softmax(theirs)
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        return np.inf, np.inf, 0.0
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    return np.abs(p - q).max(), kl, (p.argmax(-1) == q.argmax(-1)).mean()


def main():
    a = parse_arguments()
    api = import_llama_cpp()
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for dtype, (log_bound, kl_bound, same_bound) in BOUNDS.items():
            gguf = folder / f'{dtype}.gguf'
            run([a.rwkvx, 'convert', a.model, gguf, '--dtype', dtype] + (['--vocab', a.vocab] if a.vocab else []))
            theirs = LlamaCppModel(gguf, a.threads)
            prompts = {}
            tokenizer = json.loads(run([a.rwkvx, 'info', gguf, '--json']))['tokenizer']
            for name, text in TEXTS.items() if tokenizer != 'none' else ():
                ids = json.loads(run([a.rwkvx, 'tokenize', '--model', gguf], text.encode()))
                if ids != theirs.tokenize(text.encode()):
                    failures.append(f'{dtype}: {name} tokenizes to other ids in llama.cpp')
                prompts[name] = ids
            random = np.random.default_rng(1).integers(1, min(theirs.vocab, 65530), a.long)
            prompts[f'{a.long} random tokens'] = [int(t) for t in random]
            for name, ids in prompts.items():
                tokens, out = folder / 'tokens.safetensors', folder / 'logits.safetensors'
                safetensors_file.write(tokens, {'tokens': np.array([ids], np.int64)})
                reference = {'batch': theirs.logits(ids)}
                if name in TEXTS:
                    reference['steps'] = theirs.logits(ids, one_by_one=True)
                for precision in ('f32', 'bf16') if dtype == 'bf16' else ('f32',):
                    run([a.rwkvx, 'logits', gguf, '--tokens', tokens, '--out', out, '--precision', precision,
                         '--threads', a.threads])
                    ours = safetensors_file.read(out)['logits'][0]
                    for way, logits in reference.items():
                        worst, kl, same = compare(ours, logits)
                        ok = worst <= log_bound and kl <= kl_bound and same >= same_bound
                        rows.append((dtype, precision, way, name, len(ids), f'{worst:.1e}', f'{kl:.1e}',
                                     f'{100 * same:.1f}%', 'ok' if ok else 'FAILED'))
                        if not ok:
                            failures.append(f'{dtype}, {name}, {way}: the bounds are {log_bound:g}, {kl_bound:g} and '
                                            f'{100 * same_bound:g}%')
            theirs.close()
    head = ('GGUF', 'rwkvx', 'llama.cpp', 'prompt', 'tokens', 'max |Δ log p|', 'mean KL', 'same top-1', '')
    widths = [max(len(str(r[i])) for r in [head] + rows) for i in range(len(head))]
    print(f'llama-cpp-python {api.__version__}, rwkvx {run([a.rwkvx, "--version"]).decode().strip()}')
    for i, row in enumerate([head] + rows):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths)]
        print('| ' + ' | '.join(cells) + ' |' if a.markdown else '  '.join(cells).rstrip())
        if i == 0 and a.markdown:
            print('|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
