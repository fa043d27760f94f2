#!/usr/bin/env python3
"""What there is to learn from a machine with a GPU, in parts that can be done one at a time.

    ./run gpu-check [build|tests|primitives|sanitize|bench|profile|torch|train] [--again]

Without a part: all, correctness first. A part is a list of steps and takes less than 8 minutes;
steps that did not fit are done by the next call, where build and train go on with what they had;
finished parts are skipped unless --again. Results are of one state of the sources: another one
starts over. Written after every step:
build/gpu-check/gpu-report.json with everything and gpu-report.md, to be read.
Status: 0 all done, 1 something failed, 3 no GPU, 4 not finished: call again.
"""
import argparse
import concurrent.futures
import datetime
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import gpu_profile
import gpu_report
from gpu_machine import (ROOT, commit, cores, find_gpu, hash_of, joined, last_line,
                         outer_environment, output_of, pythons, refusal_of, run_all, sees_gpu,
                         sources)

LIMIT = 450  # seconds of a part; what is stopped then has a few more (gpu_machine.GRACE)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Step:
    """A command; figures(output) may return what it found out. One process at a time, or several
    beside each other where `together` is set. environment: what differs, None for what is not set.
    goes_on: done again, it continues where it was stopped, and so may take longer than a part."""

    def __init__(self, name, command, figures=None, environment=None, together=False,
                 goes_on=False):
        self.name, self.command, self.figures = name, [str(word) for word in command], figures
        self.environment, self.together, self.goes_on = environment or {}, together, goes_on


# Launches in one line, without work beside it (core/branch.h), and those that do not overlap
# (core/cuda/cuda.h) either.
IN_ONE_LINE = {"TESSERA_BRANCHES": "0"}
ONE_BY_ONE = {**IN_ONE_LINE, "TESSERA_OVERLAP": "0"}


def with_launches(how, environment, step, name):
    """A step in an environment; its figures are called so: "one by one"."""
    def figures(output):
        result = step.figures(output)
        for row in result["benchmarks"]:
            row["name"] += f", {how}"
        return result
    return Step(f"{name}, {how}", step.command, step.figures and figures,
                {**step.environment, **environment})


class Missing(Exception):
    """The machine lacks what a part needs."""


class NotBuilt(Exception):
    """A part needs a program that the part build makes."""


class Check:
    def __init__(self, args, gpu):
        self.args = args
        self.build, self.bin = args.build, args.build / "bin"
        self.out = ROOT / "build" / "gpu-check"
        self.out.mkdir(parents=True, exist_ok=True)
        self.report = self.load(gpu)

    def load(self, gpu):
        fresh = {"commit": commit(), "sources": hash_of(sources()), "gpu": gpu["name"],
                 "driver": gpu["driver"], "capability": gpu["capability"], "date": now(),
                 "parts": {}}
        file = self.out / "gpu-report.json"
        old = json.loads(file.read_text()) if file.is_file() else None
        if old and all(old.get(key) == fresh[key] for key in ("sources", "gpu", "driver")):
            return old
        shutil.rmtree(self.out / "train", ignore_errors=True)
        if not old:
            return fresh
        name = f"gpu-report-{old['date'].replace(':', '')}"
        for suffix in (".json", ".md"):
            (self.out / f"gpu-report{suffix}").rename(self.out / f"{name}{suffix}")
        say(f"other sources, GPU or driver than before: starting over (before: {name}.json)")
        return fresh

    def save(self):
        self.report["date"] = now()
        for name, text in (("gpu-report.json", json.dumps(self.report, indent=1) + "\n"),
                           ("gpu-report.md", gpu_report.markdown(self.report))):
            partial = self.out / (name + ".partial")
            partial.write_text(text)
            partial.replace(self.out / name)

    def program(self, name):
        if not (self.bin / name).is_file():
            raise NotBuilt(f"{self.bin / name} is missing: ./run gpu-check build makes it")
        return self.bin / name

    # ---- the parts: lists of steps

    def steps_of_build(self):
        offline = ["--offline", self.args.offline] if self.args.offline else []
        def figures(_):
            cache = (self.build / "CMakeCache.txt").read_text()
            compiler = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.+)$", cache, re.M)
            if not compiler:
                raise RuntimeError("built without CUDA: there is no CUDA toolkit here")
            version = subprocess.run([compiler[1], "--version"], capture_output=True, text=True,
                                     check=True).stdout
            return {"nvcc": re.search(r"release \S+, (\S+)", version)[1]}
        return [Step("build", [ROOT / "run", *offline, "build"], figures, goes_on=True)]

    def steps_of_tests(self):
        """One step per test; those of the CUDA kernels, which run on the GPU too, come first. What
        CTest does around tests (fixtures) is a step as well, before or behind all of them."""
        program = self.program("tessera_tests")
        shown = output_of(["ctest", "--test-dir", self.build, "--show-only=json-v1"])
        listed = output_of([program, "--list-test-names-only", "[cuda]"],
                           fails=True)
        on_gpu = {line.strip() for line in listed.splitlines()}
        def rank(test):
            has = {value["name"] for value in test.get("properties", [])}
            return (0 if "FIXTURES_SETUP" in has else 3 if "FIXTURES_CLEANUP" in has else
                    4 if "DEPENDS" in has else 1 if test["name"] in on_gpu else 2)
        tests = sorted(enumerate(json.loads(shown)["tests"], 1), key=lambda test: rank(test[1]))
        environment = {"OMP_NUM_THREADS": str(max(1, cores() // self.workers()))}
        steps = [Step(test["name"], ["ctest", "--test-dir", self.build, "--output-on-failure",
                                     "--no-tests=error", "-FA", ".*", "-I", f"{number},{number}"],
                      environment=environment, together=rank(test) in (1, 2))
                 for number, test in tests]
        on_gpu_alone = Step("", [program, "[cuda]~[slow]~[huge]"],
                            environment={"TESSERA_GPU_ONLY": "1"})
        return [*steps, with_launches("launches one by one", ONE_BY_ONE, on_gpu_alone,
                                      "tests on the GPU")]

    def steps_of_primitives(self):
        return [Step("check_primitives", [self.program("check_primitives")],
                     lambda output: {"output": output[-8000:]})]

    def steps_of_sanitize(self):
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not os.access(sanitizer, os.X_OK):
            raise Missing("this machine has no compute-sanitizer")
        small = [self.program("bench"), "--device", "cuda", "--cases", "tests", "--no-libraries",
                 "--no-predictions", "--seconds", "0"]
        names = self.listed(small)
        first = [*small, f"--benchmark_filter=^{re.escape(names[0])}$"]
        refusal = refusal_of([sanitizer, "--tool", "memcheck", "--error-exitcode", "9"], first,
                             "ERROR SUMMARY", "(?i)internal sanitizer error|unable to|not supported|"
                             "denied|permission|before first instrumented", found=9)
        if refusal:
            raise Missing(f"compute-sanitizer may not run here: {refusal}")
        ops = sorted({name.split("/")[0] for name in names})
        return [Step(f"{tool} {op}",
                     [sanitizer, "--tool", tool, "--error-exitcode", "9", *small,
                      f"--benchmark_filter=^{re.escape(op)}/"],
                     lambda output: {"summary": last_line(output, "ERROR SUMMARY|RACECHECK SUMMARY")},
                     together=True)
                for tool in TOOLS for op in ops]

    def steps_of_bench(self):
        """Benchmarks by op, direction and precision: training steps, the lesson's products, the
        rest."""
        bench = [self.program("bench"), "--device", "cuda", "--seconds", "0.05"]
        groups = {}
        for name in self.listed(bench):
            words = name.split("/")
            size = "sweep" if "sweep" in name else "models"
            group = "/".join(words[:2 if words[0] == "training_step" else 3])
            groups.setdefault((size, group), []).append(name)
        order = ("training_step", "conv2d", "upcat_conv2d", "group_norm_act", "linear")
        def rank(key):
            op = key[1].split("/")[0]
            return key[0] == "sweep", order.index(op) if op in order else len(order), key[1]
        steps = []
        for size, group in sorted(groups, key=rank):
            file = self.out / f"bench-{size}-{group.replace('/', '-')}.json"
            shapes = ("" if group.startswith("training_step") else
                      "([a-z-]+_)?" + ("sweep_" if size == "sweep" else "(lesson|quick)_"))
            steps.append(Step(f"{size} {group}",
                              [*bench, f"--benchmark_filter=^{group}/{shapes}",
                               f"--benchmark_out={file}", "--benchmark_out_format=json"],
                              lambda _, file=file: gpu_report.benchmarks(file)))
            if size == "models" and group == "training_step/bf16":
                step = steps[-1]
                steps.append(with_launches("in one line", IN_ONE_LINE, step, step.name))
                steps.append(with_launches("one by one", ONE_BY_ONE, step, step.name))
        return steps

    def steps_of_profile(self):
        """The launches of a step of the lesson, not recorded, each by itself."""
        ncu = gpu_profile.find_ncu()
        if not ncu:
            raise Missing("this machine has no ncu (Nsight Compute)")
        refusal = refusal_of([ncu, "--launch-count", "1"], [self.program("check_primitives")],
                             "==PROF== Disconnected", "==ERROR==")
        if refusal:
            raise Missing(f"ncu may not profile here: {refusal}")
        expected = (ROOT / "docs" / "predictions.md").read_text()
        steps = []
        for case, batch in (("lesson", "32"), ("lesson_batch_128", "128")):
            run, file = f"profile-{case}", self.out / f"profile-{case}.csv"
            shutil.rmtree(self.out / run, ignore_errors=True)
            file.unlink(missing_ok=True)
            train = [self.program("train"), *self.lesson(run), "--batch", batch, "--steps", "1",
                     "--eval-every", "0", "--checkpoint-every", "0"]
            def figures(_, file=file, case=case):
                return {"kernels": gpu_profile.by_kernel(gpu_profile.launches(file.read_text())),
                        "predicted": gpu_profile.predicted(expected, self.report["gpu"],
                                                           f"training_step/bf16/{case}")}
            steps.append(Step(case, gpu_profile.command(ncu, file, train), figures))
        return steps

    def steps_of_torch(self):
        script = ROOT / "tests" / "bench_pytorch.py"
        outside = outer_environment()
        python = next(filter(lambda python: sees_gpu(python, outside), pythons(outside)), None)
        if not python:
            raise Missing("no python3 of this machine has a PyTorch that sees the GPU")
        # What torch.compile makes is kept: a step that did not fit is quicker the next time.
        environment = {**outside, "TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor")}
        steps = []
        for compiled in ("no", "default", "max-autotune"):
            for case in ("lesson", "lesson-128"):
                for precision in ("f32", "tf32", "bf16", "bf16-norm"):
                    name = f"{case} {compiled} {precision}"
                    file = self.out / f"torch-{name.replace(' ', '-')}.json"
                    steps.append(Step(
                        name, [python, script, "--device", "cuda", "--case", case, "--compile",
                               compiled, "--precision", precision, "--json", file],
                        lambda _, file=file: json.loads(file.read_text()), environment))
        return steps

    def steps_of_train(self):
        folder = self.out / "train"
        if (folder / "checkpoint.safetensors").is_file():  # this part was cut short before
            what = ["--resume", folder]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            what = [*self.lesson("train"), "--epochs", "2"]
        other = self.out / "train-one-by-one"
        shutil.rmtree(other, ignore_errors=True)
        return [Step("lesson, 2 epochs", [self.program("train"), *what],
                     lambda _: gpu_report.training(folder / "metrics.jsonl"), goes_on=True),
                Step("lesson, 1 epoch, launches one by one",
                     [self.program("train"), *self.lesson(other.name), "--epochs", "1"],
                     lambda _: gpu_report.training(other / "metrics.jsonl"),
                     ONE_BY_ONE)]

    def lesson(self, folder):
        """Arguments of `train` for the lesson, into a folder."""
        data = ["--data", self.args.data] if self.args.data else []
        return ["--device", "cuda", "--preset", "lesson", "--out", self.out / folder, *data]

    # ---- running them

    def listed(self, bench):
        return output_of([*bench, "--benchmark_list_tests"]).split()

    def workers(self):
        return max(1, cores() // 8)

    def run_part(self, name):
        """Runs the steps of a part that are not done. Returns its status."""
        parts = self.report["parts"]
        before = parts.get(name, {}).get("status", "unfinished")
        could_not_begin = before == "failed" and not parts[name]["steps"]
        if could_not_begin or self.args.again and before != "unfinished":
            del parts[name]
            if name == "train":
                shutil.rmtree(self.out / name, ignore_errors=True)
        elif before != "unfinished":
            say(f"{name}: {before} before (--again repeats it)")
            return before
        part = parts.setdefault(name, {"status": "unfinished", "seconds": 0, "steps": {}})
        say(f"{name} ...")
        start = time.monotonic()
        try:
            steps = getattr(self, "steps_of_" + name)()
            self.run_steps(part, steps, start + self.args.limit)
            states = [part["steps"].get(step.name, {}).get("status") for step in steps]
            part["status"] = ("unfinished" if None in states else
                              "failed" if "failed" in states else "done")
        except Missing as reason:
            part.update(status="skipped", reason=str(reason))
        except NotBuilt as reason:
            part.update(status="failed", reason=str(reason))
        except (subprocess.CalledProcessError, OSError, ValueError, LookupError) as error:
            part.update(status="failed", reason=f"its steps are not known: {error}")
        part["seconds"] += round(time.monotonic() - start, 1)
        self.save()
        done = sum(step["status"] == "done" for step in part["steps"].values())
        say(f"{name}: {part['status']}, {done} steps, {part['seconds']:.0f} s"
            + (f" ({part['reason']})" if "reason" in part else ""))
        return part["status"]

    def run_steps(self, part, steps, deadline):
        begun = time.monotonic()
        def run(step):
            return step, self.run_step(step, begun, deadline)
        todo = [step for step in steps if step.name not in part["steps"]]
        with concurrent.futures.ThreadPoolExecutor(self.workers()) as pool:
            for together, group in itertools.groupby(todo, lambda step: step.together):
                for step, result in (pool.map if together else map)(run, list(group)):
                    self.note(part, step, result)

    def note(self, part, step, result):
        if result:
            part["steps"][step.name] = result
            self.save()
            if result["status"] == "failed":
                say(f"  {step.name}: failed: {result['reason']}")

    def run_step(self, step, begun, deadline):
        """None when there is no time left for it."""
        start = time.monotonic()
        if deadline - start < 1:
            return None
        log = self.out / "logs" / (re.sub(r"[^\w.-]+", "_", step.name)[:120] + ".log")
        log.parent.mkdir(exist_ok=True)
        result = {"status": "done"}
        try:
            with log.open("w") as file:
                environment = joined({**dict.fromkeys(ONE_BY_ONE), **step.environment})
                run_all(step.command, environment, file, deadline - start)
            if step.figures:
                result["figures"] = step.figures(log.read_text(errors="replace"))
        except subprocess.TimeoutExpired:
            if step.goes_on or start - begun > 0.1 * (deadline - begun):
                return None  # once more in the next call, where it is the first
            result.update(status="failed", reason=f"not done after {deadline - start:.0f} s")
        except subprocess.CalledProcessError as error:
            result.update(status="failed", reason=f"status {error.returncode}, see {log}")
        except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
            result.update(status="failed", reason=f"{error}, see {log}")
        result["seconds"] = round(time.monotonic() - start, 2)
        return result


PARTS = [name[len("steps_of_"):] for name in vars(Check) if name.startswith("steps_of_")]


def say(text):
    print("gpu-check:", text, file=sys.stderr, flush=True)


def now():
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="./run gpu-check [PART] [--again]")
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--again", action="store_true", help="also what was done before")
    parser.add_argument("--limit", type=float, default=LIMIT, help=argparse.SUPPRESS)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "release",
                        help=argparse.SUPPRESS)
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    args = parser.parse_args()

    gpu = find_gpu()
    if not gpu:
        say("this machine has no GPU (nvidia-smi finds none): nothing to check")
        return 3
    check = Check(args, gpu)
    results = []
    for name in [args.part] if args.part else PARTS:
        results.append(check.run_part(name))
        if name == "build" and results[-1] != "done":
            break  # the other parts run what it makes
    say(f"report: {check.out / 'gpu-report.md'}")
    return 1 if "failed" in results else 4 if "unfinished" in results else 0


if __name__ == "__main__":
    sys.exit(main())
