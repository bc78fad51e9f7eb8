"""The text: books that are trained on, books that are only tested on, or generated text in their place."""

import gzip
import hashlib
import json
import lzma
import os
import random
import re
from pathlib import Path

from .stages import Failure, Stage, read_json, say, write_json, write_text

FIRST_PROSE = 400  # characters: licences, title pages and tables of contents have no such paragraph


def cleaned(raw):
    """A book without Project Gutenberg's licence and what stands before its first paragraph of prose."""
    text = raw.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    begin = re.search(r"^\*\*\* ?START OF.*$", text, re.MULTILINE | re.IGNORECASE)
    end = re.search(r"^\*\*\* ?END OF.*$", text, re.MULTILINE | re.IGNORECASE)
    text = text[begin.end() if begin else 0:end.start() if end else len(text)]
    at = 0
    for paragraph in re.split(r"(\n\s*\n)", text):
        if len(paragraph) >= FIRST_PROSE:
            return text[at:].strip() + "\n"
        at += len(paragraph)
    return text.strip() + "\n"


def generated(name, size):
    """Text for trying the recipe without books: sentences of a few hundred words, the same for the same name."""
    draw = random.Random(name)
    shared = random.Random("words")  # all texts speak one language
    syllables = ["ba", "den", "fi", "gor", "hal", "ine", "ko", "lum", "mer", "no", "pel", "ri", "sa", "tor", "und", "vi"]
    words = ["".join(shared.choice(syllables) for _ in range(shared.randint(1, 3))) for _ in range(300)]
    follow = {word: [shared.choice(words) for _ in range(4)] for word in words}
    text = []
    length = 0
    while length < size:
        word = draw.choice(words)
        sentence = [word.capitalize()]
        for _ in range(draw.randint(4, 14)):
            word = draw.choice(follow[word])
            sentence.append(word)
        text.append(" ".join(sentence) + draw.choice([". ", ". ", "? ", ".\n\n"]))
        length += len(text[-1])
    return "".join(text)


def windows(text, size, count):
    """`count` pieces of at most `size` bytes, evenly spread."""
    raw = text.encode()
    count = min(count, max(1, len(raw) // size))
    starts = [i * (len(raw) - size) // max(1, count - 1) for i in range(count)] if count > 1 else [0]
    return [raw[start:start + size].decode("utf-8", "ignore") for start in starts]


def compressed(pieces):
    """Bits per byte of what any system has at hand, each piece by itself."""
    size = sum(len(piece) for piece in pieces)
    return {"bytes": size,
            "gzip": 8 * sum(len(gzip.compress(piece, 9, mtime=0)) for piece in pieces) / size,
            "xz": 8 * sum(len(lzma.compress(piece, preset=9 | lzma.PRESET_EXTREME)) for piece in pieces) / size}


def places(root):
    """Where books are looked for when none are named."""
    found = [os.environ["RWKVX_BOOKS"]] if os.environ.get("RWKVX_BOOKS") else []
    return [Path(p) for p in found] + [root / "books", root.parent / "shared" / "data" / "books"]


def listed(books):
    return [book["file"] for book in books["train"]], [book["file"] for book in books["held_out"]]


def find_books(root, books, given):
    """Paths of the books to train on and of those held out."""
    train, held_out = listed(books)
    if not given:
        folder = next((p for p in places(root) if (p / train[0]).is_file()), None)
        if folder is None:
            raise Failure("no books are found in " + ", ".join(map(str, places(root))) +
                          "; scripts/reproduce --books says how to get them, --corpus names your own text, and --smoke "
                          "needs none")
        missing = [name for name in train + held_out if not (folder / name).is_file()]
        if missing:
            raise Failure(f"{folder}: {', '.join(missing)} missing; scripts/reproduce --books says how to get them")
        return [folder / name for name in train], [folder / name for name in held_out]
    files = []
    for path in map(Path, given):
        if not path.exists():
            raise Failure(f"--corpus {path}: there is no such file")
        files += sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if len(files) < 2:
        raise Failure("--corpus: at least two text files are needed, one to train on and one held out")
    apart = [path for path in files if path.name in held_out] or files[-1:]
    say(f"held out, never trained on: {', '.join(path.name for path in apart)}")
    return [path for path in files if path not in apart], apart


def data_stage(runner, recipe, root, given):
    """The token files, and the held-out books as haystacks, as pieces and as windows."""
    books = recipe["books"]
    held = recipe["evaluation"]["held_out"]
    if "generated" in books:
        sizes = books["generated"]
        sources = {name: None for name in sizes["train"] + sizes["held_out"]}
        apart = sizes["held_out"]
        content = {name: sizes["bytes"] for name in sources}
    else:
        train, held_out = find_books(root, books, given)
        sources = {path.stem: path for path in train + held_out}
        if len(sources) != len(train) + len(held_out):
            raise Failure("--corpus: two files have the same name")
        apart = [path.stem for path in held_out]
        content = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in sources.items()}

    def run(folder):
        sizes = {}
        texts = folder / "texts"
        haystacks = folder / "haystacks"
        for place in (texts, haystacks):
            place.mkdir(exist_ok=True)
        short, pieces = [], []
        for name, path in sources.items():
            text = generated(name, content[name]) if path is None else cleaned(path.read_bytes())
            sizes[name] = len(text.encode())
            write_text((haystacks if name in apart else texts) / f"{name}.txt", text)
            if name in apart:
                short += windows(text, held["window"], held["windows"] // len(apart))
                raw = text.encode()
                pieces += [raw[at:at + held["piece"]] for at in range(0, len(raw) - held["piece"] + 1, held["piece"])]
        for file, documents in (("windows.jsonl", short), ("pieces.jsonl", [p.decode("utf-8", "ignore") for p in pieces])):
            write_text(folder / file, "".join(json.dumps({"text": text}) + "\n" for text in documents))
        write_json(folder / "corpus.json", {"generated": "generated" in books, "bytes": sizes, "held_out": apart,
                                            "compressed": {"windows": compressed([t.encode() for t in short]),
                                                           "pieces": compressed(pieces)}})
        for name, place in (("train", texts), ("held-out", haystacks)):
            files = sorted(place.glob("*.txt"))
            runner.run(["data", "prepare", *files, "--vocab", "byte", "--out", folder / name], threads=False)

    return Stage("data", "texts and token files", {"content": content, "held_out": apart, "evaluation": held}, run)


def how_to_get(books, root):
    lines = ["# The books are in the public domain in the USA; check the law where you are. From Project Gutenberg:",
             f"mkdir -p {root / 'books'} && cd {root / 'books'}"]
    for book in books["train"] + books["held_out"]:
        number = book["gutenberg"]
        lines.append(f"curl -fsSL -o {book['file']} https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt && sleep 2")
    return "\n".join(lines)


def read_books(folder, recipe):
    return read_json(folder / recipe["books"]) if isinstance(recipe["books"], str) else recipe["books"]
