#!/usr/bin/env python3
"""Measures on a GPU what others' kernels reach at the sizes that cuda_speed measures ours with.

Copies and matrix products, PyTorch's causal attention (cuDNN and FlashAttention-2), flash-linear-attention's RWKV-7
recurrence and MoBA attention, and a training step of the plain PyTorch definition of RWKV-X. Prints a JSON object for
each measurement as soon as it is there; what fails is reported in the same way and the rest goes on. Times are those of
CUDA events: medians over batches of calls after a warm-up, a single run where one takes over a second.

Needs PyTorch with CUDA. flash-linear-attention needs the folder of its package fla-core (unpacked) in --fla, the
training step the file that defines the model in --reference; both are left out without. With --device cpu and --shrink
the program can be tried without a GPU.
"""
import argparse
import contextlib
import importlib.util
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

HEAD = 64
DECAY_SCALE = math.exp(-0.5)
START = time.time()
SECTIONS = ['copy', 'product', 'sdpa', 'rwkv7', 'moba', 'sdpa_long', 'rwkv7_backward', 'sdpa_backward', 'rwkv7_decode',
            'reference']


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--budget', type=float, default=240, help='seconds for all; what does not fit is skipped')
    p.add_argument('--only', default=','.join(SECTIONS), help='sections, in the order wanted (default %(default)s)')
    p.add_argument('--heads', type=int, default=40)
    p.add_argument('--fla', help='folder that holds the package fla')
    p.add_argument('--reference', help='rwkvx_reference.py')
    p.add_argument('--device', default='cuda', choices=['cuda', 'cpu'])
    p.add_argument('--shrink', type=int, default=1, help='divides lengths and sizes')
    p.add_argument('--reference-context', type=int, default=512)
    p.add_argument('--quick-tuning', type=int, default=1, help="0: flash-linear-attention's tuning as it comes")
    a = p.parse_args()
    unknown = set(a.only.split(',')) - set(SECTIONS)
    if unknown:
        p.error(f'unknown sections: {", ".join(sorted(unknown))}')
    return a


def say(**fields):
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = float(f'{value:.5g}')
    fields['at'] = round(time.time() - START, 1)
    print(json.dumps(fields), flush=True)


class Peers:
    def __init__(self, a):
        self.a = a
        self.gpu = a.device == 'cuda'
        self.device = torch.device(a.device)
        self.generator = torch.Generator(self.device).manual_seed(1)

    # ---- measuring

    def left(self):
        return self.a.budget - (time.time() - START)

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    def run(self, call, times):
        """Milliseconds of one call."""
        if not self.gpu:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return 1e3 * (time.perf_counter() - start) / times
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / times

    def median(self, call, warm=True):
        if warm:
            call()
            self.wait()
        first = self.run(call, 1)
        if first > 1000:
            return first, 1
        times = max(1, min(100, int(5 / max(first, 1e-3))))
        repeats = max(3, min(20, int(300 / max(first * times, 1e-3))))
        return statistics.median(self.run(call, times) for _ in range(repeats)), times * repeats

    def measure(self, what, sizes, make, seconds=0.5, warm=True):
        """make() gives the call and the amounts of work as {name: (amount, unit per second)}. Milliseconds or None."""
        if seconds > self.left():
            say(what=what, **sizes, skipped=f'needs about {seconds:.0f} s, {self.left():.0f} s are left')
            return None
        try:
            begin = time.time()
            made = make()
            call, work = made[:2]
            ms, calls = self.median(call, warm)
            fields = dict(what=what, **sizes, milliseconds=ms, calls=calls)
            for name, (amount, unit) in work.items():
                fields[name] = amount / ms * 1e3 / unit
            if len(made) > 2:
                fields.update(made[2]())
            fields['took_seconds'] = time.time() - begin
            if self.gpu:
                fields['peak_gb'] = torch.cuda.max_memory_allocated() / 1e9
                torch.cuda.reset_peak_memory_stats()
            say(**fields)
            return ms
        except Exception as e:  # noqa: BLE001: one failure must not end the rest
            say(what=what, **sizes, error=f'{type(e).__name__}: {e}'[:600])
            return None
        finally:
            made = call = None
            if self.gpu:
                with contextlib.suppress(Exception):
                    torch.cuda.empty_cache()

    def normal(self, *shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=self.generator, device=self.device, dtype=dtype)

    def length(self, tokens):
        return max(64, tokens // self.a.shrink)

    # ---- memory and products

    def copy(self):
        elements = (1 << 30) // self.a.shrink  # 2 GiB of bf16

        def make():
            source = self.normal(1 << 20).repeat(max(1, elements >> 20))
            target = torch.empty_like(source)
            return lambda: target.copy_(source), {'gb_per_s': (4 * source.numel(), 1e9)}

        self.measure('copy', {'bytes': 2 * elements}, make)

        def make_read():
            source = self.normal(1 << 20, dtype=torch.float32).repeat(max(1, elements >> 20))
            return lambda: source.sum(), {'gb_per_s': (4 * source.numel(), 1e9)}

        self.measure('read (sum of f32)', {'bytes': 4 * elements}, make_read)

    def product(self):
        def at(m, n, k):
            def make():
                x, w = self.normal(m, k), self.normal(n, k)
                return lambda: F.linear(x, w), {'tflop_per_s': (2 * m * n * k, 1e12),
                                                'weights_gb_per_s': (2 * n * k, 1e9)}
            self.measure('product bf16', {'rows': m, 'out': n, 'in': k}, make)

        s = self.a.shrink
        at(8192 // s, 8192 // s, 8192 // s)
        c = self.a.heads * HEAD
        for out, inner in ((c, c), (4 * c, c), (c, 4 * c)):
            at(4096 // s, out, inner)

        def rotating(rows, out, inner):
            """One matrix after another, more than the cache holds."""
            def make():
                count = max(2, math.ceil(3e8 / self.a.shrink / (2 * out * inner)))
                ws = [self.normal(out, inner) for _ in range(count)]
                x = self.normal(rows, inner)
                turn = iter(range(1 << 60))
                return lambda: F.linear(x, ws[next(turn) % count]), {'weights_gb_per_s': (2 * out * inner, 1e9)}
            self.measure('product bf16, decode', {'rows': rows, 'out': out, 'in': inner}, make)

        for rows in (1, 8):
            rotating(rows, 4 * c, c)

    # ---- attention of PyTorch

    def backend(self, name):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        if not self.gpu:
            return contextlib.nullcontext()
        return sdpa_kernel([getattr(SDPBackend, name)])

    def attention_error(self, q, k, v, o):
        """Of the last queries of the first and last head, against float32."""
        worst = 0.0
        for h in (0, q.shape[1] - 1):
            s = q[0, h, -4:].float() @ k[0, h].float().T / math.sqrt(HEAD)
            T = s.shape[1]
            s.masked_fill_(torch.arange(T, device=s.device)[None] > torch.arange(T - 4, T, device=s.device)[:, None],
                           -math.inf)
            worst = max(worst, (s.softmax(-1) @ v[0, h].float() - o[0, h, -4:].float()).abs().max().item())
        return {'max_error': worst}

    def sdpa_at(self, tokens, backend, seconds, backward=False):
        T, H = self.length(tokens), self.a.heads

        def make():
            q, k, v = [self.normal(1, H, T, HEAD) for _ in range(3)]
            flop = 4 * H * HEAD * T * (T + 1) / 2
            if not backward:
                def call():
                    with self.backend(backend), torch.no_grad():
                        call.o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return call, {'tflop_per_s': (flop, 1e12)}, lambda: self.attention_error(q, k, v, call.o)
            for x in (q, k, v):
                x.requires_grad_()
            d = self.normal(1, H, T, HEAD)

            def both():
                with self.backend(backend):
                    torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), d)
            return both, {'tflop_per_s': (3.5 * flop, 1e12)}

        what = 'causal attention' + (', forward and backward' if backward else '')
        return self.measure(what, {'backend': backend, 'rows': T, 'heads': H}, make, seconds, warm=tokens <= 1 << 18)

    def sdpa(self):
        self.speed = {}
        for tokens in (1 << 13, 1 << 15, 1 << 17):
            for backend in ('CUDNN_ATTENTION', 'FLASH_ATTENTION'):
                ms = self.sdpa_at(tokens, backend, 3)
                if ms:
                    self.speed[backend] = ms / tokens ** 2

    def sdpa_long(self):
        speed = getattr(self, 'speed', {})
        if not speed:  # the section sdpa was left out
            for backend in ('FLASH_ATTENTION', 'CUDNN_ATTENTION'):
                ms = self.sdpa_at(1 << 16, backend, 3)
                if ms:
                    speed[backend] = ms / (1 << 32)
        best = min(speed.values(), default=0)
        # FlashAttention first: its offsets are known to be wide enough.
        for tokens in (1 << 20, 1 << 19):
            for backend in sorted(speed, reverse=True):
                seconds = 2 + speed[backend] * tokens ** 2 / 1e3
                if speed[backend] > 1.5 * best:
                    say(what='causal attention', backend=backend, rows=tokens, skipped='much slower at 131072')
                else:
                    self.sdpa_at(tokens, backend, seconds)

    def sdpa_backward(self):
        for backend in ('CUDNN_ATTENTION', 'FLASH_ATTENTION'):
            self.sdpa_at(1 << 16, backend, 4, backward=True)

    # ---- flash-linear-attention

    def fla(self):
        if not self.a.fla:
            raise RuntimeError('flash-linear-attention is left out: no --fla')
        if self.a.fla not in sys.path:
            sys.path.insert(0, self.a.fla)
            os.environ['PYTHONPATH'] = self.a.fla + os.pathsep + os.environ.get('PYTHONPATH', '')
            begin = time.time()
            import fla
            import fla.ops.rwkv7
            if self.a.quick_tuning:
                tune_quickly()
            say(what='import of flash-linear-attention', version=fla.__version__, seconds=time.time() - begin)
        import fla.ops.rwkv7
        return fla.ops.rwkv7

    def rwkv7_inputs(self, batch, tokens):
        shape = (batch, tokens, self.a.heads, HEAD)
        r, k, v = [self.normal(*shape) for _ in range(3)]
        w = self.normal(*shape).sigmoid_().mul_(-DECAY_SCALE)
        kappa = F.normalize(self.normal(*shape).float(), dim=-1).bfloat16()
        rate = self.normal(*shape).sigmoid_()
        return r, w, k, v, kappa, rate

    def rwkv7_call(self, ops, batch, tokens, backward):
        r, w, k, v, kappa, rate = self.rwkv7_inputs(batch, tokens)
        x = [r, w, k, v, -kappa, kappa * rate]
        del kappa, rate
        # The arguments with which fla.layers.RWKV7Attention calls it.
        settings = dict(scale=1.0, output_final_state=not backward, safe_gate=True,
                        lower_bound=-0.6065306597126334, chunk_size=64)
        if not backward:
            def call():
                with torch.no_grad():
                    ops.chunk_rwkv7(*x, **settings)
            return call
        for one in x:
            one.requires_grad_()
        d = self.normal(*r.shape)
        return lambda: torch.autograd.grad(ops.chunk_rwkv7(*x, **settings)[0], x, d)

    def rwkv7(self, backward=False):
        try:
            ops = self.fla()
        except Exception as e:  # noqa: BLE001
            return say(what='RWKV-7 recurrence (fla)', error=f'{type(e).__name__}: {e}'[:600])
        kind = ', forward and backward' if backward else ''

        def tuned():
            call = self.rwkv7_call(ops, 1, self.length(1 << 14), backward)
            begin = time.time()
            call()
            self.wait()
            say(what='tuning of chunk_rwkv7' + kind, seconds=time.time() - begin)
            return call, {}

        if self.measure('RWKV-7 recurrence (fla chunk_rwkv7)' + kind,
                        {'batch': 1, 'rows': self.length(1 << 14), 'heads': self.a.heads}, tuned, 45) is None:
            return None
        for batch, tokens in ((1, 1 << 16), (8, 1 << 12)):
            T = self.length(tokens)
            self.measure('RWKV-7 recurrence (fla chunk_rwkv7)' + kind,
                         {'batch': batch, 'rows': T, 'heads': self.a.heads},
                         lambda: (self.rwkv7_call(ops, batch, T, backward), {'tokens_per_s': (batch * T, 1)}), 2)
        return None

    def rwkv7_backward(self):
        self.rwkv7(backward=True)

    def rwkv7_decode(self):
        try:
            ops = self.fla()
        except Exception as e:  # noqa: BLE001
            return say(what='RWKV-7 decode (fla)', error=f'{type(e).__name__}: {e}'[:600])
        for batch in (1, 8, 32):
            def make():
                x = self.rwkv7_inputs(batch, 1)
                state = torch.zeros(batch, self.a.heads, HEAD, HEAD, device=self.device)

                def call():
                    with torch.no_grad():
                        ops.fused_mul_recurrent_rwkv7(*x, scale=1.0, initial_state=state, output_final_state=True)
                return call, {}
            self.measure('RWKV-7 decode (fla fused_mul_recurrent_rwkv7)', {'batch': batch, 'heads': self.a.heads}, make,
                         20 if batch == 1 else 1)
        return None

    def moba(self):
        """flash-linear-attention's parallel_moba calls the package flash_attn; where that is missing, PyTorch's own copy
        of FlashAttention-2 takes its place."""
        fields = dict(what='MoBA attention (fla parallel_moba)')
        try:
            self.fla()
            import fla.ops.moba.parallel as moba
        except Exception as e:  # noqa: BLE001
            return say(**fields, error=f'{type(e).__name__}: {e}'[:600])
        kernel = 'flash_attn'
        if moba._flash_attn_varlen_forward is None:
            kernel = "PyTorch's FlashAttention-2"

            def forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal,
                        dropout_p):
                o, lse, seed, _, _ = torch.ops.aten._flash_attention_forward(
                    q, k, v, cu_seqlens_q.int(), cu_seqlens_k.int(), max_seqlen_q, max_seqlen_k, dropout_p, causal,
                    False, scale=softmax_scale)
                if tuple(lse.shape) != (q.shape[1], q.shape[0]):
                    raise RuntimeError(f'FlashAttention gives sums of shape {tuple(lse.shape)}')
                return o, lse, None, seed

            moba._flash_attn_varlen_forward = forward
            moba.flash_attn_varlen_func = lambda q, k, v, cq, ck, mq, mk, causal: forward(
                q, k, v, cq, ck, mq, mk, HEAD ** -0.5, causal, 0.0)[0]
        chunk, top_k, H = max(16, 2048 // self.a.shrink), 3, self.a.heads
        for tokens in (1 << 13, 1 << 15, 1 << 17, 1 << 18, 1 << 20):
            T = max(4 * chunk, tokens // self.a.shrink)
            sizes = {'rows': T, 'heads': H, 'chunk': chunk, 'top_k': top_k, 'kernel': kernel}
            gates = 4.0 * H * T * (T // chunk)
            if self.gpu and gates > 2.5e10:
                say(**fields, **sizes, skipped=f'its gates alone take {gates / 1e9:.0f} GB, several times over')
                continue

            def make():
                q, k, v = [self.normal(1, T, H, HEAD) for _ in range(3)]
                cu = torch.tensor([0, T], dtype=torch.int32, device=self.device)

                def call():
                    with torch.no_grad():
                        moba.parallel_moba(q, k, v, cu, T, chunk, top_k)
                pairs = sum((t % chunk) + 1 + chunk * min(top_k - 1, t // chunk) for t in range(0, T, 64)) * 64
                return call, {'tflop_per_s': (4 * HEAD * H * pairs, 1e12)}
            self.measure(fields['what'], sizes, make, 5)
        return None

    # ---- the plain definition

    def reference(self):
        fields = dict(what='training step of the plain PyTorch definition')
        if not self.a.reference:
            return say(**fields, error='left out: no --reference')
        spec = importlib.util.spec_from_file_location('rwkvx_reference', self.a.reference)
        reference = importlib.util.module_from_spec(spec)
        sys.modules['rwkvx_reference'] = reference
        spec.loader.exec_module(reference)
        s = self.a.shrink
        layers, sparse, channels, vocab = max(2, 12 // s), max(1, 4 // s), max(128, 768 // s), max(256, 65536 // s)
        context = max(64, self.a.reference_context // s)
        seconds = 8
        for name, dtype in (('f32', torch.float32), ('bf16', torch.bfloat16)):
            def make():
                # It makes its states on the default device.
                torch.set_default_device(self.device)
                torch.set_default_dtype(dtype)
                w = {key: value.to(self.device, dtype).requires_grad_() for key, value in
                     reference.random_weights_on_cpu(layers, sparse, channels, vocab).items()}
                config = reference.config_of(w, chunk=max(64, context // 4), topk=3)
                tokens = torch.randint(0, vocab, (1, context + 1), device=self.device)

                def call(rows=context):
                    torch.autograd.grad(reference.loss(w, tokens[:, :rows], tokens[:, 1:rows + 1], config),
                                        list(w.values()))
                call(32)
                return call, {'tokens_per_s': (context, 1)}

            def random_weights_on_cpu(*sizes):
                with torch.device('cpu'):
                    torch.set_default_dtype(torch.float32)
                    w = reference.random_weights(*sizes, seed=1)
                    torch.set_default_dtype(dtype)
                    return w
            reference.random_weights_on_cpu = random_weights_on_cpu
            ms = self.measure(fields['what'], {'type': name, 'context': context, 'layers': layers,
                                               'sparse_blocks': sparse, 'channels': channels, 'vocab': vocab},
                              make, seconds, warm=False)
            torch.set_default_device('cpu')
            torch.set_default_dtype(torch.float32)
            if ms:
                seconds = 3 + 5 * ms / 1e3
        return None


def tune_quickly():
    """Triton tunes a kernel by compiling all its variants one after another and running each for long. Compiles them
    all at once on the processor's cores, and runs each for a shorter time."""
    import concurrent.futures

    import triton
    from triton.runtime._async_compile import AsyncCompileMode
    from triton.runtime.autotuner import Autotuner

    pool = concurrent.futures.ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2)))
    original, done = Autotuner.run, set()

    def run(self, *args, **kwargs):
        named = {**dict(zip(self.arg_names, args)), **kwargs}
        key = (id(self),) + tuple(str(named.get(k)) for k in self.keys) + tuple(
            str(x.dtype) for n, x in named.items() if n in self.arg_names and hasattr(x, 'dtype'))
        if len(self.configs) > 1 and key not in done:
            done.add(key)
            self.__dict__['do_bench'] = lambda call, quantiles: triton.testing.do_bench(
                call, warmup=3, rep=15, quantiles=quantiles)
            try:
                with AsyncCompileMode(pool, ignore_errors=True):
                    for config in self.configs:
                        self.fn.run(*args, **{**kwargs, 'warmup': True}, **config.all_kwargs())
            except Exception as e:  # noqa: BLE001: then they are compiled one by one
                say(what='compiling ahead', kernel=self.base_fn.__name__, error=f'{type(e).__name__}: {e}'[:300])
        return original(self, *args, **kwargs)

    Autotuner.run = run


def main():
    a = parse_arguments()
    peers = Peers(a)
    machine = torch.cuda.get_device_name() if peers.gpu else 'cpu'
    say(what='machine', device=machine, torch=torch.__version__, cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if peers.gpu else None)
    for section in a.only.split(','):
        try:
            getattr(peers, section)()
        except Exception as e:  # noqa: BLE001
            say(what=section, error=f'{type(e).__name__}: {e}'[:600])
    say(what='end')


if __name__ == '__main__':
    main()
