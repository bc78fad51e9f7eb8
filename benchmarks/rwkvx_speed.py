"""rwkvx as compare_llama_cpp and token_regions run it: models made for both programs, a loaded model on request, single commands."""
import contextlib
import json
import subprocess
import sys


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True)
    if done.returncode:
        sys.exit(f'{" ".join(str(c) for c in command)}\nfailed: {done.stderr.decode(errors="replace").strip()}')
    return done.stdout


class Rwkvx:
    """A model in benchmarks/model_speed, which stays loaded between rounds."""

    def __init__(self, program, gguf, precision, threads, kv_dtype=None):
        self.gguf = gguf
        command = [program, gguf, precision, str(threads)] + ([kv_dtype] if kv_dtype else [])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what, tokens):
        """The line that answers one of model_speed's commands."""
        try:
            self.process.stdin.write(f'{what} {tokens}\n')
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        if not answer:
            sys.exit(f'model_speed {self.gguf} ended at {what} {tokens} with status {self.process.wait()}; '
                     'what it said is above (-9: memory was short)')
        return answer

    def time(self, what, tokens):
        """Tokens per second. `what`: prefill, from an empty state, or decode, from where it is."""
        return float(self.ask(what, tokens))

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # it may have ended
            self.process.stdin.close()
        self.process.wait()


def write_gguf(program, model, gguf, dtype, vocab, mixed):
    """Of a quantised dtype, embedding and head too unless `mixed`; low-rank matrices keep 16 bits."""
    if dtype in ('f32', 'f16', 'bf16'):
        run([program, 'convert', model, gguf, '--dtype', dtype, '--vocab', vocab])
        return
    # RWKV-X has the names of RWKV-7 behind "rwkv.".
    uniform = [] if mixed else ['--set', f'*emb.weight={dtype}', f'*head.weight={dtype}']
    run([program, 'quantize', model, gguf, '--type', dtype, '--vocab', vocab, *uniform])


def generate_speeds(program, gguf, prompt, prompt_tokens, decode, precision, threads):
    """Tokens per second of prompt and generation, as the command that users run reports them."""
    told = json.loads(run([program, 'generate', gguf, '--prompt-file', prompt, '--max-tokens', decode + 1,
                           '--temperature', 0, '--ignore-end', '--json', '--precision', precision,
                           '--threads', threads]))
    if told['prompt_tokens'] != prompt_tokens:
        sys.exit(f'the prompt is {told["prompt_tokens"]} tokens, not {prompt_tokens}: is this the World vocabulary?')
    return {'prefill': told['prompt_tokens_per_second'], 'decode': told['generate_tokens_per_second']}


def bench(program, gguf, prefill, decode, precision, threads):
    """What rwkvx bench measures of the machine, and of the model beside it."""
    told = json.loads(run([program, 'bench', gguf, '--json', '--prefill', prefill, '--decode', decode,
                           '--precision', precision, '--threads', threads]))
    return {name: told[name] for name in (
        'machine_read_gigabytes_per_second', 'machine_product_gigaflops_per_second', 'weight_bytes',
        'prefill_fraction_of_machine', 'decode_fraction_of_machine')}
