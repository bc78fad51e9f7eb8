"""A GGUF model in llama.cpp, through the C interface of the llama-cpp-python package: logits and timings.

Used by tools/check_llama_cpp.py and benchmarks/compare_llama_cpp. Nothing here samples or copies in a timed loop.
"""
import ctypes
import sys
import time

try:
    import numpy as np
except ImportError:
    sys.exit(f'numpy is not installed for {sys.executable}: benchmarks/install_llama_cpp FOLDER makes an environment with '
             'it and llama.cpp')

INSTALL = 'benchmarks/install_llama_cpp FOLDER makes an environment with it'
BATCH = 512  # tokens that llama.cpp computes at a time by default (its ubatch)


def import_llama_cpp():
    """The llama_cpp module; exits with the way to install it where it is missing."""
    try:
        import llama_cpp
    except ImportError:
        sys.exit(f'llama.cpp is not installed for {sys.executable}: {INSTALL}')
    return llama_cpp


class LlamaCppModel:
    """Errors: RuntimeError where llama.cpp refuses the file or a batch; its own words go to stderr.

    `context` is the most tokens of a prompt."""

    def __init__(self, path, threads, context=4096):
        self.path, self.threads, self.most = path, threads, context
        self.contexts = {}  # by ubatch
        self.api = import_llama_cpp()

        @self.api.llama_log_callback
        def log(level, text, _):
            if level == 4:  # errors only
                sys.stderr.write(text.decode(errors='replace'))
        self._log = log  # llama.cpp keeps a pointer to it
        self.api.llama_log_set(log, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(str(path).encode(), self.api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f'llama.cpp cannot load {path}')
        self.use(BATCH)
        self.vocabulary = self.api.llama_model_get_vocab(self.model)
        self.vocab = self.api.llama_vocab_n_tokens(self.vocabulary)

    def use(self, ubatch):
        """From now on `ubatch` tokens are computed at a time, in a context with a state of its own."""
        if ubatch not in self.contexts:
            params = self.api.llama_context_default_params()
            params.n_ctx = params.n_batch = self.most
            params.n_ubatch = ubatch
            params.n_threads = params.n_threads_batch = self.threads
            params.n_seq_max = 1
            params.no_perf = True
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise RuntimeError(f'llama.cpp cannot make a context for {self.path} with ubatch {ubatch}')
            self.contexts[ubatch] = context
        self.context = self.contexts[ubatch]

    def close(self):
        for context in self.contexts.values():
            self.api.llama_free(context)
        self.api.llama_model_free(self.model)

    def system(self):
        """llama.cpp's own words on what its library was built for and uses here."""
        return self.api.llama_print_system_info().decode()

    def reset(self):
        """Back to an empty state."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def _batch(self, tokens):
        self._tokens = (self.api.llama_token * len(tokens))(*tokens)
        return self.api.llama_batch_get_one(self._tokens, len(tokens))

    def _decode(self, batch):
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f'llama_decode failed with {status}')

    def tokenize(self, text):
        """bytes -> token ids, by the tokenizer that the file carries."""
        room = len(text) + 8
        out = (self.api.llama_token * room)()
        n = self.api.llama_tokenize(self.vocabulary, text, len(text), out, room, False, False)
        if n < 0:
            raise RuntimeError('llama_tokenize failed')
        return list(out[:n])

    def logits(self, tokens, one_by_one=False):
        """token ids [T] -> float32 [T, V], from an empty state; as one batch or in T steps."""
        self.reset()
        out = np.empty((len(tokens), self.vocab), np.float32)
        step = 1 if one_by_one else BATCH
        for start in range(0, len(tokens), step):
            part = tokens[start:start + step]
            batch = self._batch(part)
            wanted = (ctypes.c_int8 * len(part))(*([1] * len(part)))
            batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
            self._decode(batch)
            for i in range(len(part)):
                row = self.api.llama_get_logits_ith(self.context, i)
                out[start + i] = np.ctypeslib.as_array(row, (self.vocab,))
        return out

    def best_ubatch(self, tokens, ubatches):
        """({ubatch: tokens per second of this prompt, after warming up}, the fastest); other contexts are freed."""
        speeds = {}
        for ubatch in ubatches:
            self.time_prefill(tokens[:ubatch], ubatch)
            speeds[ubatch] = self.time_prefill(tokens, ubatch)
        best = max(speeds, key=speeds.get)
        for ubatch in set(self.contexts) - {BATCH, best}:
            self.api.llama_free(self.contexts.pop(ubatch))
        self.use(BATCH)
        return speeds, best

    def time_prefill(self, tokens, ubatch=BATCH):
        """Tokens per second of one prompt from an empty state; logits of the last token only."""
        self.use(ubatch)
        self.reset()
        batch = self._batch(tokens)
        start = time.perf_counter()
        self._decode(batch)
        self.api.llama_synchronize(self.context)
        return len(tokens) / (time.perf_counter() - start)

    def time_decode(self, tokens):
        """Tokens per second fed one by one, with logits for each, continuing after time_prefill with BATCH."""
        self.use(BATCH)
        batches, kept = [], []
        for token in tokens:
            batches.append(self._batch([token]))
            kept.append(self._tokens)
        start = time.perf_counter()
        for batch in batches:
            self._decode(batch)
            self.api.llama_synchronize(self.context)
        return len(tokens) / (time.perf_counter() - start)
