"""From a recipe to its stages, in the order they are made."""

from .corpus import data_stage, read_books
from .measurements import Measurements, slug
from .models import Models
from .stages import Failure, read_json


def read_recipe(path):
    recipe = read_json(path)
    recipe["books"] = read_books(path.parent, recipe)
    if isinstance(recipe.get("ablations"), str):
        recipe["ablations"] = read_json(path.parent / recipe["ablations"])
    return recipe


def ablation_place(name, seed):
    return f"ablations/{slug(name)}/seed-{seed}"


class Plan:
    def __init__(self, runner, recipe, recipes, root, corpus):
        self.recipe = recipe
        self.data = data_stage(runner, recipe, root, corpus)
        self.stages = [self.data]
        self.models = {}
        self.maker = Models(runner, recipes, recipe["models"], self.data)
        self.measure = Measurements(runner, self.data)
        for name in recipe["models"]:
            self.models[name] = self.add(self.maker.stage(name, self.models))
        self.evaluation(recipe["evaluation"])
        if recipe.get("ablations"):
            self.ablations(runner, recipes, recipe["ablations"])
        self.add(self.measure.shipped(recipe["shipped"], self.models[recipe["shipped"]], f"{recipe['name']}.gguf"))

    def add(self, stage):
        if any(stage.name == other.name for other in self.stages):
            raise Failure(f"the recipe has two stages {stage.name}; give one another name")
        self.stages.append(stage)
        return stage

    def named(self, models):
        return [(name, self.models[name]) for name in models]

    def evaluation(self, spec):
        for grid in spec["needles"]:
            for name, model in self.named(grid["models"]):
                self.add(self.measure.needle(f"evaluate/{name}/{grid['name']}", f"{grid['title']}, {grid['lengths']}", name,
                                             model, grid, grid["lengths"]))
        before = []
        for name, model in self.named(spec["loss"]):
            losses = self.add(self.measure.loss(f"evaluate/{name}/loss", "bits per byte of held-out books", name, model,
                                                list(before)))
            before.append((name, model, losses))
        for name, model in self.named(spec["speed"]["models"]):
            self.add(self.measure.speed(name, model, spec["speed"]))
        for name, model in self.named(spec["samples"]["models"]):
            self.add(self.measure.samples(name, model, spec["samples"]))

    def ablations(self, runner, recipes, spec):
        """Each variation trains its own copies of the models it changes; those before them are the recipe's. One that
        changes nothing measures the recipe's own model."""
        maker = Models(runner, recipes, {**self.recipe["models"], **spec["models"]}, self.data)
        for variation in (variation for group in spec["groups"] for variation in group["variations"]):
            for seed in variation.get("seeds", [0]):
                at = ablation_place(variation["name"], seed)
                made = dict(self.models)
                for name, change in variation.get("change", {}).items():
                    own = (variation.get("mixture") or {}).get(name)
                    made[name] = self.add(maker.stage(name, made, change, own, f"{at}/{name}", seed))
                last = variation.get("model") or list(variation["change"])[-1]
                for task in spec["tasks"]:
                    self.add(self.measure.needle(f"{at}/needle-{task['name']}", f"{variation['name']}: {task['title']}", last,
                                                 made[last], task, spec["lengths"]))
                self.add(self.measure.short_loss(f"{at}/loss", variation["name"], last, made[last]))
        shipped = self.recipe["shipped"]
        for variation in [{"name": "as trained", "flags": {}}] + spec["inference"]:
            for task in spec["tasks"]:
                self.add(self.measure.needle(f"ablations/inference/{slug(variation['name'])}/{task['name']}",
                                             f"{variation['name']}: {task['title']}", shipped, self.models[shipped], task,
                                             variation.get("lengths", spec["inference_lengths"]), variation["flags"]))

    def chosen(self, words):
        for word in words:
            if not any(stage.chosen_by(word) for stage in self.stages):
                raise Failure(f"there is no stage {word}; --list shows them")
        return [stage for stage in self.stages if not words or any(stage.chosen_by(word) for word in words)]
