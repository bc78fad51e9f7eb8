"""A run without its models and texts: small enough to be committed, enough to write its report again."""

import re
import shutil
from pathlib import Path

from .stages import Failure, write_text

KINDS = (".json", ".jsonl", ".svg")


def without_folders(plan, text):
    """Absolute paths of stages' files, relative to the run's folder, wherever that was when they were made: stages may have been
    copied from another run, or the whole run moved."""
    tops = sorted({stage.name.split("/")[0] for stage in plan.stages} | {"loss"})
    return re.sub(rf"(?<![^\s\"'=])/(?:[^/\"'\n]+/)*?(?=(?:{'|'.join(map(re.escape, tops))})/)", "", text)


def is_kept(stage, file):
    """Ablations are many: what the report reads of them, and stage.json, which has all settings."""
    if file.suffix not in KINDS or "checkpoints" in file.parts:
        return False
    if stage.name.startswith("ablations/"):
        return file.name in ("stage.json", "windows.json") or (file.name == "results.jsonl" and "loss" not in file.parts)
    return stage.name != "data" or file.suffix != ".jsonl"


def keep(plan, folders, to):
    """Copies what finished stages measured."""
    to, out = Path(to).resolve(), folders.out.resolve()
    if to == out or to in out.parents or out in to.parents:
        raise Failure(f"--keep {to}: is the run's own folder, or around or in it; name another folder")
    if to.exists() and not (to / "data" / "stage.json").exists():
        raise Failure(f"{to}: is there and holds no run; name another folder")
    shutil.rmtree(to, ignore_errors=True)
    done = [stage for stage in plan.stages if folders.state(stage) == "done"]
    files = [file for stage in done for file in folders.of(stage).rglob("*") if is_kept(stage, file)]
    files += [file for file in (folders.out / "loss").rglob("*") if file.suffix in KINDS]
    for file in files:
        copy = to / file.relative_to(folders.out)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8").replace(f"{folders.out}/", "")
        write_text(copy, without_folders(plan, text))
    return len(files)
