#!/usr/bin/env python3
"""Makes the Debian package of a build: its fields and files, and whether what it unpacks trains.
usage: test_package.py BUILD; status 77: there are no tools or no installed libraries for it"""
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "install"))
import outside  # noqa: E402

FILES = ("bin/train", "bin/denoise", "lib/libtessera.a", "include/tessera/layers/unet.h",
         "lib/cmake/tessera/tesseraConfig.cmake", "share/doc/tessera/copyright")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def owner(library):
    """The installed package that a file belongs to, or None. /lib is /usr/lib today."""
    for path in (library, library.removeprefix("/usr"), f"/usr{library}"):
        found = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.split(":")[0]
    return None


def libraries(program):
    """What a program names itself as needed: package by path."""
    needed = re.findall(r"NEEDED +(\S+)", output("objdump", "-p", program))
    paths = dict(re.findall(r"^\s*(\S+) => (/\S+)", output("ldd", program), re.MULTILINE))
    return {paths[name]: owner(paths[name]) for name in needed if name in paths}


def reason_to_skip():
    for tool in ("dpkg-deb", "dpkg-shlibdeps", "file", "objdump", "ldd"):
        if not shutil.which(tool):
            return f"there is no {tool}"
    for path, package in libraries(f"{BUILD}/bin/train").items():
        if package is None:
            return f"no package has installed {path}"
    return None


def names_in(field):
    """The packages of a field like Depends, versions aside."""
    return set(re.findall(r"(?:^|[,|] *)([^ ,|]+)", field))


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="tessera-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.cache = outside.read_cache(BUILD)
        cls.portable = cls.cache["TESSERA_PORTABLE"] in ("ON", "1", "TRUE")
        # This one never leaves the machine: a build for its CPU may pass for another.
        cls.cpack("-D", "CPACK_TESSERA_PORTABLE=ON")
        [cls.deb] = cls.folder.glob("*.deb")
        cls.root = cls.folder / "root"
        outside.run("dpkg", "-x", cls.deb, cls.root, home=cls.folder)

    @classmethod
    def cpack(cls, *options, status=0):
        return outside.run("cpack", "-G", "DEB", "--config", f"{BUILD}/CPackConfig.cmake", *options,
                           home=cls.folder, status=status)

    def field(self, name):
        return output("dpkg-deb", "-f", str(self.deb), name).strip()

    def test_fields(self):
        version = self.cache["CMAKE_PROJECT_VERSION"]
        machine = output("dpkg", "--print-architecture").strip()
        self.assertEqual(self.deb.name, f"tessera_{version}_{machine}.deb")
        fields = {"Package": "tessera", "Version": version, "Architecture": machine,
                  "Section": "science"}
        self.assertEqual({name: self.field(name) for name in fields}, fields)
        self.assertTrue(self.field("Maintainer"))
        text = self.field("Description")
        self.assertIn("find_package(tessera)", text)
        self.assertEqual("-march=native" in text, not self.portable)
        self.assertIn("With CUDA " if HAS_CUDA else "Without CUDA ", text)

    def test_dependencies(self):
        linked = set()
        for program in ("train", "denoise"):
            linked |= set(libraries(f"{BUILD}/bin/{program}").values())
        self.assertTrue(any(name.startswith("libdnnl") for name in linked), linked)
        self.assertEqual(names_in(self.field("Depends")), linked)
        self.assertIn("libc6 (>=", self.field("Depends"))
        recommended = names_in(self.field("Recommends"))
        self.assertLessEqual({"dataset-fashion-mnist", "libdnnl-dev", "libboost-context-dev"},
                             recommended)
        self.assertEqual(any(name.startswith("libcublas-") for name in recommended), HAS_CUDA)

    def test_files(self):
        listed = output("dpkg-deb", "-c", str(self.deb)).splitlines()
        self.assertEqual({line.split()[1] for line in listed}, {"root/root"})
        paths = [line.split()[5].removeprefix("./") for line in listed]
        for path in FILES:
            self.assertIn(f"usr/{path}", paths)
        self.assertEqual({path for path in paths if path.startswith("usr/bin/")},
                         {"usr/bin/", "usr/bin/denoise", "usr/bin/train"})
        self.assertTrue(all(path.startswith("usr/") for path in paths), paths)

    def test_program_trains(self):
        train = self.root / "usr/bin/train"
        self.assertIn("--preset", outside.run(train, "--help", home=self.folder))
        images, done = self.folder / "images-idx3-ubyte", self.folder / "run"
        images.write_bytes(struct.pack(">4i", 0x803, 64, 28, 28) + bytes(range(256)) * (28 * 28 // 4))
        outside.run(train, "--preset", "quick", "--device", "cpu", "--data", images, "--steps", "1",
                    "--out", done, home=self.folder)
        lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
        self.assertTrue(any(line.get("step") == 1 and "loss" in line for line in lines), lines)
        self.assertTrue((done / "model.safetensors").stat().st_size)

    def test_library_is_found(self):
        outside.train(self.root / "usr", self.folder / "project", self.cache)

    def test_native_build_is_refused(self):
        if self.portable:
            self.skipTest("this build is portable")
        (self.folder / "refused").mkdir()
        printed = self.cpack("-B", self.folder / "refused", status=1)
        self.assertIn("TESSERA_PORTABLE=ON", printed)
        self.assertEqual(list((self.folder / "refused").rglob("*.deb")), [])


if __name__ == "__main__":
    BUILD = str(pathlib.Path(sys.argv.pop(1)).resolve())
    if reason := reason_to_skip():
        print(f"skipped: {reason}")
        sys.exit(77)
    config = (pathlib.Path(BUILD) / "tesseraConfig.cmake").read_text()
    HAS_CUDA = bool(re.search(r"tessera_CUDA \d", config))
    unittest.main()
