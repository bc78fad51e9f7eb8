"""The command line of scripts/reproduce."""

import argparse
import subprocess
import sys
from pathlib import Path

from .corpus import how_to_get
from .kept import keep
from .plan import Plan, read_recipe
from .report import write_report
from .stages import Failure, Runner, say

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "scripts" / "recipes"


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce", description="The paper in miniature, from text to report: trains small models, asks them "
        "for what is hidden in long texts, and writes down the answers. What is there already is not made again; stopped at "
        "any time, the same command goes on.")
    parser.add_argument("--out", type=Path, help="folder of everything (default: runs/reproduction, or runs/smoke)")
    parser.add_argument("--smoke", action="store_true", help="all stages in minutes, on generated text: tries the recipe, "
                        "and its models find nothing")
    parser.add_argument("--recipe", type=Path, help="what is trained and measured (default: scripts/recipes/reproduction.json)")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="FILE", help="text files or folders instead of the books; "
                        "those named in books.json as held out are, else the last one is")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="STAGE", help="only these, by name, by the "
                        "beginning of a name (evaluate/mixture) or by path: mixture, stages")
    parser.add_argument("--without", nargs="+", action="extend", default=[], metavar="STAGE", help="all but these")
    parser.add_argument("--redo", nargs="+", default=[], metavar="STAGE", help="make these again, from nothing")
    parser.add_argument("--list", action="store_true", help="the stages and how far they are")
    parser.add_argument("--books", action="store_true", help="how to get the books")
    parser.add_argument("--report", type=Path, help="file of the report (default: docs/reproduction.md; OUT/reproduction.md "
                        "of smoke runs and other recipes)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="also copy what was measured to FOLDER, without models and "
                        "texts; such a copy, as OUT, is a run whose finished stages are not made again")
    parser.add_argument("--threads", type=int, default=0, help="0 for one on each core")
    parser.add_argument("--device", default="cpu", help="what trains and measures: cpu, cuda or cuda:n (stores on disk are "
                        "measured on the processor)")
    parser.add_argument("--rwkvx", type=Path, help="the program (default: build/release/rwkvx, built first)")
    return parser.parse_args(arguments)


def built(given):
    if given:
        if not given.is_file():
            raise Failure(f"--rwkvx {given}: there is no such file")
        return given.resolve()
    if subprocess.run([ROOT / "scripts" / "build", "release", "rwkvx"], stdout=subprocess.DEVNULL, check=False).returncode:
        raise Failure("building rwkvx failed; the lines above say why")
    return ROOT / "build" / "release" / "rwkvx"


def show(plan, folders):
    words = {"done": "done", "begun": "begun", "changed": "out of date", "missing": "-"}
    for stage in plan.stages:
        print(f"{stage.name:<60} {words[folders.state(stage)]:<15} {stage.about}")


def make(plan, runner, options):
    redone = {stage.name for stage in (plan.chosen(options.redo) if options.redo else [])}
    left_out = {stage.name for stage in (plan.chosen(options.without) if options.without else [])}
    waiting = []
    for stage in plan.chosen(options.only or (options.redo if options.redo else [])):
        if stage.name in left_out:
            continue
        needs = [need.name for need in stage.needs if runner.folders.state(need) != "done"]
        if needs:
            waiting.append(stage.name)
            say(f"{stage.name}: waits for {', '.join(needs)}")
            continue
        runner.make(stage, stage.name in redone)
    return waiting


def run(options):
    if options.books:
        print(how_to_get(read_recipe(RECIPES / "reproduction.json")["books"], ROOT))
        return 0
    recipe_file = (options.recipe or RECIPES / ("smoke.json" if options.smoke else "reproduction.json")).resolve()
    out = (options.out or ROOT / "runs" / ("smoke" if options.smoke else "reproduction")).resolve()
    recipe = read_recipe(recipe_file)
    program = options.rwkvx if options.list else built(options.rwkvx)
    runner = Runner(out, program, options.threads, options.device)
    plan = Plan(runner, recipe, recipe_file.parent, ROOT, options.corpus)
    if options.list:
        show(plan, runner.folders)
        return 0
    runner.take()
    try:
        waiting = make(plan, runner, options)
    except KeyboardInterrupt:
        say("reproduce: stopped; the same command goes on from here")
        return 130
    ours = recipe_file == RECIPES / "reproduction.json" and not options.corpus
    report = (options.report or (ROOT / "docs" if ours else out) / "reproduction.md").resolve()
    write_report(plan, runner.folders, report)
    say(f"reproduce: wrote {report}")
    if options.keep:
        say(f"reproduce: kept {keep(plan, runner.folders, options.keep.resolve())} files in {options.keep}")
    if waiting:
        say(f"reproduce: {len(waiting)} stages wait for others; see --list")
    return 0


def main():
    try:
        return run(parsed(sys.argv[1:]))
    except Failure as failure:
        say(f"reproduce: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130
