#!/usr/bin/env python3
"""The mutation score of the host model: barriers, waits, fences, commits and bounds checks of the
CUDA kernels are deleted one at a time, and the kernels' tests must notice.

    tests/mutate.py --scratch DIR [--only conv2d_fwd.cu ...] [--seconds S] [--jobs N] [--list]

The kernels are copied to DIR, mutants.py marks every place, and tessera_simt_tests is linked with
them three times: plain, by clang with AddressSanitizer and UBSan, and by g++ with ThreadSanitizer
(presets release, asan and races; what these have not built yet is built). A first run finds which
tests reach which place. Then each mutant is run by the tests that reach it, quickest first, until
one fails or S seconds of them have passed (60); what survives the plain build goes on to the
sanitizers, S seconds each. A test that runs 20 times as long as it should has caught its mutant,
too. Comparisons that choose between two inputs ("selection") are reported apart and are not part
of the score.

DIR/results.jsonl collects the results: a second run goes on where the first one stopped, unless the
sources have changed. DIR/mutation.md is the report; reasons of survivors are in
mutant_survivors.txt. Ends with 1 when fewer than 90% are caught.
"""
import argparse
import collections
import concurrent.futures
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from typing import NamedTuple
import xml.etree.ElementTree as xml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mutants  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = pathlib.Path("kernels/cuda")
PROGRAM = "tessera_simt_tests"
WANTED = 0.9


PRESETS = {"plain": "release", "asan": "asan", "tsan": "races"}
ENVIRONMENT = {
    "OMP_THREAD_LIMIT": "1", "OMP_WAIT_POLICY": "passive",
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0:ignore_noninstrumented_modules=1",
}


class Unit(NamedTuple):
    """A test, or a section of one, that is run by itself."""
    test: str
    section: str
    seconds: float
    reached: frozenset  # numbers of mutants

    @property
    def name(self):
        return f"{self.test} / {self.section}" if self.section else self.test


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def source_names():
    text = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                          cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [name for name in sorted(text.split("\0")) if name and (ROOT / name).is_file()]


def all_sites(only):
    """{number: site} of the files of kernels/cuda; a number stays the same whatever `only` says."""
    numbered, number = {}, 0
    for path in sorted((ROOT / KERNELS).glob("*.*")):
        if path.suffix in (".cu", ".h"):
            for site in mutants.find_sites(path.name, path.read_text()):
                if not only or path.name in only:
                    numbered[number] = site
                number += 1
    return numbered


def plant(scratch, numbered):
    """Copies the kernels with their mutants; returns the files that have any, themselves or by what
    they include."""
    folder = scratch / KERNELS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mutant.h").write_text(mutants.HEADER)
    changed, includes = set(), {}
    for path in sorted((ROOT / KERNELS).glob("*.*")):
        if path.suffix not in (".cu", ".h"):
            continue
        text = path.read_text()
        here = [(n, s) for n, s in numbered.items() if s.file == path.name]
        (folder / path.name).write_text(mutants.with_mutants(text, here) if here else text)
        includes[path.name] = set(re.findall(r'#include "kernels/cuda/([\w.]+)"', text))
        if here:
            changed.add(path.name)
    while True:
        more = {name for name in includes if includes[name] & changed} - changed
        if not more:
            return changed
        changed |= more


class Builds:
    """The test program with all mutants, in three builds. The repository's own build directories
    have everything but the kernels with mutants; these are compiled as Ninja would, into scratch."""

    def __init__(self, scratch, jobs, changed):
        self.scratch, self.jobs, self.changed = scratch, jobs, changed
        self.made, self.lock = set(), threading.Lock()

    def program(self, checker):
        with self.lock:
            if checker not in self.made:
                output = self.build(checker)
                if output:
                    raise SystemExit(output[-4000:])
                self.made.add(checker)
        return self.scratch / checker / PROGRAM

    def build(self, checker):
        """Returns the compiler's output when a kernel does not compile."""
        say("building", checker)
        preset = PRESETS[checker]
        base, mine = ROOT / "build" / preset, self.scratch / checker
        mine.mkdir(exist_ok=True)
        if not (base / "build.ninja").exists():
            check_call(["cmake", "--preset", preset, "-DTESSERA_CUDA=OFF"])
        check_call(["cmake", "--build", base, "--target", PROGRAM, f"-j{self.jobs}"])
        text = subprocess.run(["ninja", "-C", base, "-t", "commands", PROGRAM], check=True, text=True,
                              stdout=subprocess.PIPE).stdout
        commands, objects = [], []
        for line in text.splitlines():
            source = re.search(r" -c %s/(\S+\.cu)$" % re.escape(str(ROOT / KERNELS)), line)
            if source and "tessera_kernels_simt.dir" in line and source[1] in self.changed:
                objects.append(f"{mine}/{source[1]}.o")
                line = re.sub(r" -MD .*", "", line.replace(" -I", f" -I{self.scratch} -I", 1))
                commands.append(f"{line} -O1 -g1 -o {objects[-1]} -c "
                                f"{self.scratch / KERNELS / source[1]}")
            elif f"-o bin/{PROGRAM} " in line:
                # Before all others: tests have kernels' templates, too, and the first one counts.
                first = re.search(r" \S+\.o ", line).start()
                link = (line[:first] + " " + " ".join(objects) + line[first:]).replace(
                    f"-o bin/{PROGRAM} ", f"-o {mine / PROGRAM} ")
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            outputs = list(pool.map(lambda command: shell(command, base), commands))
        failed = "\n".join(filter(None, outputs))
        return failed or shell(link, base)


def check_call(command):
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
    if run.returncode:
        raise SystemExit(run.stdout[-4000:])


def shell(command, folder):
    """The output of a command that fails, or nothing."""
    run = subprocess.run(command, shell=True, cwd=folder, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    return run.stdout or "failed: " + command if run.returncode else ""


def build_with_mutants(scratch, jobs, numbered):
    """(builds, {number: site} of the sites that do not compile and are left out)."""
    broken = {}
    while True:
        changed = plant(scratch, {n: s for n, s in numbered.items() if n not in broken})
        builds = Builds(scratch, jobs, changed)
        output = builds.build("plain")
        if not output:
            builds.made.add("plain")
            return builds, broken
        lines = set(re.findall(r"kernels/cuda/([\w.]+):(\d+):\d+: error", output))
        bad = {n: s for n, s in numbered.items() if (s.file, str(s.line)) in lines
               and n not in broken}
        if not bad:
            raise SystemExit(output[-4000:])
        broken |= bad


def execute(program, unit, seconds, *arguments, **environment):
    """Runs a unit; returns (exit status or None when it took too long, output)."""
    # Catch's test specifications: commas and brackets mean something.
    name = re.sub(r"([,\[\]\\])", r"\\\1", unit.test)
    command = [program, name, *arguments] + (["-c", unit.section] if unit.section else [])
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             timeout=seconds, env=os.environ | ENVIRONMENT | environment)
    except subprocess.TimeoutExpired as error:
        return None, (error.stdout or b"").decode(errors="replace")
    return run.returncode, run.stdout.decode(errors="replace")


def find_units(program, scratch, jobs):
    """The tests that pass without a mutant and reach any, with what they reach: their sections one
    by one, where they have any."""
    run = subprocess.run([program, "[cuda]", "--list-test-names-only"], stdout=subprocess.PIPE,
                         text=True, env=os.environ | ENVIRONMENT)
    numbers = itertools.count()

    def measure(unit):
        file = scratch / f"reached-{next(numbers)}"
        start = time.monotonic()
        status, output = execute(program, unit, 3600, "-r", "xml", TESSERA_REACHED=str(file))
        seconds = time.monotonic() - start
        if status != 0:
            say("left out, for it fails without any mutant:", unit.name)
            return []
        cases = xml.fromstring(output).iter("TestCase")
        sections = dict.fromkeys(s.get("name") for case in cases for s in case.findall("Section"))
        if sections and not unit.section:
            return [u for s in sections for u in measure(unit._replace(section=s))]
        return [unit._replace(seconds=seconds, reached=frozenset(map(int, file.read_text().split())))]

    tests = [Unit(name, "", 0, frozenset()) for name in run.stdout.splitlines()]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        units = [u for some in pool.map(measure, tests) for u in some]
    return sorted((u for u in units if u.reached), key=lambda u: u.seconds)


def how_caught(status, output):
    """What failed, or None."""
    if status is None:
        return "hang"
    for sign, name in (("AddressSanitizer", "AddressSanitizer"), ("runtime error:", "UBSan"),
                       ("ThreadSanitizer", "ThreadSanitizer")):
        if sign in output:
            return name
    if status == 0:
        return None
    if re.search(r"kernel \S.*, block \(", output, re.S):
        return "host model"
    return "crash" if status < 0 or "FATAL" in output or "SIG" in output else "wrong result"


class Expected:
    """How long a test takes under a checker without a mutant; None when it fails or takes longer
    than `most`: what fails anyway catches nothing."""

    def __init__(self, builds, most):
        self.builds, self.most, self.seconds = builds, most, {}
        self.locks = collections.defaultdict(threading.Lock)

    def __call__(self, checker, unit):
        if checker == "plain":
            return unit.seconds  # find_units has seen to that
        program, key = self.builds.program(checker), (checker, unit.name)
        with self.locks[key]:  # not twice at a time
            if key not in self.seconds:
                start = time.monotonic()
                status, _ = execute(program, unit, self.most)
                self.seconds[key] = time.monotonic() - start if status == 0 else None
            return self.seconds[key]


def judge(number, builds, units, expected, most):
    """(how it was caught or None, by which test) of a mutant."""
    reaching = [u for u in units if number in u.reached]
    passed = dict.fromkeys(PRESETS, 0)
    for checker in PRESETS:
        left = most
        for unit in reaching:
            if unit.seconds > left:
                break  # so do all after it, and sanitizers are slower
            seconds = expected(checker, unit)
            if seconds is None or seconds > left:
                continue
            left -= seconds
            status, output = execute(builds.program(checker), unit, 10 + 20 * seconds,
                                     TESSERA_MUTANT=str(number))
            caught = how_caught(status, output)
            if caught:
                return caught, unit.name
            passed[checker] += 1
    return None, ", ".join(f"{checker} {n}" for checker, n in passed.items())


def fingerprint():
    """Of everything that a result depends on."""
    digest = hashlib.sha256()
    for name in source_names():
        if name.endswith((".cu", ".h", ".cpp", ".py", ".txt", ".json")):
            digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:16]


def reasons():
    """[(pattern of "file: text", reason)] of the survivors that are understood."""
    found = []
    for line in pathlib.Path(__file__).with_name("mutant_survivors.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition(" -- ")
            found.append((pattern.strip(), reason.strip()))
    return found


def report(numbered, results):
    """The report, and the share that was caught."""
    ways = ["wrong result", "host model", "AddressSanitizer", "UBSan", "ThreadSanitizer", "crash",
            "hang"]
    rows = collections.defaultdict(collections.Counter)
    survivors = []
    for number, site in numbered.items():
        caught, by = results[number]
        rows[site.kind][caught] += 1
        if site.kind != "selection":
            rows["all"][caught] += 1
        if not caught:
            place = f"{site.file}: {site.text}"
            reason = next((r for p, r in reasons() if re.fullmatch(p, place)), "**unexplained**")
            survivors.append(f"| {site.file}:{site.line} | {site.kind} | `{site.text}` | {by} | "
                             f"{reason} |")
    lines = [f"| deleted | mutants | caught | {' | '.join(ways)} |", "| --- |" + " ---: |" * 9]
    for kind in sorted(rows, key=lambda kind: (kind == "all", kind)):
        total, missed = sum(rows[kind].values()), rows[kind][None]
        lines.append(f"| {kind} | {total} | {total - missed} ({1 - missed / total:.0%}) | " +
                     " | ".join(str(rows[kind][way]) for way in ways) + " |")
    if survivors:
        lines += ["", "| survivor | kind | deleted | tests passed | reason |", "| --- | --- | --- | --- | --- |"]
        lines += survivors
    total = sum(rows["all"].values())
    return "\n".join(lines) + "\n", 1 - rows["all"][None] / total if total else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", help="files of kernels/cuda to make mutants of")
    parser.add_argument("--seconds", type=float, default=60,
                        help="of tests without a sanitizer, and with each, for a mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    options = parser.parse_args()
    numbered = all_sites(options.only)
    for name in options.only or []:
        if name not in {s.file for s in numbered.values()}:
            parser.error(f"--only: no mutants in a file {name} of kernels/cuda")
    if options.list:
        for number, s in numbered.items():
            print(f"{number:4} {s.file}:{s.line} {s.kind}: {s.text}")
        return 0
    options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = options.scratch.resolve()
    lock = open(scratch / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{scratch} is in use: give this run another directory")

    builds, broken = build_with_mutants(scratch, options.jobs, numbered)
    for number, site in broken.items():
        say(f"no mutant, it does not compile: {site.file}:{site.line} {site.text}")
        del numbered[number]
    state = fingerprint()
    results, file = {}, scratch / "results.jsonl"
    for line in file.read_text().splitlines() if file.exists() else []:
        entry = json.loads(line)
        if entry["state"] == state:
            results[entry["number"]] = entry["caught"], entry["by"]
    todo = [n for n in numbered if n not in results]
    say(f"{len(numbered)} mutants, {len(todo)} to run")
    if todo:
        units = find_units(builds.program("plain"), scratch, options.jobs)
        say(f"{len(units)} tests reach mutants, {sum(u.seconds for u in units):.0f} s")
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool, open(file, "a") as out:
            expected = Expected(builds, options.seconds)
            futures = {pool.submit(judge, n, builds, units, expected, options.seconds): n
                       for n in todo}
            for future in concurrent.futures.as_completed(futures):
                number = futures[future]
                caught, by = results[number] = future.result()
                site = numbered[number]
                out.write(json.dumps({"state": state, "number": number, "file": site.file,
                                      "text": site.text, "caught": caught, "by": by}) + "\n")
                out.flush()
                say(f"{site.file}:{site.line} {site.kind} `{site.text}`: "
                    f"{caught or 'SURVIVED'} ({by})")
    text, share = report(numbered, results)
    (scratch / "mutation.md").write_text(text)
    print(text)
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
