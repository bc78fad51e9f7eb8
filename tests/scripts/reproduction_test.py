"""The parts of scripts/reproduce that need no program: texts, states of stages, the report."""

import json
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from reproduction import corpus, models, report, tables  # noqa: E402
from reproduction.kept import keep  # noqa: E402
from reproduction.plan import Plan, read_recipe  # noqa: E402
from reproduction.stages import Failure, Folders, Runner, Stage, read_json  # noqa: E402

RECIPES = ROOT / "scripts" / "recipes"


class Temporary(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name)
        self.runner = Runner(self.out / "run", "/no/such/program", 0)

    def plan(self, recipe="smoke.json"):
        return Plan(self.runner, read_recipe(RECIPES / recipe), RECIPES, ROOT, [])

    def stage(self, plan, name):
        return next(stage for stage in plan.stages if stage.name == name)

    def leave(self, stage, files, done=True, device="cpu"):
        """What a finished stage leaves."""
        folder = self.runner.folders.of(stage)
        for name, value in {**files, "stage.json": {"done": done, "key": stage.key(), "seconds": 61, "device": device, "of": {need.name: self.runner.folders.made(need) for need in stage.needs},
                                                    "described": stage.described()}}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


class KeptTest(Temporary):
    def test_a_kept_run_is_done_and_small(self):
        plan = self.plan()
        model = plan.models["mixture"]
        self.leave(plan.data, {"corpus.json": {}, "pieces.jsonl": "{}\n", "texts/a.txt": "text"})
        for need in model.needs[1:]:
            self.leave(need, {})
        self.leave(model, {"info.json": {"file": f"{self.runner.folders.out}/mixture/mixture.gguf"}, "mixture.gguf": "weights",
                           "run/config.json": {"data": "/where/it was/made/data/train", "out": "/elsewhere/x.json", "mixture": "data/a"},
                           "run/metrics.jsonl": "{}\n", "run/checkpoints/last/trainer.json": {}})
        kept = self.out / "kept"
        keep(plan, self.runner.folders, kept)
        names = {str(file.relative_to(kept)) for file in kept.rglob("*") if file.is_file()}
        self.assertLessEqual({"data/stage.json", "data/corpus.json", "mixture/stage.json", "mixture/info.json",
                              "mixture/run/metrics.jsonl"}, names)
        self.assertFalse({"data/pieces.jsonl", "data/texts/a.txt", "mixture/mixture.gguf",
                          "mixture/run/checkpoints/last/trainer.json"} & names)
        self.assertEqual(read_json(kept / "mixture/info.json")["file"], "mixture/mixture.gguf")
        self.assertEqual(read_json(kept / "mixture/run/config.json"),
                         {"data": "data/train", "out": "/elsewhere/x.json", "mixture": "data/a"})
        self.assertEqual(Folders(kept).state(model), "done")
        keep(plan, self.runner.folders, kept)  # once more
        (self.out / "other").mkdir()
        with self.assertRaisesRegex(Failure, "holds no run"):
            keep(plan, self.runner.folders, self.out / "other")
        for own in (self.runner.folders.out, self.out, self.runner.folders.out / "kept"):
            with self.assertRaisesRegex(Failure, "own folder"):
                keep(plan, self.runner.folders, own)
        self.assertTrue((self.runner.folders.of(model) / "mixture.gguf").exists())


class TextTest(Temporary):
    def test_licences_and_tables_of_contents_are_cut(self):
        prose = "It was a dark night. " * 30
        book = f"\ufeffLicence {'x' * 500}\r\n*** START OF THIS BOOK ***\r\n\r\nCONTENTS\r\n\r\nI\r\n\r\n{prose}\r\n\r\nEnd.\r\n"
        book += "*** END OF THIS BOOK ***\r\nMore licence"
        self.assertEqual(corpus.cleaned(book.encode()), prose + "\n\nEnd.\n")
        self.assertEqual(corpus.cleaned(b"short\n"), "short\n")

    def test_windows_are_whole_characters(self):
        text = "äöü" * 100
        pieces = corpus.windows(text, 51, 4)
        self.assertEqual(len(pieces), 4)
        for piece in pieces:
            self.assertIn(piece, text)
            self.assertLessEqual(len(piece.encode()), 51)
        self.assertTrue(text.endswith(pieces[-1]))

    def test_generated_text_repeats_itself_by_name(self):
        self.assertEqual(corpus.generated("a", 500), corpus.generated("a", 500))
        self.assertNotEqual(corpus.generated("a", 500), corpus.generated("b", 500))

    def test_held_out_books_are_apart(self):
        books = read_json(RECIPES / "books.json")
        for name in ("jane_eyre.txt", "one.txt", "two.txt"):
            (self.out / name).write_text(name)
        names = lambda files: [file.name for file in files]  # noqa: E731
        train, held_out = corpus.find_books(ROOT, books, [str(self.out)])
        self.assertEqual((names(train), names(held_out)), (["one.txt", "two.txt"], ["jane_eyre.txt"]))
        train, held_out = corpus.find_books(ROOT, books, [str(self.out / "two.txt"), str(self.out / "one.txt")])
        self.assertEqual((names(train), names(held_out)), (["two.txt"], ["one.txt"]))
        for wrong in ([str(self.out / "one.txt")], [str(self.out / "none.txt")]):
            with self.assertRaises(Failure):
                corpus.find_books(ROOT, books, wrong)
        with self.assertRaisesRegex(Failure, "--books"):
            corpus.find_books(self.out / "nowhere" / "here", books, [])
        train, held_out = corpus.listed(books)
        self.assertFalse(set(train) & set(held_out))


class StageTest(Temporary):
    def test_a_stage_is_made_once_and_goes_on(self):
        calls = []

        def work(folder):
            calls.append(folder.name)
            if len(calls) == 1:
                raise KeyboardInterrupt

        stage = Stage("one", "", {"a": 1}, work)
        with self.assertRaises(KeyboardInterrupt):
            self.runner.make(stage)
        self.assertEqual(self.runner.folders.state(stage), "begun")
        self.runner.make(stage)
        self.runner.make(stage)
        self.assertEqual(calls, ["one", "one"])
        self.assertEqual(self.runner.folders.state(stage), "done")

    def test_other_settings_are_refused_until_redone(self):
        calls = []
        before, now = (Stage("one", "", {"a": {"b": value}}, calls.append) for value in (1, 2))
        after = Stage("two", "", {}, calls.append, needs=[now])
        self.runner.make(before)
        self.runner.make(Stage("two", "", {}, calls.append, needs=[before]))
        with self.assertRaisesRegex(Failure, r"settings: settings.a.b: 1 before, 2 now.*--redo one"):
            self.runner.make(now)
        self.assertEqual(self.runner.folders.state(after), "changed")
        self.runner.make(now, redo=True)
        self.assertEqual(self.runner.folders.state(now), "done")

    def test_what_was_made_of_something_older_is_out_of_date(self):
        one = Stage("one", "", {}, lambda folder: None)
        two = Stage("two", "", {}, lambda folder: None, needs=[one])
        self.runner.make(one)
        self.runner.make(two)
        self.runner.make(one, redo=True)
        with self.assertRaisesRegex(Failure, "older than one.*--redo two"):
            self.runner.make(two)
        self.runner.make(two, redo=True)
        self.assertEqual(self.runner.folders.state(two), "done")

    def test_two_do_not_share_a_folder(self):
        self.runner.take()
        with self.assertRaisesRegex(Failure, "another"):
            Runner(self.out / "run", "", 0).take()
        self.runner.lock.close()

    def test_recipes_make_plans(self):
        smoke = self.plan()
        self.assertEqual({s.name for s in smoke.chosen(["stages"])}, {"pretrain", "expand", "align", "long"})
        self.assertEqual({s.name for s in smoke.chosen(["mixture"])}, {"mixture", "control"})
        with self.assertRaisesRegex(Failure, "--list"):
            smoke.chosen(["nothing"])
        names = [stage.name for stage in smoke.stages]
        for stage in smoke.stages:  # in an order that can be followed
            for need in stage.needs:
                self.assertLess(names.index(need.name), names.index(stage.name))
        # Where there are books, too: only their names matter here.
        recipe = read_recipe(RECIPES / "reproduction.json")
        recipe["books"] = {"generated": {"bytes": 1, "train": ["a"], "held_out": ["b"]}}
        plan = Plan(self.runner, recipe, RECIPES, ROOT, [])
        for target in recipe["targets"]:
            self.assertIsNone(tables.Results(plan, self.runner.folders).target(target)["value"])

    def test_the_control_sees_the_same_stream(self):
        plan = self.plan()
        model, control = (plan.models[name].settings for name in ("mixture", "control"))
        self.assertEqual(model["mixture"], control["mixture"])
        differs = {k for k in model["train"] if model["train"][k] != control["train"].get(k)}
        self.assertEqual(differs, {"layers", "sparse-blocks", "gate-loss", "pointing-loss"})

    def test_a_control_may_be_fitted_to_another_model_than_it_is_like(self):
        recipe = read_recipe(RECIPES / "smoke.json")
        recipe["models"]["larger"] = {"like": "pretrain", "fit": "expand", "train": {"layers": 3}}
        recipe["models"]["later"] = {"like": "long", "load": "larger", "train": {"gate-loss": 0}}
        plan = Plan(self.runner, recipe, RECIPES, ROOT, [])
        self.assertEqual([need.name for need in plan.models["larger"].needs], ["data", "expand"])
        self.assertEqual([need.name for need in plan.models["later"].needs], ["data", "larger"])
        self.assertEqual(plan.models["larger"].settings["mixture"], plan.models["pretrain"].settings["mixture"])

    def test_a_model_that_goes_on_changes_sources_by_name(self):
        recipe = read_recipe(RECIPES / "smoke.json")
        recipe["models"]["more"] = {"like": "mixture", "load": "mixture", "sources": {"text": {"weight": 7}},
                                    "phases": [{"context": 64}], "train": {"steps": 3}}
        plan = Plan(self.runner, recipe, RECIPES, ROOT, [])
        first, more = (plan.models[name] for name in ("mixture", "more"))
        self.assertEqual([need.name for need in more.needs], ["data", "mixture"])
        self.assertEqual(more.settings["mixture"]["phases"], [{"context": 64}])
        before, after = (stage.settings["mixture"]["sources"] for stage in (first, more))
        self.assertEqual([s for s in after if s["name"] == "text"][0]["weight"], 7)
        self.assertEqual([s for s in after if s["name"] != "text"], [s for s in before if s["name"] != "text"])

    def test_changes_of_sources_add_up_along_what_models_are_like(self):
        recipe = read_recipe(RECIPES / "smoke.json")
        recipe["models"]["more"] = {"like": "mixture", "load": "mixture", "sources": {"text": {"weight": 7, "share": 0.5}}, "train": {}}
        recipe["models"]["most"] = {"like": "more", "load": "more", "sources": {"text": {"weight": 9}}, "train": {}}
        plan = Plan(self.runner, recipe, RECIPES, ROOT, [])
        text = next(source for source in plan.models["most"].settings["mixture"]["sources"] if source["name"] == "text")
        self.assertEqual((text["weight"], text["share"]), (9, 0.5))

    def test_a_variation_changes_sources_by_name(self):
        plan = self.plan()
        own = self.stage(plan, "ablations/two-stages-without-longce/seed-0/long").settings["mixture"]
        sources = {source["name"]: source for source in own["sources"]}
        recipes = {source["name"]: source for source in plan.models["long"].settings["mixture"]["sources"]}
        self.assertEqual(sources.pop("text"), {**recipes.pop("text"), "weight": 3})
        self.assertEqual(sources, recipes)
        self.assertNotIn("resets", own)

    def test_a_variation_that_changes_nothing_trains_nothing(self):
        plan = self.plan()
        names = {stage.name for stage in plan.stages if stage.name.startswith("ablations/alignment-as-it-is/")}
        self.assertEqual({name.split("/")[-1] for name in names}, {"needle-passkey", "needle-noise", "loss"})
        loss = self.stage(plan, "ablations/alignment-as-it-is/seed-0/loss")
        self.assertEqual([need.name for need in loss.needs], ["data", "align"])

    def test_a_model_may_have_weights_of_its_own(self):
        recipe = read_recipe(RECIPES / "smoke.json")
        recipe["models"]["more"] = {"like": "mixture", "load": "mixture", "weights": {"text": 0.5}, "train": {}}
        plan = Plan(self.runner, recipe, RECIPES, ROOT, [])
        self.assertEqual(plan.models["more"].settings["mixture"]["weights"], {"text": 0.5})
        self.assertNotEqual(plan.models["mixture"].settings["mixture"]["weights"], {"text": 0.5})

    def test_patches(self):
        self.assertEqual(models.patched({"a": 1, "b": 2}, {"a": None, "c": 3}), {"b": 2, "c": 3})
        self.assertEqual(models.flags({"a": 1, "b": True, "c": False}), ["--a", 1, "--b"])


class ReportTest(Temporary):
    def written(self, plan):
        path = self.out / "docs" / "reproduction.md"
        report.write_report(plan, self.runner.folders, path)
        return path.read_text()

    @staticmethod
    def result(length, depth, score):
        return json.dumps({"length": length, "depth": depth, "repeat": 0, "position": 0, "expected": ["1"], "predicted": "1",
                           "score": score}) + "\n"

    @staticmethod
    def loss(bits):
        row = {"bytes": 100, "bits_per_byte": bits, "bits_per_byte_error": None}
        buckets = [{"begin": 4096, "end": 8192, **row}, {"begin": 8192, "end": 16384, **row, "bits_per_byte": bits * 2}]
        return {"models": [{"model": "another"}, {"model": "this", "bits_per_byte": bits, "buckets": buckets}]}

    def test_what_is_missing_is_said_to_be(self):
        text = self.written(self.plan())
        self.assertIn("| Pass key in noise, every length | ≥ 99% | not run | not run |", text)
        self.assertNotIn("yes |", text)
        self.assertNotIn("%, at least", text)

    def test_numbers_come_from_the_files(self):
        plan = self.plan()
        grid = "evaluate/mixture/passkey-noise"
        found = self.result(512, 0, 1) * 2 + self.result(512, 1, 1) + self.result(1024, 0, 1) + self.result(1024, 1, 0)
        self.leave(self.stage(plan, grid), {"noise/results.jsonl": found + '{"length": 51', "noise/heatmap.svg": "<svg/>"})
        self.leave(self.stage(plan, "evaluate/long/loss"), {"windows.json": self.loss(2.02), "pieces.json": self.loss(1.5)})
        self.leave(self.stage(plan, "evaluate/pretrain/loss"), {"windows.json": self.loss(2.0), "pieces.json": self.loss(3)})
        self.leave(plan.data, {"corpus.json": {"generated": False, "bytes": {"one": 2000000, "third": 5}, "held_out": ["third"],
                                               "compressed": {"windows": {"gzip": 4.25, "xz": 5}, "pieces": {"gzip": 3.5, "xz": 3}}}})
        self.leave(plan.models["control"], {"info.json": {"layers": 6, "sparse_blocks": 0, "channels": 128,
                                                          "parameters": 1300000},
                                            "run/metrics.jsonl": '{"step": 1, "tokens": 2500000}\n'}, device="cuda:1")
        for seed, score in ((0, 1), (1, 0)):
            at = f"ablations/as-in-the-recipe/seed-{seed}"
            self.leave(self.stage(plan, f"{at}/needle-passkey"), {"third/results.jsonl": self.result(512, 0.5, score)})
            self.leave(self.stage(plan, f"{at}/loss"), {"windows.json": self.loss(4 + seed)})
        self.leave(self.stage(plan, "ablations/alignment-as-it-is/seed-0/needle-noise"),
                   {"noise/results.jsonl": self.result(256, 0.5, 1)})
        self.leave(self.stage(plan, "ablations/inference/bounded-300/noise"),
                   {"noise/results.jsonl": self.result(512, 0.5, 1)})
        text = self.written(plan)
        self.assertIn("| Pass key in noise, every length | ≥ 99% | 50%, at least 1 keys for each length and depth | **no** |", text)
        self.assertIn("| `mixture` | 100 | 50 | 2–3 | 0 at 1K, 100% |", text)
        self.assertIn("\n\nNot run: `control`; `long`.\n", text)
        self.assertIn("Not run: multi-key, 16 distractors, 2k.\n", text)
        self.assertIn("start | ≤ 1.01 | 1.0100 | yes |", text)
        self.assertIn("two stages | ≤ 1.01 | 2.0000 | **no** |", text)
        self.assertIn("| gzip | 4.2500 | 3.5000 |", text)
        self.assertIn("| 6 + 0 × 128 | 1.300 M | 2.5 M | 1 min, cuda:1 |", text)
        self.assertIn("|  | seeds | pass key, 512 | bits per byte |", text)
        self.assertIn("| as in the recipe | 2 | 50 (0 – 100) | 4.5000 (4.0000 – 5.0000) |", text)
        self.assertIn("|  | seeds | in noise, 256 | bits per byte |", text)
        self.assertIn("| alignment as it is | 1 | 100 | not run |", text)
        self.assertIn("Not run: two stages, without LongCE; copied outputs.", text)
        self.assertIn("|  | in noise, 512 |\n|---|---|\n| bounded 300 | 100 |\n\nNot run: as trained.", text)
        self.assertIn("Trained on 1 texts, 2.0 MB: one. Held out: third.", text)
        picture = "images/reproduction/passkey-noise-noise.svg"
        self.assertIn(picture, text)
        self.assertEqual((self.out / "docs" / picture).read_text(), "<svg/>")

    def test_results_of_other_settings_are_missing(self):
        plan = self.plan()
        stage = self.stage(plan, "evaluate/mixture/passkey-noise")
        self.leave(stage, {"noise/results.jsonl": self.result(512, 0, 1)})
        self.assertIn("| `mixture` | 100 |", self.written(plan))
        record = self.runner.folders.of(stage) / "stage.json"
        record.write_text(record.read_text().replace(stage.key(), "0" * 16))
        self.assertNotIn("| `mixture` | 100 |", self.written(plan))

    def test_the_card_has_what_the_report_has(self):
        plan = self.plan()
        self.leave(self.stage(plan, "ship"), {})
        self.written(plan)
        card = (Folders(self.out / "run").out / "ship" / "smoke.md").read_text()
        self.assertIn("| Pass key in noise, every length | ≥ 99% | not run | not run |", card)


if __name__ == "__main__":
    unittest.main()
