#!/usr/bin/env python3
"""Checks that the GGUF rwkvx writes for a plain RWKV-7 runs in llama.cpp with the same next-token distribution.

For each of the dtypes f32, f16 and bf16: converts the model to GGUF, feeds the same tokens to llama.cpp and to rwkvx
(both reading that GGUF), and compares the log-probabilities of every next token at every position. llama.cpp runs
the texts both as one batch and one token at a time, and a long random prompt as batches. The texts must also tokenize
to the same ids in both.

Bounds. From the f32 file the two sum the same products in another order: BOUNDS_F32. With 16-bit weights llama.cpp
also rounds every input of a product to that type, and how much that moves a distribution depends on the model (a
random one amplifies it, a trained one hardly). So it is measured: "own" is how far llama.cpp with the 16-bit file is
from llama.cpp with the f32 file, and rwkvx may be at most TIMES_OWN as far from llama.cpp (in float32 it does not
round at all, in bf16 it rounds as llama.cpp does). Prints a table; exits 1 where a bound is exceeded.

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
TIMES_OWN = 2.0


class Difference:
    """Between two sets of logits at the same positions: max |log p - log q|, mean KL(p || q) in nats, share of
    positions with the same most probable token."""

    def __init__(self, worst=0.0, kl=0.0, same=1.0, positions=0):
        self.worst, self.kl, self.same, self.positions = worst, kl, same, positions

    def add(self, ours, theirs):
        """Logits [T,V] twice."""
        p, q = log_softmax(ours), log_softmax(theirs)
        n, total = len(p), self.positions + len(p)
        worst = np.abs(p - q).max()
        self.worst = max(self.worst, worst) if np.isfinite(worst) else np.inf
        self.kl += ((np.exp(p) * (p - q)).sum(-1).mean() - self.kl) * n / total
        self.same += ((p.argmax(-1) == q.argmax(-1)).mean() - self.same) * n / total
        self.positions = total

    def within(self, bound):
        return self.worst <= bound.worst and self.kl <= bound.kl and self.same >= bound.same  # false for NaN

    def __str__(self):
        return f'{self.worst:.1e} / {self.kl:.1e} / {100 * self.same:.1f}%'


BOUNDS_F32 = Difference(1e-3, 1e-8, 0.999)


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


def make_prompts(a, gguf, theirs, failures):
    """{name: token ids}: the texts, where the model has a tokenizer, and random tokens."""
    prompts = {}
    tokenizer = json.loads(run([a.rwkvx, 'info', gguf, '--json']))['tokenizer']
    for name, text in TEXTS.items() if tokenizer != 'none' else ():
        prompts[name] = json.loads(run([a.rwkvx, 'tokenize', '--model', gguf], text.encode()))
        if prompts[name] != theirs.tokenize(text.encode()):
            failures.append(f'{gguf.name}: {name} tokenizes to other ids in llama.cpp')
    random = np.random.default_rng(1).integers(1, min(theirs.vocab, 65530), a.long)
    prompts['random'] = [int(t) for t in random]
    return prompts


def rwkvx_logits(a, gguf, ids, precision):
    tokens, out = gguf.with_name('tokens.safetensors'), gguf.with_name('logits.safetensors')
    safetensors_file.write(tokens, {'tokens': np.array([ids], np.int64)})
    run([a.rwkvx, 'logits', gguf, '--tokens', tokens, '--out', out, '--precision', precision, '--threads', a.threads])
    return safetensors_file.read(out)['logits'][0]


def check_dtype(a, folder, dtype, exact, failures):
    """The rows of one GGUF dtype. `exact`: llama.cpp's logits with the f32 file by (way, prompt), filled by dtype f32."""
    gguf = folder / f'{dtype}.gguf'
    run([a.rwkvx, 'convert', a.model, gguf, '--dtype', dtype] + (['--vocab', a.vocab] if a.vocab else []))
    model = LlamaCppModel(gguf, a.threads)
    prompts = make_prompts(a, gguf, model, failures)
    theirs = {('batch', name): model.logits(ids) for name, ids in prompts.items()}
    theirs |= {('steps', name): model.logits(ids, one_by_one=True) for name, ids in prompts.items() if name in TEXTS}
    model.close()
    if dtype == 'f32':
        exact.update(theirs)
    rows = []
    for precision in ('f32', 'bf16') if dtype == 'bf16' else ('f32',):
        ours = {name: rwkvx_logits(a, gguf, ids, precision) for name, ids in prompts.items()}
        for way in ('batch', 'steps'):
            found, own = Difference(), Difference()
            for (w, name), logits in theirs.items():
                if w == way:
                    found.add(ours[name], logits)
                    own.add(exact[w, name], logits)
            if not found.positions:
                continue
            bound = BOUNDS_F32 if dtype == 'f32' else Difference(TIMES_OWN * own.worst, TIMES_OWN * own.kl,
                                                                 1 - TIMES_OWN * (1 - own.same) - 0.005)
            ok = found.within(bound)
            if not ok:
                failures.append(f'{gguf.name}, {precision}, {way}: beyond the bound {bound}')
            rows.append((dtype, precision, way, found.positions, str(found), '' if dtype == 'f32' else str(own),
                         'ok' if ok else 'FAILED'))
    gguf.unlink()
    return rows


def main():
    a = parse_arguments()
    api = import_llama_cpp()
    rows, failures, exact = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ('f32', 'f16', 'bf16'):
            rows += check_dtype(a, pathlib.Path(folder), dtype, exact, failures)
    head = ('GGUF', 'rwkvx', 'llama.cpp', 'positions', 'max |Δ log p| / mean KL / same top token', 'own', '')
    widths = [max(len(str(r[i])) for r in [head] + rows) for i in range(len(head))]
    print(f'{run([a.rwkvx, "--version"]).decode().strip()}, llama-cpp-python {api.__version__}\n')
    for i, row in enumerate([head] + rows):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths)]
        print(('| ' + ' | '.join(cells) + ' |').replace('|Δ log p|', '&#124;Δ log p&#124;') if a.markdown
              else '  '.join(cells).rstrip())
        if i == 0 and a.markdown:
            print('|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
