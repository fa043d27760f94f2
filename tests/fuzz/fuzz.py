#!/usr/bin/env python3
"""Builds the fuzz targets with clang and feeds them: the committed seeds, each of which must parse,
then inputs that libFuzzer makes of them: the same in every run, where addresses may be fixed.
usage: fuzz.py BUILD [--runs N] [FORMAT...]; status 77: there is no clang with libFuzzer here"""
import argparse
import fcntl
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
FORMATS = sorted(path.name for path in (FOLDER / "seeds").iterdir())
RSS_LIMIT_MB = 512
# Memory that AddressSanitizer keeps to find later uses of it counts, too.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=8"}
PROBE = 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'


def output_of(command):
    """What a program prints and its status."""
    done = subprocess.run([str(word) for word in command], env=ENVIRONMENT, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, errors="replace")
    return done.stdout, done.returncode


def checked(command):
    text, status = output_of(command)
    if status:
        sys.exit(f"status {status}: {' '.join(map(str, command))}\n{text[-8000:]}")
    return text


def fixed_addresses():
    """What to start a program with so that its memory is laid out alike each time: libFuzzer's
    tables are indexed by addresses. Some containers forbid it."""
    try:
        return ["setarch", "-R"] if output_of(["setarch", "-R", "true"])[1] == 0 else []
    except FileNotFoundError:
        return []


def missing_clang():
    """Why nothing can be built here, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "probe.cpp")
        source.write_text(PROBE)
        try:
            _, status = output_of(["clang++", "-fsanitize=fuzzer,address,undefined", source,
                                   "-o", source.with_suffix("")])
        except FileNotFoundError:
            return "there is no clang++"
    return "clang++ comes without libFuzzer or its sanitizers" if status else ""


def build(folder, formats):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:  # tests of several formats may run at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        checked(["cmake", "-S", FOLDER, "-B", folder, "-G", "Ninja",
                 "-DCMAKE_CXX_COMPILER=clang++"])
        checked(["cmake", "--build", folder, "--target", *(f"fuzz_{name}" for name in formats)])


def counts(text):
    """How many inputs parsed, and how many there were."""
    return tuple(map(int, re.search(r"^parsed (\d+) of (\d+) inputs$", text, re.MULTILINE).groups()))


def fuzz(folder, name, runs):
    program = folder / f"fuzz_{name}"
    seeds = sorted((FOLDER / "seeds" / name).iterdir())
    for seed in seeds:
        parsed, tried = counts(checked([program, seed]))
        if tried == 0 or parsed != tried:  # libFuzzer may run it twice, to look for leaks
            sys.exit(f"{name}: the seed {seed.name} is refused")
    words = FOLDER / f"{name}.dict"
    dictionary = [f"-dict={words}"] if words.exists() else []
    findings = folder / "findings"
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        text = checked([*fixed_addresses(), program, f"-runs={runs}", "-seed=1", "-reload=0",
                        f"-rss_limit_mb={RSS_LIMIT_MB}", "-print_final_stats=1",
                        f"-artifact_prefix={findings}/{name}-", *dictionary, corpus,
                        FOLDER / "seeds" / name])
    parsed, tried = counts(text)
    if tried < runs:
        sys.exit(f"{name}: {tried} inputs, expected {runs}")
    if parsed <= len(seeds):
        sys.exit(f"{name}: of {tried} inputs none but the seeds is parsed")
    peak = re.search(r"^stat::peak_rss_mb: *(\d+)$", text, re.MULTILINE).group(1)
    print(f"{name}: {tried} inputs, {parsed} of them parsed, {tried - parsed} refused, no crash, "
          f"no report, at most {peak} MB", flush=True)


def main():
    parser = argparse.ArgumentParser(usage="fuzz.py BUILD [--runs N] [FORMAT...]")
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("formats", nargs="*", metavar="FORMAT")
    options = parser.parse_intermixed_args()
    formats = options.formats or FORMATS
    if unknown := set(formats) - set(FORMATS):
        parser.error(f"{', '.join(sorted(unknown))}: expected some of {', '.join(FORMATS)}")
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}, expected 1 or more")
    if reason := missing_clang():
        print(f"fuzz: {reason}: install clang and its libclang-rt package")
        sys.exit(77)
    folder = options.build.resolve()
    build(folder, formats)
    for name in formats:
        fuzz(folder, name, options.runs)


if __name__ == "__main__":
    main()
