"""Numbers for the report."""

from .measurements import slug
from .plan import ablation_place
from .results import Loss, Needles, Training, json_or_none

MISSING = "not run"


def table(head, rows):
    width = max([len(head)] + [len(row) for row in rows])
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in [*cells, *[""] * (width - len(cells))]) + " |"
    return "\n".join([line(head), "|" + "---|" * width, *map(line, rows)])


def percent(share):
    return MISSING if share is None else f"{100 * share:.1f}".removesuffix(".0")


def number(value):
    return MISSING if value is None else f"{value:.4f}"


def size(tokens):
    for unit, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return str(tokens)


def spread(values, form):
    """Mean, and the ends where there are several."""
    values = [value for value in values if value is not None]
    if not values:
        return MISSING
    mean = form(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form(min(values))} – {form(max(values))})"


class Results:
    """Only results of stages as the recipe has them now: those made with other settings are missing."""

    def __init__(self, plan, folders):
        self.plan, self.folders = plan, folders
        self.stages = {stage.name: stage for stage in plan.stages}

    def folder(self, name):
        """Of a stage, a folder that is not there if it was made with other settings."""
        stage = self.stages.get(name)
        if stage is None or self.folders.state(stage) not in ("done", "begun"):
            return self.folders.out / "none"
        return self.folders.of(stage)

    def record(self, stage):
        return json_or_none(self.folder(stage.name) / "stage.json")

    def corpus(self):
        return json_or_none(self.folder("data") / "corpus.json")

    def info(self, stage):
        return json_or_none(self.folder(stage.name) / "info.json")

    def training(self, stage):
        return Training(self.folder(stage.name))

    def needles(self, model, grid):
        return Needles(self.folder(f"evaluate/{model}/{grid}"))

    def loss(self, model, what):
        return Loss(self.folder(f"evaluate/{model}/loss") / f"{what}.json")

    def speed(self, model):
        return (json_or_none(self.folder(f"evaluate/{model}/speed") / "speed.json") or {}).get("lengths", [])

    def samples(self, model):
        folder = self.folder(f"evaluate/{model}/samples")
        read = [(prompt, json_or_none(folder / f"{i}.json"))
                for i, prompt in enumerate(self.plan.recipe["evaluation"]["samples"]["prompts"])]
        return [(prompt, sample["text"]) for prompt, sample in read if sample]

    def target(self, target):
        """{"about", "bound", "value", "shown", "met"} of an entry of the recipe's targets."""
        model = target.get("model", self.plan.recipe["shipped"])
        keys, shown = "", None
        if "needle" in target:
            found = self.needles(model, target["needle"])
            if target.get("length"):
                value = found.accuracy(target["length"])
            else:
                value = found.worst_length() if found else None
            if value is not None:
                keys = f", at least {found.fewest()} keys for each length and depth"
                shown = f"{percent(value)}%{keys}"
        elif "ratio" in target:
            above, below = (self.loss(name, "windows").bits() for name in target["ratio"])
            value = above / below if above is not None and below else None
            shown = f"{value:.4f}" if value is not None else None
        else:
            value = self.late_over_early(target["flat"])
            shown = f"{value:.4f}" if value is not None else None
        met = value is not None and target.get("least", value) <= value <= target.get("most", value)
        bound = f"≥ {percent(target['least'])}%" if "least" in target else f"≤ {target['most']}"
        return {"about": target["about"], "bound": bound, "value": value, "shown": shown, "met": met}

    def late_over_early(self, model):
        """Bits per byte of the last bucket over those of the bucket of 4K to 8K."""
        loss = self.loss(model, "pieces")
        early = loss.over(4096, 8192)
        buckets = loss.buckets()
        return buckets[-1][2] / early if early and buckets and buckets[-1][0] >= 8192 else None

    def tasks(self):
        return self.plan.recipe["ablations"]["tasks"]

    def seeds(self, variation):
        """[({task: needles}, loss)] of the seeds that are there."""
        found = []
        for seed in variation.get("seeds", [0]):
            at = ablation_place(variation["name"], seed)
            needles = {task["name"]: Needles(self.folder(f"{at}/needle-{task['name']}")) for task in self.tasks()}
            if any(needles.values()):
                found.append((needles, Loss(self.folder(f"{at}/loss") / "windows.json")))
        return found

    def ablation_columns(self, found):
        """(task, length) of what is there in a list of {task: needles}."""
        return [(task["name"], length) for task in self.tasks()
                for length in sorted({length for needles in found for length in needles[task["name"]].lengths()})]

    def ablations(self, group):
        """Columns, and (name, number of seeds, cells) of each variation."""
        found = {variation["name"]: self.seeds(variation) for variation in group["variations"]}
        columns = self.ablation_columns([needles for seeds in found.values() for needles, _ in seeds])
        rows = []
        for name, seeds in found.items():
            cells = [spread([needles[task].accuracy(length) for needles, _ in seeds], percent) for task, length in columns]
            rows.append((name, len(seeds), [*cells, spread([loss.bits() for _, loss in seeds], number)]))
        return columns, rows

    def inference_names(self):
        return ["as trained"] + [v["name"] for v in self.plan.recipe["ablations"]["inference"]]

    def inference(self):
        """Columns, and (name, cells) of each way to run the model."""
        found = {name: {task["name"]: Needles(self.folder(f"ablations/inference/{slug(name)}/{task['name']}"))
                        for task in self.tasks()} for name in self.inference_names()}
        columns = self.ablation_columns(found.values())
        return columns, [(name, [percent(needles[task].accuracy(length)) for task, length in columns] or [MISSING])
                         for name, needles in found.items()]
