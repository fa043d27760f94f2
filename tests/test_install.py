#!/usr/bin/env python3
"""Installs a build, moves the prefix, and lets a project outside of the sources train with it.
usage: test_install.py BUILD"""
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "install"))
import outside  # noqa: E402

# A parent with programs of its own of tessera's names.
PARENT = """cmake_minimum_required(VERSION 3.22)
project(parent LANGUAGES CXX)
enable_testing()
add_subdirectory({source} tessera)
foreach(name train denoise bench tessera_tests)
  add_executable(${{name}} main.cpp)
  target_link_libraries(${{name}} PRIVATE tessera::tessera)
endforeach()
get_target_property(options tessera INTERFACE_COMPILE_OPTIONS)
message(STATUS "options: ${{options}}")
"""
VERSIONS = """cmake_minimum_required(VERSION 3.22)
project(versions LANGUAGES CXX)
foreach(version {versions})
  unset(tessera_DIR CACHE)
  find_package(tessera ${{version}} QUIET)
  message(STATUS "${{version}}: ${{tessera_FOUND}}")
endforeach()
message(STATUS "version ${{tessera_VERSION}}")
"""


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="tessera-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.cache = outside.read_cache(BUILD)
        cls.source = cls.cache["CMAKE_HOME_DIRECTORY"]
        cls.first = cls.folder / "first"
        outside.run("cmake", "--install", BUILD, "--prefix", cls.first, home=cls.folder)
        cls.prefix = cls.folder / "moved prefix"
        cls.first.rename(cls.prefix)

    def project(self, name, text):
        folder = self.folder / name
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(text)
        return folder

    def test_outside_project_trains(self):
        outside.train(self.prefix, self.folder / "project", self.cache)

    def test_programs_run(self):
        for program in ("train", "denoise"):
            printed = outside.run(self.prefix / "bin" / program, "--version", home=self.folder)
            self.assertIn(self.cache["CMAKE_PROJECT_VERSION"], printed)

    def test_headers_are_complete(self):
        root = self.prefix / "include/tessera"
        headers = {str(path.relative_to(root)) for path in root.rglob("*.h")}
        public = {f"{folder}/{path.name}" for folder in ("core", "autograd", "layers")
                  for path in pathlib.Path(self.source, folder).glob("*.h")}
        self.assertEqual(headers, public | {"kernels/kernels.h", "kernels/adam.h"})
        for header in headers:
            for wanted in re.findall(r'#include "(.*)"', (root / header).read_text()):
                self.assertIn(wanted, headers, f"included by {header}")

    def test_exported_files_name_no_place(self):
        files = sorted((self.prefix / "lib").rglob("*.cmake"))
        self.assertIn("tesseraTargets.cmake", [path.name for path in files])
        for path in files:
            text = path.read_text()
            for place in (BUILD, self.source, str(self.folder)):
                self.assertFalse(place in text, f"{path.name} names {place}")
            # Dependencies are targets, found again where the library is used.
            libraries = re.findall(r'INTERFACE_LINK_LIBRARIES "(.*)"', text)
            self.assertNotIn("/", "".join(libraries), path.name)

    def test_versions(self):
        version = self.cache["CMAKE_PROJECT_VERSION"]
        major, minor, patch = map(int, version.split("."))
        good = [f"{major}.{minor}", version]
        bad = [f"{major}.{minor}.{patch + 1}", f"{major}.{minor + 1}", f"{major + 1}.{minor}"]
        if minor:
            bad.append(f"{major}.{minor - 1}")
        folder = self.project("versions", VERSIONS.format(versions=" ".join(bad + good)))
        printed = outside.configure(folder, folder / "build", self.cache,
                                    f"-DCMAKE_PREFIX_PATH={self.prefix}")
        for wanted, found in [(v, 0) for v in bad] + [(v, 1) for v in good]:
            self.assertIn(f"-- {wanted}: {found}\n", printed)
        self.assertIn(f"-- version {version}\n", printed)

    def test_subproject_leaves_its_parent_alone(self):
        folder = self.project("parent", PARENT.format(source=self.source))
        (folder / "main.cpp").write_text("int main() {}\n")
        build = folder / "build"
        printed = outside.configure(folder, build, self.cache,
                                    f"-DTESSERA_CUDA={self.cache['TESSERA_CUDA']}")
        self.assertIn("-- options: options-NOTFOUND\n", printed)
        tests = outside.run("ctest", "--test-dir", build, "-N", home=folder)
        self.assertIn("Total Tests: 0\n", tests)
        self.assertFalse((build / "CPackConfig.cmake").exists())
        outside.run("cmake", "--install", build, "--prefix", folder / "prefix", home=folder)
        self.assertFalse((folder / "prefix").exists())


if __name__ == "__main__":
    BUILD = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
