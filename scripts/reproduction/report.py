"""docs/reproduction.md, written from the files of a run. Nothing in it is typed by hand."""

import shutil

from . import tables
from .stages import duration, write_text
from .tables import number, percent, table

MISSING = "not run"


def write_report(plan, folders, path):
    """The document, and its pictures in a folder of images/ beside it that is named as the document is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = tables.Results(plan, folders)
    pictures = Pictures(path.parent, path.stem)
    parts = [opening(plan, results), criteria(results), models(results), needles(results, pictures), losses(results, pictures),
             speed(results), ablations(results), samples(results), commands(plan)]
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    card = folders.out / "ship" / f"{plan.recipe['name']}.md"
    if card.parent.exists():
        write_text(card, model_card(plan, results))


class Pictures:
    def __init__(self, folder, name):
        self.folder, self.place = folder, f"images/{name}"

    def add(self, file, name, words):
        """Markdown for a copy of the picture, "" where it is not there."""
        if not file.exists():
            return ""
        (self.folder / self.place).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self.folder / self.place / name)
        return f"![{words}]({self.place}/{name})"


def measured(head, rows, missing):
    """A table of what a run has, and the rest by name: runs need not have everything."""
    parts = [table(head, rows)] if rows else []
    if missing:
        parts.append(f"{MISSING.capitalize()}: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def opening(plan, results):
    corpus = results.corpus()
    text = ("# The paper in miniature\n\n<!-- Written by scripts/reproduce from the files of a run; changes here are lost. "
            "-->\n\nSmall models, trained by rwkvx on texts in the public domain and on generated retrieval text, asked for "
            "what is hidden\nin texts that they were never trained on. `scripts/reproduce` makes all of it, this page too.")
    if corpus is None:
        return text
    if corpus["generated"]:
        return text + "\n\n**A trial on generated text: these numbers say nothing about RWKV-X.**"
    held_out = corpus["held_out"]
    trained = [name for name in corpus["bytes"] if name not in held_out]
    size = sum(corpus["bytes"][name] for name in trained) / 1e6
    return text + (f"\n\nTrained on {len(trained)} texts, {size:.1f} MB: {', '.join(sorted(trained))}. Held out: "
                   f"{', '.join(sorted(held_out))}.")


def criteria(results):
    rows = []
    for target in plan_targets(results):
        value, bound, shown = target["value"], target["bound"], target["shown"]
        met = MISSING if value is None else "yes" if target["met"] else "**no**"
        rows.append([target["about"], bound, MISSING if value is None else shown, met])
    return "## What was to be shown\n\n" + table(["", "bound", "measured", "met"], rows) if rows else ""


def plan_targets(results):
    return [results.target(target) for target in results.plan.recipe.get("targets", [])]


def time_of(record):
    """On the processor unless it says otherwise."""
    device = record.get("device", "cpu")
    return duration(record["seconds"]) + ("" if device == "cpu" else f", {device}")


def models(results):
    rows, missing = [], []
    for name, stage in results.plan.models.items():
        info, training, record = results.info(stage), results.training(stage), results.record(stage)
        if not info:
            missing.append(f"`{name}`")
            continue
        tokens = training.last("tokens")
        rows.append([f"`{name}`", stage.about, f"{info['layers']} + {info['sparse_blocks']} × {info['channels']}",
                     f"{info['parameters'] / 1e6:.3f} M", f"{tokens / 1e6:.1f} M" if tokens else "", time_of(record)])
    return ("## The models\n\nBlocks: RWKV-7 + sparse attention × channels. Tokens are bytes. Time is that of the whole stage on "
            "the machine it ran on.\n\n" + measured(["", "", "blocks", "parameters", "tokens trained", "time"], rows, missing))


def asked(grid):
    """What rwkvx needle was asked, and in what text."""
    where = {"books": "held-out books"}.get(grid.get("haystack"), grid.get("haystack", "noise"))
    return "`" + " ".join(f"--{k} {v}" for k, v in grid["flags"].items()) + f"`, in {where}"


def needles(results, pictures):
    parts = ["## Keys found\n\nExact match of greedy continuations, in percent (multi-value: the share of values named), and "
             "the number of keys of each\nlength; depths from 0 to 100%."]
    empty = []
    for grid in results.plan.recipe["evaluation"]["needles"]:
        found = {name: results.needles(name, grid["name"]) for name in grid["models"]}
        lengths = sorted({length for result in found.values() for length in result.lengths()})
        if not lengths:
            empty.append(f"{grid['title']}, {grid['lengths']}")
            continue
        rows = []
        for name, result in found.items():
            if not result:
                continue
            cells = [percent(result.accuracy(length)) for length in lengths]
            counts = {len(result.of(length)) for length in lengths} - {0}
            worst = "{} at {}, {:.0f}%".format(percent(result.worst_cell()[0]), tables.size(result.worst_cell()[1]),
                                               100 * result.worst_cell()[2])
            rows.append([f"`{name}`", *cells, "–".join(map(str, sorted(counts))), worst])
        head = ["", *map(tables.size, lengths), "keys", "worst length and depth"]
        parts.append(f"### {grid['title']}\n\n{asked(grid)}.\n\n" +
                     measured(head, rows, [f"`{name}`" for name, result in found.items() if not result]))
        shown = next((name for name, result in found.items() if result), None)  # one picture says enough
        for folder in found[shown].folders if shown else []:
            picture = pictures.add(folder / "heatmap.svg", f"{grid['name']}-{folder.name}.svg",
                                   f"`{shown}`: {grid['title'].lower()} in {folder.name}, by length and depth")
            if picture:
                parts.append(picture)
    return "\n\n".join([*parts, measured([], [], empty)] if empty else parts)


def losses(results, pictures):
    spec = results.plan.recipe["evaluation"]
    names = spec["loss"]
    short = {name: results.loss(name, "windows") for name in names}
    long = {name: results.loss(name, "pieces") for name in names}
    corpus = results.corpus() or {"compressed": {}}
    pressed = corpus["compressed"]
    head = ["", f"pieces of {tables.size(spec['held_out']['window'])}", f"pieces of {tables.size(spec['held_out']['piece'])}"]
    rows = [[f"`{name}`", number(short[name].bits()), number(long[name].bits())] for name in names if short[name] or long[name]]
    for name in ("gzip", "xz"):
        rows.append([name, *(number(pressed.get(what, {}).get(name)) for what in ("windows", "pieces"))])
    parts = ["## Bits per byte of the held-out texts\n\nEach piece is read by itself, from an empty state; gzip -9 and xz -9e "
             "pack each piece by itself.\n\n" +
             measured(head, rows, [f"`{name}`" for name in names if not (short[name] or long[name])])]
    positions = sorted({(b, e) for loss in long.values() for b, e, *_ in loss.buckets()})
    if positions:
        known = [name for name in names if long[name]]
        rows = []
        for begin, end in positions:
            cells = []
            for name in known:
                bits, error = next(((v, s) for b, _, v, s in long[name].buckets() if b == begin), (None, None))
                cells.append(number(bits) + (f" ±{error:.4f}" if error is not None else ""))
            rows.append([f"{tables.size(begin)} – {tables.size(end)}", *cells])
        parts.append("By position, with the standard error over pieces:\n\n" +
                     table(["bytes", *(f"`{name}`" for name in known)], rows))
        parts.append(pictures.add(results.folders.out / "loss" / "pieces" / "loss.svg", "loss.svg", "Bits per byte by position"))
    return "\n\n".join(part for part in parts if part)


def speed(results):
    parts = []
    models = results.plan.recipe["evaluation"]["speed"]["models"]
    if not any(results.speed(name) for name in models):
        return ""
    for name in models:
        rows = [[tables.size(r["context"]), f"{r['prefill_tokens_per_second']:.0f}", f"{r['decode_ms_median']:.3f}",
                 f"{r['resident_bytes'] / 1e6:.0f} MB", f"{r['kv_file_bytes'] / 1e6:.0f} MB"]
                for r in results.speed(name)]
        parts.append(f"`{name}`:\n\n" + (table(["length", "reading, tokens/s", "decoding, ms a token", "resident",
                                               "keys and values on disk"], rows) if rows else MISSING))
    return "## Speed and memory\n\n" + "\n\n".join(parts)


def ablations(results):
    spec = results.plan.recipe.get("ablations")
    if not spec:
        return ""
    titles = {task["name"]: task["title"] for task in spec["tasks"]}
    how = "; ".join(f"{task['title']}: {asked(task)}" for task in spec["tasks"])
    parts = ["## Ablations\n\nVariations of shortened recipes (`scripts/recipes/ablations.json`). Percent of keys found and bits per "
             f"byte of short\npieces, as the mean over seeds (lowest to highest). {how}."]

    def head(columns):
        return [f"{titles[task]}, {tables.size(length)}" for task, length in columns]

    def section(title, about, columns, rows, missing):
        if rows:
            parts.append(f"### {title}\n\n{about}\n\n" + measured(["", *columns], rows, missing))

    for group in spec["groups"]:
        columns, rows = results.ablations(group)
        section(group["title"], group["about"], ["seeds", *head(columns), "bits per byte"],
                [[name, str(seeds), *cells] for name, seeds, cells in rows if seeds], [name for name, seeds, _ in rows if not seeds])
    columns, rows = results.inference()
    section("At inference", f"The model `{results.plan.recipe['shipped']}` as it is, run differently:", head(columns),
            [[name, *cells] for name, cells in rows if set(cells) != {MISSING}],
            [name for name, cells in rows if set(cells) == {MISSING}])
    return "\n\n".join(parts) if len(parts) > 1 else ""


def quoted(text):
    return "\n".join("> " + line for line in text.replace("\\", "\\\\").split("\n"))


def samples(results):
    parts = []
    for name in results.plan.recipe["evaluation"]["samples"]["models"]:
        for prompt, text in results.samples(name):
            parts.append(f"`{name}`, from `{prompt.strip()}` on:\n\n{quoted(prompt + text)}")
    if not parts:
        return ""
    spec = results.plan.recipe["evaluation"]["samples"]
    return (f"## What they write\n\nThe first draw (seed {spec['seed']}, temperature {spec['temperature']}, top-p {spec['top-p']}), "
            "not a chosen one.\n\n" + "\n\n".join(parts))


def commands(plan):
    return ("## Doing it again\n\n```sh\nscripts/reproduce --list          # the stages\nscripts/reproduce                 # all of "
            "them; stopped at any time, it goes on\nscripts/reproduce --only " + " ".join(plan.models) +
            "\nscripts/reproduce --only evaluate\nscripts/reproduce --only ablations\n```")


def trained_tokens(plan, results, name):
    """Of the model and of those that it went on from."""
    tokens = 0
    while name:
        tokens += results.training(plan.models[name]).last("tokens") or 0
        name = plan.maker.source_of(name)
    return tokens


def card_prose(results, name):
    """How well the model predicts text, and what it writes."""
    spec = results.plan.recipe["evaluation"]
    lines = []
    bits = {what: results.loss(name, what).bits() for what in ("windows", "pieces")}
    if all(bits.values()):
        pressed = results.corpus()["compressed"]["pieces"]
        others = ", ".join(f"{program} {number(pressed[program])}" for program in ("gzip", "xz"))
        lines += [f"Held-out books: {number(bits['windows'])} bits per byte in pieces of {tables.size(spec['held_out']['window'])}, "
                  f"{number(bits['pieces'])} in pieces of {tables.size(spec['held_out']['piece'])} ({others}).", ""]
    samples = results.samples(name)
    if samples:
        lines += [f"What it writes (seed {spec['samples']['seed']}, temperature {spec['samples']['temperature']}, top-p "
                  f"{spec['samples']['top-p']}, the first draws):", ""]
    for prompt, text in samples:
        lines += [quoted(prompt + text), ""]
    return lines


def model_card(plan, results):
    name = plan.recipe["shipped"]
    stage = plan.models[name]
    info = results.info(stage)
    corpus = results.corpus()
    trained = sorted(set(corpus["bytes"]) - set(corpus["held_out"])) if corpus else []
    spec = plan.maker.spec(name)
    lines = [f"# {plan.recipe['name']}", "", "<!-- Written by scripts/reproduce. -->", "",
             f"{info['layers']} RWKV-7 and {info['sparse_blocks']} sparse blocks × {info['channels']} channels, "
             f"{info['parameters'] / 1e6:.3f} million parameters in {info['bytes'] / 1e6:.1f} MB, tokens are bytes, chunks of "
             f"{info['chunk_size']}, top-k {info['chunk_top_k']}." if info else MISSING, "",
             "| | |", "|---|---|",
             f"| trained on | {'generated text' if corpus and corpus['generated'] else ', '.join(trained) or MISSING}; generated "
             f"retrieval text |", f"| never trained on | {', '.join(corpus['held_out']) if corpus else MISSING} |",
             f"| tokens trained | {trained_tokens(plan, results, name) / 1e6:.1f} M |",
             f"| made by | `scripts/reproduce --only {spec['path']}`, stage `{name}`; mixture `scripts/recipes/{spec['mixture']}` |",
             "| license | that of rwkvx; the texts are in the public domain in the USA |", "", "Numbers:", "",
             table(["", "bound", "measured", "met"],
                   [[t["about"], t["bound"], MISSING if t["value"] is None else t["shown"],
                     MISSING if t["value"] is None else "yes" if t["met"] else "no"] for t in plan_targets(results)]), "",
             *card_prose(results, name),
             "Limits: it was made to show retrieval at a small size. Its sentences look like English and mean little; it knows "
             "nothing, follows no instructions, and finds what is stated in the ways of its training. `docs/reproduction.md` has "
             "all tables.", ""]
    return "\n".join(lines)
