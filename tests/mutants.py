"""Mutants of kernels: where a barrier, a wait, a fence, a commit or a bounds check can be deleted.

All mutants of a file are compiled into it at once: each place asks, when it runs, whether it is the
one that is missing in this process (the environment variable TESSERA_MUTANT has its number). One
build serves all mutants, and what runs is what the deletion would have left.
"""
import re
from typing import NamedTuple

# Collectives and asynchronous operations by what their absence means.
CALLS = {
    "barrier": r"__syncthreads(?:_or|_and|_count)?|__syncwarp|(?:ptx::)?(?:named_barrier\w*|cluster_sync)",
    "wait": r"(?:ptx::)?(?:cp_async_wait(?:_all)?(?:<[^;()]*>)?|wgmma_wait(?:<[^;()]*>)?|mbarrier_wait|bulk_wait\w*)",
    "fence": r"(?:ptx::)?(?:__threadfence(?:_block|_system)?|fence_\w+|wgmma_fence)",
    "commit": r"(?:ptx::)?(?:cp_async_commit|wgmma_commit|bulk_commit\w*)",
}
# Comparisons that ask which of two, not whether inside: counted apart from the bounds checks.
SELECTIONS = r"c < (?:joint\.)?A|a < b|scale >= 1|max_norm > 0"


class Site(NamedTuple):
    file: str
    line: int
    kind: str  # a key of CALLS, "bounds" or "selection"
    text: str  # what is deleted
    start: int  # in the file's text
    end: int
    instead: str  # the value in its place


def blanked(text):
    """The text, as long as it was, without comments, literals and preprocessor lines."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*"
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S | re.M)


def closing(code, at):
    """Behind the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] in "([{") - (code[i] in ")]}")
        if depth == 0:
            return i + 1
    return len(code)


def device_code(code):
    """(start, end) of what runs in kernels: from a function's parameters to the end of its body."""
    found, end = [], 0
    for match in re.finditer(r"\b__(?:global|device)__\b", code):
        if match.start() < end:
            continue
        at = match.end()
        while at < len(code) and code[at] not in "{;":  # a declaration has no body
            at = closing(code, at) if code[at] in "([" else at + 1
        if at < len(code) and code[at] == "{":
            end = closing(code, at)
            head = code[code.rfind("\n", 0, match.start()) + 1:at]
            if not re.search(r"\bconstexpr\b", head):
                found.append((match.start(), end))
    return found


def skipped_ranges(code):
    """What is computed by the compiler, and the heads of loops: a loop without its end is no missing
    check."""
    ranges = []
    for match in re.finditer(r"\b(?:if constexpr|for|while|static_assert|__launch_bounds__|decltype|"
                             r"sizeof) ?\(", code):
        ranges.append((match.start(), closing(code, match.end() - 1)))
    for match in re.finditer(r"(?<!if )\b(?:constexpr|using)\b[^;{]*[;{]", code):
        ranges.append((match.start(), match.end()))
    return ranges


def operand_left(code, at):
    """Where the left operand of a comparison begins whose operator is at `at`."""
    depth = 0
    for i in range(at - 1, -1, -1):
        c = code[i]
        if c in ")]":
            depth += 1
        elif c in "([" and depth:
            depth -= 1
        elif depth == 0 and (c in "([{},;?:!" and code[i - 1:i + 1] != "::" and code[i:i + 2] != "::"
                             or code[i - 1:i + 1] in ("&&", "||")
                             or c == "=" and code[i - 1] not in "<>=!"):
            start = i + 1
            break
    else:
        start = 0
    keyword = re.match(r"\s*(?:return\b|else\b)?\s*", code[start:at])
    return start + keyword.end()


def operand_right(code, at):
    depth = 0
    for i in range(at, len(code)):
        c = code[i]
        if c in "([":
            depth += 1
        elif c in ")]" and depth:
            depth -= 1
        elif depth == 0 and (c in ")],;?{}" or code[i:i + 2] in ("&&", "||")
                             or c == ":" and code[i:i + 2] != "::" and code[i - 1:i + 1] != "::"):
            return at + len(code[at:i].rstrip())
    return len(code)


def leaves(code, end):
    """Whether the condition that ends at or behind `end` guards a way out: return, continue."""
    tail = code[end:end + 400]
    depth = 0
    for i, c in enumerate(tail):
        depth += (c == "(") - (c == ")")
        if depth < 0:
            return re.match(r"\)\s*\{?\s*(?:return|continue|break)\b", tail[i:]) is not None
        if c in ";{":
            return False
    return False


def in_if(code, start):
    """Whether an expression stands in the condition of an if."""
    depth = 0
    for i in range(start - 1, -1, -1):
        depth += (code[i] == ")") - (code[i] == "(")
        if depth < 0:
            if re.search(r"\bif ?$", code[:i]):
                return True
            depth = 0
        if code[i] in ";{}":
            return False
    return False


def comparison(code, match):
    """(start, end, value that the check has when all is inside) of a comparison."""
    start, end = operand_left(code, match.start()), operand_right(code, match.end())
    right, operator = code[match.end():end].strip(), match[0].strip()
    if operator == "<" and right == "0":
        return start, end, "false"
    if operator == ">=" and right == "0":
        return start, end, "true"
    if operator in (">=", ">") and in_if(code, start) and leaves(code, end):
        return start, end, "false"
    return start, end, "true"


def unclamped(arguments):
    """The argument of min(a, b) that the other one limits: the one that was added up to, or else
    the first."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(arguments):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(arguments[start:i].strip())
            start = i + 1
    parts.append(arguments[start:].strip())
    return next((p for p in parts if " + " in p), parts[0])


def find_sites(file, text):
    """The sites of a file, in order."""
    code = blanked(text)
    skipped = skipped_ranges(code)
    sites = []

    def add(kind, start, end, instead):
        if not any(a <= start < b for a, b in skipped):
            sites.append(Site(file, text.count("\n", 0, start) + 1, kind,
                              " ".join(text[start:end].split()), start, end, instead))

    for begin, finish in device_code(code):
        part = code[begin:finish]
        for kind, names in CALLS.items():
            for match in re.finditer(r"(?<![\w:])(?:%s)\(" % names, part):
                start, end = begin + match.start(), closing(code, begin + match.end() - 1)
                add(kind, start, end, f"decltype({text[start:end]})()")
        for match in re.finditer(r" (?:<|>|<=|>=)\s", part):
            at = re.compile(re.escape(match[0])).match(code, begin + match.start())
            start, end, instead = comparison(code, at)
            which = re.fullmatch(SELECTIONS, code[start:end])
            add("selection" if which else "bounds", start, end, instead)
        for match in re.finditer(r"(?<![\w:.])min\(", part):
            start, end = begin + match.start(), closing(code, begin + match.end() - 1)
            add("bounds", start, end, unclamped(text[begin + match.end():end - 1]))
        for match in re.finditer(r"\w+ \? 16 : 0", part):  # bytes of cp.async, the rest are zeros
            add("bounds", begin + match.start(), begin + match.end(), "16")
    outer, end = [], 0  # a place within another one is no mutant of its own
    for site in sorted(sites, key=lambda site: (site.start, -site.end)):
        if site.start >= end:
            outer.append(site)
            end = site.end
    return outer


def with_mutants(text, numbered):
    """The text with all of (number, site) in it; sites do not overlap."""
    for number, site in sorted(numbered, key=lambda n: n[1].start, reverse=True):
        there = text[site.start:site.end]
        text = (text[:site.start] + f"(::mutant({number}) ? {site.instead} : {there})" +
                text[site.end:])
    return '#include "mutant.h"\n#line 1\n' + text


HEADER = """#pragma once
#include <cstdio>
#include <cstdlib>

// The number of the mutant of this process, and which ones were asked for: with TESSERA_REACHED the
// numbers go to that file.
struct Mutants {
  static constexpr int kCount = 4096;
  int active = -1;
  const char* reached_file = nullptr;
  bool reached[kCount] = {};
  Mutants() {
    if (const char* number = std::getenv("TESSERA_MUTANT")) active = std::atoi(number);
    reached_file = std::getenv("TESSERA_REACHED");
  }
  ~Mutants() {
    std::FILE* file = reached_file ? std::fopen(reached_file, "w") : nullptr;
    if (!file) return;
    for (int i = 0; i < kCount; ++i)
      if (reached[i]) std::fprintf(file, "%d\\n", i);
    std::fclose(file);
  }
};
inline Mutants mutants;

inline bool mutant(int number) {
  if (mutants.reached_file) __atomic_store_n(&mutants.reached[number], true, __ATOMIC_RELAXED);
  return number == mutants.active;
}
"""
