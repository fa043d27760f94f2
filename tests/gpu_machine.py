"""The machine on which gpu_check.py runs: its GPU, its programs and Pythons, the project's files."""
import hashlib
import os
import pathlib
import re
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRACE = 15  # seconds that a program has to end when its time is over


def find_gpu():
    """Name, driver and compute capability of the first GPU, or None."""
    try:
        line = output_of(["nvidia-smi", "--query-gpu=name,driver_version,compute_cap",
                          "--format=csv,noheader"]).splitlines()[0]
        return dict(zip(("name", "driver", "capability"), map(str.strip, line.split(","))))
    except (subprocess.CalledProcessError, OSError, IndexError):
        return None


def cores():
    return len(os.sched_getaffinity(0))


def joined(environment):
    """The environment with what differs from it; None: not set."""
    return {key: value for key, value in {**os.environ, **environment}.items() if value is not None}


def run_all(command, environment, log, seconds):
    """Runs a command; it and what it started end when the time is over: asked to first, so that
    `train` leaves a checkpoint. Raises as subprocess.run."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                               stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        if process.wait(seconds):
            raise subprocess.CalledProcessError(process.returncode, command)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)  # and what it leaves behind
            except ProcessLookupError:
                pass
            process.wait()


def output_of(command, fails=False):
    """Standard output. fails: the status says something else (Catch2 lists with a count)."""
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True,
                          check=not fails).stdout


def last_line(output, pattern):
    lines = [line.strip("= ") for line in output.splitlines() if re.search(pattern, line)]
    return lines[-1] if lines else ""


def git(*arguments):
    """What git says; None outside of a clone, such as a copy of its files alone."""
    if not (ROOT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              check=True).stdout
    except (subprocess.CalledProcessError, OSError):
        return None


def commit():
    """The commit, and whether files differ from it; "unknown" outside of a clone."""
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return "unknown" if head is None else head.strip() + (" and changes" if changes else "")


def sources():
    """The names of the files that are the project's, tracked or not yet, below ROOT."""
    listed = git("ls-files", "-co", "--exclude-standard", "-z")
    if listed:
        return sorted(set(listed.split("\0")) - {""})
    found = []
    for folder, folders, files in os.walk(ROOT):
        folder = pathlib.Path(folder).relative_to(ROOT)
        hidden = {"build", "runs", ".git"} if folder == pathlib.Path() else set()
        folders[:] = [name for name in folders if name not in hidden | {"__pycache__"}]
        found += [str(folder / name) for name in files]
    return sorted(found)


def hash_of(names):
    """Of the names and contents of files below ROOT."""
    total = hashlib.sha1()
    for name in names:
        path = ROOT / name
        data = (os.readlink(path).encode() if path.is_symlink() else
                path.read_bytes() if path.is_file() else b"")
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()[:12]


def outer_environment():
    """How this process's environment differs from that outside of ./run --offline, whose prefix has
    a python3 and libraries of its own."""
    if "TESSERA_OUTER_PATH" not in os.environ:
        return {}
    return {"PATH": os.environ["TESSERA_OUTER_PATH"],
            "LD_LIBRARY_PATH": os.environ.get("TESSERA_OUTER_LD_LIBRARY_PATH") or None,
            **dict.fromkeys(("CPATH", "LIBRARY_PATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH"))}


def pythons(environment):
    """Every Python that there is, those of virtual environments and conda first."""
    known = joined(environment)
    folders = [f"{known[name]}/bin" for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in known]
    folders += known.get("PATH", "").split(":")
    found = [f"{folder}/{name}" for folder in folders if folder for name in ("python3", "python")]
    return [path for path in dict.fromkeys([*found, "/usr/bin/python3", sys.executable])
            if os.access(path, os.X_OK)]


def sees_gpu(python, environment):
    """Whether a Python has a PyTorch that can use the GPU."""
    test = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    try:
        return subprocess.run([python, "-c", test], env=joined(environment), capture_output=True,
                              check=False, timeout=60).returncode == 0
    except (subprocess.TimeoutExpired, OSError):
        return False


def refusal_of(tool, command, sign, complaints, found=None):
    """Why a tool (with its options) cannot run a command that runs without it; None when it can, or
    when the command is what fails. sign: what it says at its end; complaints: a pattern of lines
    that say that it cannot; found: its status when it has found what it looks for."""
    tried = subprocess.run([*tool, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, check=False)
    complaint = last_line(tried.stdout, complaints)
    if tried.returncode == found and not complaint:
        return None
    if tried.returncode == 0 and sign in tried.stdout and not complaint:
        return None
    alone = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if alone.returncode:
        return None
    return complaint or last_line(tried.stdout, r"\S") or f"status {tried.returncode}"
