"""Stages: parts of a long computation, each with a folder of its own that says what it was made with."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable


class Failure(Exception):
    """One line that says what is wrong and what to do."""


def interrupt(*_):
    raise KeyboardInterrupt


def say(text):
    print(text, file=sys.stderr, flush=True)


def duration(seconds):
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: cannot be read: {error}") from error


def write_text(path, text):
    """Beside its name first, so that a crash leaves no half file."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


@dataclass
class Stage:
    name: str
    about: str
    settings: dict  # all that the result depends on, beside the results of `needs`
    run: Callable  # run(folder): makes the result in its folder; goes on with what is there already
    needs: list = field(default_factory=list)
    groups: tuple = ()  # other names that choose it

    def described(self):
        return {"settings": self.settings, "needs": {stage.name: stage.key() for stage in self.needs}}

    def key(self):
        text = json.dumps(self.described(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def chosen_by(self, word):
        return word in self.groups or self.name == word or self.name.startswith(word + "/")


def first_difference(before, after, place=""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                return first_difference(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    return f"{place}: {json.dumps(before)} before, {json.dumps(after)} now"


class Folders:
    """Where stages lie, and in what state."""

    def __init__(self, out):
        self.out = Path(out)

    def of(self, stage):
        return self.out / stage.name

    def record(self, stage):
        path = self.of(stage) / "stage.json"
        return read_json(path) if path.exists() else None

    def made(self, stage):
        """When it was finished: tells apart what was made twice with the same settings."""
        return (self.record(stage) or {}).get("made")

    def change(self, stage):
        """Why the result that is there is of no use any more; "" if it is."""
        record = self.record(stage)
        if record is None:
            return ""
        if record["key"] != stage.key():
            return "was made with other settings: " + first_difference(record["described"], stage.described())
        again = [need.name for need in stage.needs if record["of"].get(need.name) != self.made(need)]
        return f"is older than {again[0]}" if again else ""

    def state(self, stage):
        """done, begun, changed or missing."""
        record = self.record(stage)
        if record is None:
            return "missing"
        if self.change(stage):
            return "changed"
        return "done" if record["done"] else "begun"


class Runner:
    def __init__(self, out, program, threads, device="cpu"):
        self.folders = Folders(out)
        self.program = str(program)
        self.threads = threads
        self.device = device
        self.child = None
        self.lock = None

    def take(self):
        """The folder for ourselves. Programs we start inherit the lock: those a kill leaves behind hold it too."""
        self.folders.out.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.folders.out / "lock", "a")
        os.set_inheritable(self.lock.fileno(), True)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.lock.close()
            raise Failure(f"{self.folders.out}: another scripts/reproduce, or what it started, still works there") from error
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupt)

    def run(self, arguments, output=None, threads=True):
        """rwkvx with these arguments; what it prints goes to the file `output` when it has succeeded. `threads`: the
        command computes, so that it takes --threads and --device."""
        words = [self.program, *map(str, arguments)]
        if threads and self.threads:
            words += ["--threads", str(self.threads)]
        # A store on disk is read by the processor.
        if threads and self.device != "cpu" and not any(word.startswith("disk") for word in words):
            words += ["--device", self.device]
        say("  $ " + " ".join(f"'{w}'" if " " in w or not w else w for w in words))
        self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=[self.lock.fileno()],
                                      stdout=subprocess.PIPE if output else None, preexec_fn=os.setpgrp)
        try:
            text, _ = self.child.communicate()
        except KeyboardInterrupt:
            self.stop_child()
            raise
        finally:
            code, self.child = self.child.poll(), None
        if code == 130:
            raise KeyboardInterrupt
        if code != 0:
            raise Failure(f"rwkvx {arguments[0]} ended with code {code}; its message is above")
        if output:
            write_text(output, text.decode("utf-8", "replace"))

    def stop_child(self):
        """Lets it save what it has. It is in a process group of its own, for a second signal would hurry it."""
        self.child.send_signal(signal.SIGINT)
        while self.child.poll() is None:
            try:
                self.child.wait()
            except KeyboardInterrupt:
                self.child.send_signal(signal.SIGINT)

    def make(self, stage, redo=False):
        """Makes one stage unless it is there. Errors: it is there with other settings."""
        folder, state = self.folders.of(stage), self.folders.state(stage)
        if redo and folder.exists():
            shutil.rmtree(folder)
            state = "missing"
        if state == "changed":
            raise Failure(f"{folder} {self.folders.change(stage)}; make it again with --redo {stage.name}, or choose another "
                          "--out")
        if state == "done":
            say(f"{stage.name}: there already")
            return
        before = self.folders.record(stage)["seconds"] if state == "begun" else 0
        say(f"{stage.name}: {stage.about}{' (goes on)' if state == 'begun' else ''}")
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()

        def record(done):
            seconds = before + time.monotonic() - start
            write_json(folder / "stage.json", {"done": done, "key": stage.key(), "made": time.time_ns() if done else None,
                                               "of": {need.name: self.folders.made(need) for need in stage.needs},
                                               "seconds": round(seconds, 1), "device": self.device,
                                               "described": stage.described()})
            return seconds

        record(False)
        try:
            stage.run(folder)
        except BaseException:
            record(False)
            raise
        say(f"{stage.name}: done in {duration(record(True))}")
