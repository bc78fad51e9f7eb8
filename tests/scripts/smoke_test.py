"""scripts/reproduce --smoke from beginning to end: smoke_test.py PROGRAM. Stopped and killed on its way."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main():
    program = sys.argv[1]
    work = Path(tempfile.mkdtemp(prefix="rwkvx-smoke-"))
    out = work / "out"
    command = [sys.executable, "-B", ROOT / "scripts" / "reproduce", "--smoke", "--out", out, "--rwkvx", program, "--threads", "2"]

    def run(*more):
        done = subprocess.run([*command, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, errors="replace", check=False)
        return done.returncode, done.stdout

    def check(condition, what, text=""):
        if not condition:
            print(text)
            sys.exit(f"smoke_test: {what}")

    def stop(number, when):
        """Ends a run by a signal once the file `when` is there."""
        with open(work / "log", "ab") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not when.exists() and child.poll() is None:
            time.sleep(0.01)
        if child.poll() is None:
            child.send_signal(number)
        return child

    try:
        child = stop(signal.SIGTERM, out / "mixture" / "run" / "metrics.jsonl")
        check(child.wait() in (0, 130), f"SIGTERM gives exit code {child.returncode}", (work / "log").read_text(errors="replace"))
        child = stop(signal.SIGKILL, out / "control" / "stage.json")
        child.wait()
        with open(out / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # what it had started goes on until its own end

        code, text = run()
        check(code == 0, f"exit code {code}", text)
        report = (out / "reproduction.md").read_text()
        check("| not run" not in report, "the report misses results", report)
        stages = [json.loads(path.read_text()) for path in out.rglob("stage.json")]
        check(len(stages) > 20 and all(stage["done"] for stage in stages), "not all stages are done", text)
        counts = [json.loads((out / name / "info.json").read_text())["parameters"] for name in ("mixture", "control")]
        check(abs(counts[0] / counts[1] - 1) < 0.02, f"the control has {counts[1]} parameters, the model {counts[0]}")
        steps = [json.loads(line)["step"] for line in (out / "mixture" / "run" / "metrics.jsonl").read_text().splitlines()]
        check(steps == list(range(1, 13)), f"the stopped training made the steps {steps}")
        check((out / "ship" / "smoke.gguf").stat().st_size > 0, "there is no model to give away")

        code, text = run()
        check(code == 0 and text.count(": there already") == len(stages), "a second run does something again", text)
        check((out / "reproduction.md").read_text() == report, "the second report differs from the first")
        code, text = run("--only", "nothing")
        check(code == 1 and "--list" in text, f"an unknown stage gives exit code {code}", text)
        code, text = run("--list")
        check(code == 0 and text.count(" done ") == len(stages), "--list does not show what is done", text)
        code, text = run("--redo", "align")
        check(code == 0 and "align: done" in text, "--redo does not make a stage again", text)
        code, text = run()
        check(code == 1 and "older than align" in text, "what was made of the older model is taken as it is", text)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
