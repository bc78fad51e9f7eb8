"""What is measured of models: needles, losses, speed, samples of their text."""

import re

from .models import flags
from .stages import Stage


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Measurements:
    def __init__(self, runner, data):
        self.runner, self.data, self.root = runner, data, runner.folders.out

    def gguf(self, stage, name):
        return self.root / stage.name / f"{name}.gguf"

    def haystacks(self, wanted):
        """Files of the held-out books: all of them ("books"), one by name, or the first where that name is missing."""
        files = sorted((self.root / self.data.name / "haystacks").glob("*.txt"))
        if wanted in (None, "noise"):
            return [None]
        named = [file for file in files if wanted in ("books", file.stem)]
        return named or files[:1]

    def needle(self, at, about, name, model, spec, lengths, extra=None):
        """A grid of needles, in a folder for each haystack."""
        settings = {"lengths": lengths, **spec["flags"], **(extra or {})}

        def run(folder):
            for file in self.haystacks(spec.get("haystack")):
                where = folder / (file.stem if file else "noise")
                self.runner.run(["needle", self.gguf(model, name), *flags(settings), "--out", where,
                                 *(["--haystack", file] if file else [])], output=folder / f"{where.name}.txt")

        return Stage(at, about, {"needle": settings, "haystack": spec.get("haystack", "noise")}, run,
                     [self.data, model], ("ablations",) if at.startswith("ablations/") else ())

    def loss(self, at, about, name, model, before):
        """Bits per byte of short windows, and by position in long pieces of the held-out books. `before` lists models
        (name, stage, stage of their losses) that are to be in the same picture, if they are measured already and the
        model is there: kept runs have none."""
        def run(folder):
            done = [self.gguf(stage, other) for other, stage, losses in before
                    if self.runner.folders.state(losses) == "done" and self.gguf(stage, other).exists()]
            for what in ("windows", "pieces"):
                self.losses(folder, what, [*done, self.gguf(model, name)], self.root / "loss" / what)

        return Stage(at, about, {"loss": "windows and pieces"}, run, [self.data, model])

    def short_loss(self, at, about, name, model):
        """Of short windows only."""
        def run(folder):
            self.losses(folder, "windows", [self.gguf(model, name)], folder / "windows")

        return Stage(at, about, {"loss": "windows"}, run, [self.data, model], ("ablations",))

    def losses(self, folder, what, files, kept):
        self.runner.run(["loss", *files, self.root / self.data.name / f"{what}.jsonl", "--measure", "bits-per-byte",
                         "--out", kept, "--json"], output=folder / f"{what}.json")

    def speed(self, name, model, spec):
        settings = {"lengths": spec["lengths"], "kv": spec["kv"]}

        def run(folder):
            self.runner.run(["bench", self.gguf(model, name), "--long", *flags(settings), "--json"],
                            output=folder / "speed.json")
        return Stage(f"evaluate/{name}/speed", "speed and memory by length", {"speed": settings}, run, [model])

    def samples(self, name, model, spec):
        settings = {k: v for k, v in spec.items() if k != "models"}

        def run(folder):
            for i, prompt in enumerate(settings["prompts"]):
                self.runner.run(["generate", self.gguf(model, name), "--prompt", prompt, "--max-tokens", settings["tokens"],
                                 *flags({k: settings[k] for k in ("seed", "temperature", "top-p")}), "--json"],
                                output=folder / f"{i}.json")
        return Stage(f"evaluate/{name}/samples", "a few sentences", {"samples": settings}, run, [model])

    def shipped(self, name, model, file):
        """The model under the name it is given away by; its card is the report's work."""
        def run(folder):
            (folder / file).write_bytes(self.gguf(model, name).read_bytes())
        return Stage("ship", "the model to give away", {"name": file}, run, [model])
