"""What the tests of an installation share: builds the project beside this file against a prefix."""
import os
import pathlib
import re
import shutil
import subprocess

PROJECT = pathlib.Path(__file__).resolve().parent
LOSS = re.compile(r"^step (\d): loss (\d+\.\d+)$", re.MULTILINE)


def read_cache(build):
    """The variables of a build folder's CMakeCache.txt."""
    lines = (pathlib.Path(build) / "CMakeCache.txt").read_text().splitlines()
    return dict(re.findall(r"^([^#/:]+):\w+=(.*)$", "\n".join(lines), re.MULTILINE))


def environment(home):
    """The bare minimum, with no nvcc on the path, and where `run --offline` keeps its packages."""
    kept = ("CMAKE_PREFIX_PATH", "CPATH", "LIBRARY_PATH", "LD_LIBRARY_PATH", "PKG_CONFIG_PATH")
    path = [folder for folder in os.environ["PATH"].split(":")
            if not (pathlib.Path(folder) / "nvcc").exists()]
    return {"PATH": ":".join(path), "HOME": str(home), "OMP_WAIT_POLICY": "passive",
            **{name: os.environ[name] for name in kept if name in os.environ}}


def run(*command, home, status=0):
    """What a command prints; AssertionError when it ends with another status."""
    command = [str(word) for word in command]
    done = subprocess.run(command, env=environment(home), cwd=home, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != status:
        raise AssertionError(f"status {done.returncode}: {' '.join(command)}\n{done.stdout}")
    return done.stdout


def configure(source, build, cache, *options, status=0):
    """cmake's output, with generator and compiler of tessera's own build."""
    return run("cmake", "-G", cache["CMAKE_GENERATOR"], "-S", source, "-B", build,
               f"-DCMAKE_CXX_COMPILER={cache['CMAKE_CXX_COMPILER']}", *options, home=source,
               status=status)


def train(prefix, folder, cache):
    """Builds a copy of the project in a new folder and runs it; checks that it took two steps."""
    folder.mkdir()
    for name in ("CMakeLists.txt", "main.cpp"):
        shutil.copy(PROJECT / name, folder)
    configure(folder, folder / "build", cache, f"-DCMAKE_PREFIX_PATH={prefix}")
    found = read_cache(folder / "build")["tessera_DIR"]
    assert pathlib.Path(found).is_relative_to(prefix), f"found another tessera: {found}"
    run("cmake", "--build", folder / "build", home=folder)
    printed = run(folder / "build/outside", home=folder)
    assert [step for step, _ in LOSS.findall(printed)] == ["1", "2"], printed
