"""Models: how each one of a recipe is trained, expanded or matched to another."""

import copy
import shutil

from .stages import Failure, Stage, read_json, write_json

# What two trainings on the same stream have in common; the rest belongs to the model.
PARAMETER_STEP = 8  # channels inside the channel mix, by which a control is fitted to a number of parameters


def flags(settings):
    out = []
    for name, value in settings.items():
        if value is True:
            out.append(f"--{name}")
        elif value is not False:
            out += [f"--{name}", value]
    return out


def patched(value, patch):
    """`value` with the fields of `patch` in it; null takes one away. Fields for a list, as for a mixture's sources, are by the
    names of what is in it."""
    out = copy.deepcopy(value)
    for name, new in (patch or {}).items():
        if new is None:
            out.pop(name, None)
        elif isinstance(new, dict) and isinstance(out.get(name), list):
            out[name] = [patched(item, new.get(item["name"])) for item in out[name]]
        else:
            out[name] = new
    return out


def newest(run):
    """Steps of the newest whole checkpoint, 0 if there is none."""
    steps = [int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*")
             if p.name.removeprefix("step-").isdigit()]
    return max(steps, default=0)


def checkpoint(run, step):
    return run / "checkpoints" / f"step-{step:08}" / "model.safetensors"


class Models:
    """Makes stages of models. `specs` are those of the recipe, `recipes` the folder of its mixtures."""

    def __init__(self, runner, recipes, specs, data):
        self.runner, self.recipes, self.specs, self.data = runner, recipes, specs, data
        self.root = runner.folders.out

    def spec(self, name):
        """With what it takes over from the model it is like."""
        if name not in self.specs:
            raise Failure(f"the recipe has no model {name}; it has {', '.join(self.specs)}")
        spec = copy.deepcopy(self.specs[name])
        if "like" not in spec:
            return spec
        like = self.spec(spec["like"])
        theirs, own = like.get("sources", {}), spec.get("sources", {})
        sources = {name: {**theirs.get(name, {}), **own.get(name, {})} for name in {**theirs, **own}}
        return {**like, **spec, "train": {**like["train"], **spec["train"]}, "sources": sources}

    def source_of(self, name):
        """The model that it goes on from, if any."""
        spec = self.spec(name)
        return spec.get("expand", spec.get("load"))

    def stage(self, name, made, change=None, mixture=None, at=None, seed=None):
        """The stage of a model. `made` has the stages it may start from by name, and the one it is fitted to."""
        spec = self.spec(name)
        groups = ("models", spec.get("path", "")) if at is None else ("ablations",)
        if "expand" in spec:
            return self.expanded(name, at or name, spec, made, change, groups)
        settings = {**spec["train"], **(change or {})}
        if seed is not None:
            settings["seed"] = seed
        text = read_json(self.recipes / spec["mixture"])
        text = patched(text, {field: spec[field] for field in ("sources", "weights", "phases") if field in spec})
        text = patched(text, mixture)
        needs = [self.data]
        # One that goes on has its size already.
        fit = spec.get("fit", None if "load" in spec else spec.get("like"))
        fitted = made[fit] if fit else None
        if fitted:
            needs.append(fitted)
        source = made[spec["load"]] if "load" in spec else None
        if source:
            needs.append(source)

        def run(folder):
            self.train(folder, name, settings, text, fitted, source)

        return Stage(at or name, spec.get("title", name), {"train": settings, "mixture": text}, run, needs, groups)

    def expanded(self, name, at, spec, made, change, groups):
        source = made[spec["expand"]]
        settings = {**spec["settings"], **(change or {})}

        def run(folder):
            for file in ("model.safetensors", f"{name}.gguf"):
                more = [] if file.endswith(".safetensors") else ["--dtype", "bf16"]
                self.runner.run(["expand", self.root / source.name / "model.safetensors", folder / file,
                                 *flags(settings), *more], threads=False)
            self.describe(folder, name)

        return Stage(at, spec.get("title", name), {"expand": settings}, run, [source], groups)

    def train(self, folder, name, settings, mixture, fitted, source):
        run = folder / "run"
        common = ["--data", self.data_file("train"), "--held-out", self.data_file("held-out")]
        if newest(run) < settings["steps"]:
            if newest(run) > 0:
                self.runner.run(["train", "--out", run, "--resume"])
            else:
                shutil.rmtree(run, ignore_errors=True)  # stopped before its first checkpoint
                settings = dict(settings)
                if fitted:
                    settings["ffn"] = self.fitting(folder, settings, fitted)
                if source:
                    settings["load"] = self.root / source.name / "model.safetensors"
                write_json(folder / "recipe.json", mixture)
                self.runner.run(["train", "--out", run, "--mixture", folder / "recipe.json", *common,
                                 "--vocab", "byte", *flags(settings)])
        trained = checkpoint(run, newest(run))
        shutil.copyfile(trained, folder / "model.safetensors")
        chunks = {k: v for k, v in settings.items() if k in ("chunk-size", "chunk-top-k")}
        self.runner.run(["convert", trained, folder / f"{name}.gguf", "--dtype", "bf16", *flags(chunks)], threads=False)
        self.describe(folder, name)

    def data_file(self, name):
        return self.root / self.data.name / name

    def describe(self, folder, name):
        self.runner.run(["info", folder / f"{name}.gguf", "--json"], output=folder / "info.json", threads=False)

    def fitting(self, folder, settings, fitted):
        """Channels inside the channel mix that give a model as many parameters as `fitted` has: they grow linearly."""
        goal = read_json(self.root / fitted.name / "info.json")["parameters"]
        channels = settings.get("channels", 256)
        counts = {}
        for ffn in (channels, 2 * channels):
            probe = folder / "probe"
            shutil.rmtree(probe, ignore_errors=True)
            sizes = {k: settings[k] for k in ("layers", "channels", "sparse-blocks") if k in settings}
            self.runner.run(["train", "--out", probe, "--data", self.data_file("train"), "--context", 16, "--batch", 1,
                             "--steps", 1, *flags(sizes), "--ffn", ffn])
            self.runner.run(["info", checkpoint(probe, 1), "--json"], output=folder / "probe.json", threads=False)
            counts[ffn] = read_json(folder / "probe.json")["parameters"]
            shutil.rmtree(probe)
        slope = (counts[2 * channels] - counts[channels]) / channels
        ffn = channels + (goal - counts[channels]) / slope
        return max(PARAMETER_STEP, PARAMETER_STEP * round(ffn / PARAMETER_STEP))
