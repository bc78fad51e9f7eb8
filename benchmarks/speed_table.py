"""The tables of compare_llama_cpp: medians and ratios of what was measured. Needs nothing but Python."""
import statistics


def medians(result):
    """{program: {what: [values]}} -> the same with medians for lists."""
    return {program: {what: statistics.median(values) for what, values in series.items()}
            for program, series in result.items()}


def speed_rows(dtype, middle, settings):
    """The rows of one dtype, of medians: GGUF, what, llama.cpp, rwkvx, ratio (above 1: rwkvx is faster), generate."""
    theirs, ours, told = (middle[program] for program in ('llama.cpp', 'rwkvx', 'generate'))
    rows = []

    def speed(what, their, our, tell=None):
        rows.append([dtype, what, f'{their:.1f}', f'{our:.1f}', f'{our / their:.2f}', f'{tell:.1f}' if tell else ''])

    speed(f'prefill {settings["prefill"]}', theirs['prefill'], ours['prefill'], told['prefill'])
    speed(f'decode {settings["decode"]}', theirs['decode'], ours['decode'], told['decode'])
    if 'first token' in ours:
        seconds = ours['first token']
        for name in ['first token'] + ['first token, best ubatch'] * (settings['best_ubatch'] != settings['ubatch']):
            ubatch = settings['ubatch'] if name == 'first token' else settings['best_ubatch']
            rows.append([dtype, f'first token of {settings["first_token"]}, s; ubatch {ubatch}', f'{theirs[name]:.3f}',
                         f'{seconds:.3f}', f'{theirs[name] / seconds:.2f}', ''])
    for program, keys in (('rwkv-x', ''), ('rwkv-x bf16', ', keys in bf16')):
        if program in middle:
            hybrid = f'RWKV-X, {settings["sparse_blocks"]} sparse blocks, at {settings["context"]}{keys}'
            speed(f'decode {settings["decode"]}; {hybrid}', theirs['decode'], middle[program]['decode'])
    return rows


def machine_row(dtype, middle, file_bytes):
    """Of one dtype, of medians: GGUF, size, bytes a token reads, the machine's rates, shares of its read rate."""
    bench = middle['bench']
    read, product = (bench[f'machine_{rate}_per_second'] for rate in ('read_gigabytes', 'product_gigaflops'))
    weights = bench['weight_bytes']
    shares = [1e-9 * weights * middle[program]['decode'] / read for program in ('llama.cpp', 'rwkvx')]
    shares.append(bench['decode_fraction_of_machine'])
    return [dtype, f'{1e-6 * file_bytes:.0f}', f'{1e-6 * weights:.0f}', f'{read:.1f}', f'{product:.0f}',
            *(f'{share:.0%}' for share in shares)]


def markdown(head, rows):
    """A table of strings, columns aligned; numbers to the right."""
    number = [all(not row[i] or row[i].rstrip('%').replace('.', '', 1).isdigit() for row in rows)
              for i in range(len(head))]
    widths = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]

    def line(cells):
        aligned = (cell.rjust(w) if n else cell.ljust(w) for cell, w, n in zip(cells, widths, number))
        return '| ' + ' | '.join(aligned) + ' |\n'

    rule = ''.join('|' + '-' * (w + 1) + ('-' if not n else ':') for w, n in zip(widths, number)) + '|\n'
    return line(head) + rule + ''.join(line(row) for row in rows)


def tables(results):
    """{dtype: {'settings', 'file_bytes', 'measured': {program: {what: [values]}}}} -> two tables in Markdown."""
    middles = {dtype: medians(result['measured']) for dtype, result in results.items()}
    speeds = [row for dtype, middle in middles.items() for row in speed_rows(dtype, middle, results[dtype]['settings'])]
    machine = [machine_row(dtype, middle, results[dtype]['file_bytes']) for dtype, middle in middles.items()]
    return markdown(['GGUF', 'tokens/s', 'llama.cpp', 'rwkvx', 'ratio', 'generate'], speeds) + '\n' + markdown(
        ['GGUF', 'file, MB', 'a token reads, MB', 'machine reads, GB/s', 'multiplies, GFLOP/s',
         'share of reading: llama.cpp', 'rwkvx', 'rwkvx bench'], machine)
