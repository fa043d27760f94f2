#!/usr/bin/env python3
"""Whether the suite launched every kernel of the CUDA backend, on the host model.

kernel_launches.py --log DIR --tests PROGRAM --sources DIR --out DIR LIBRARY...

LIBRARY is an archive of the kernels' objects for the host model, PROGRAM the test program, --log
what its processes wrote (core/simt/launch_log.h). Kernels are found by their symbols, whose names
end in _kernel (--sources: no __global__ function there has another one, and each starts with
ptx::begin_kernel()), launches by addresses.
Writes kernel-launches.md, each kernel with the tests that launch it, and
kernel-launches.json for kernel_resources.py. Ends with 1 when a kernel was never launched, with 77
when only a part of the suite ran.
"""
import argparse
import collections
import functools
import json
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from kernel_names import demangle, is_kernel, short_name  # noqa: E402

SKIPPED = 77


def symbols(path):
    """(object or "", address, mangled name) of the functions that a file defines."""
    text = subprocess.run(["nm", path], check=True, text=True, stdout=subprocess.PIPE).stdout
    member = ""
    for line in text.splitlines():
        fields = line.split()
        if line.endswith(":"):
            member = line[:-1]
        # Weak functions are templates. A name with a dot is a part that the compiler split off.
        elif len(fields) == 3 and fields[1] in "tTW" and "." not in fields[2]:
            yield member, int(fields[0], 16), fields[2]
        elif len(fields) == 3 and fields[2] == "__executable_start":
            yield member, int(fields[0], 16), fields[2]


def kernels_of(libraries):
    """{mangled name: short name} of the kernels, and what is wrong with them."""
    objects = collections.defaultdict(set)
    for library in libraries:
        for member, _, name in symbols(library):
            if "_kernel" in name:
                objects[name].add((library, member))
    names = {m: short_name(d) for m, d in demangle(objects).items()
             if d.find("tessera::simt::") >= 0 and is_kernel(d)}
    mangled = collections.defaultdict(set)
    for name in names:
        # Templates of public types may be in many objects and are one function all the same.
        places = objects[name] if "_GLOBAL__N" in name else {name}
        mangled[names[name]] |= {(name, place) for place in places}
    errors = [f"{len(found)} kernels are called {name}: rename them"
              for name, found in sorted(mangled.items()) if len(found) > 1]
    return names, errors


def misdeclared(sources):
    """What is wrong with the __global__ functions of a folder of sources: with their names, and with
    how they begin (kernels/cuda/ptx/grid_dependency.h)."""
    errors = []
    for path in sorted(path for path in sources.rglob("*") if path.suffix in (".cu", ".cuh", ".h")):
        text = re.sub(r"//.*|/\*(?s:.*?)\*/", "", path.read_text())
        for declaration, body in re.findall(r"\b__global__\b([^;{]*)(;|\{[^;}]*)", text):
            # Attributes have parentheses, too: __launch_bounds__(f(x)), two levels at most.
            bare = re.sub(r"\b__\w+__\s*\((?:[^()]|\([^()]*\))*\)", "", declaration)
            name = re.search(r"(\w+)\s*\(", bare)
            if not name or not name[1].endswith("_kernel"):
                what = name[1] if name else " ".join(declaration.split())
                errors.append(f"{path.name}: {what} is __global__, and its name does not end in "
                              "_kernel")
            elif body != ";" and body[1:].strip() != "ptx::begin_kernel()":
                errors.append(f"{path.name}: {name[1]} does not start with ptx::begin_kernel()")
    return errors


@functools.cache
def functions_of(executable):
    """{offset: mangled name} of an executable."""
    found = list(symbols(executable))
    start = next(address for _, address, name in found if name == "__executable_start")
    return {address - start: name for _, address, name in found if name != "__executable_start"}


def read_log(directory, tests):
    """The tests that ran, and {mangled name: {"tests": {..}, "blocks": {..}}} of what they launched.
    Programs that tests start go by their own name."""
    ran, launched = set(), collections.defaultdict(lambda: {"tests": set(), "blocks": set()})
    for path in sorted(directory.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            kind, *fields = line.split("\t")
            if kind == "run":
                executable = pathlib.Path(fields[0])
                is_test = executable == tests and len(fields) > 1
                who = fields[1].replace("\\", "") if is_test else executable.name
                if is_test:
                    ran.add(who)
            else:
                offset, capability, threads, shared = map(int, fields)
                name = functions_of(executable).get(offset)
                launched[name]["tests"].add(who)
                launched[name]["blocks"].add((capability, threads, shared))
    return ran, launched


def all_tests(program):
    # Its exit status is the number of tests.
    text = subprocess.run([program, "--list-test-names-only"], text=True,
                          stdout=subprocess.PIPE).stdout
    return {line.strip() for line in text.splitlines() if line.strip()}


def report(names, launched):
    """The lists for readers and for kernel_resources.py."""
    merged = collections.defaultdict(lambda: {"tests": set(), "blocks": set()})
    for mangled, name in names.items():
        merged[name]["tests"] |= launched[mangled]["tests"] if mangled in launched else set()
        merged[name]["blocks"] |= launched[mangled]["blocks"] if mangled in launched else set()
    lines = ["| kernel | launched by |", "| --- | --- |"]
    data = {}
    for name, found in sorted(merged.items()):
        tests = sorted(found["tests"])
        more = f" and {len(tests) - 3} more" if len(tests) > 3 else ""
        lines.append(f"| `{name}` | {'; '.join(tests[:3]) or '**never**'}{more} |")
        data[name] = {"tests": tests,
                      "blocks": [dict(zip(("capability", "threads", "shared"), b))
                                 for b in sorted(found["blocks"])]}
    return "\n".join(lines) + "\n", data


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--tests", type=pathlib.Path, required=True)
    parser.add_argument("--sources", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("libraries", type=pathlib.Path, nargs="+")
    options = parser.parse_args()

    ran, launched = read_log(options.log, options.tests)
    missing = all_tests(options.tests) - ran
    if missing:
        print(f"kernel launches: skipped, {len(missing)} tests did not run, among them "
              f"\"{min(missing)}\"")
        return SKIPPED
    names, errors = kernels_of(options.libraries)
    text, data = report(names, launched)
    (options.out / "kernel-launches.md").write_text(text)
    (options.out / "kernel-launches.json").write_text(json.dumps(data, indent=1))
    errors += misdeclared(options.sources)
    errors += [f"no test launches {name}" for name, found in data.items() if not found["tests"]]
    if not data:
        errors.append("there are no kernels")
    for error in errors:
        print("error:", error)
    print(f"{len(data)} kernels, {sum(bool(d['tests']) for d in data.values())} launched by tests")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
