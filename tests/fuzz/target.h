// What the fuzz targets share. An input may be refused, by the errors that users get, and nothing
// else may happen: any other exception ends the program, and so does a sanitizer's report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>

#include "core/check.h"

namespace tessera::fuzz {

// How many inputs there were and how many were right: printed when the program ends.
struct Counts {
  size_t inputs = 0, parsed = 0;
  ~Counts() { std::fprintf(stderr, "parsed %zu of %zu inputs\n", parsed, inputs); }
};
inline Counts counts;

// For LLVMFuzzerTestOneInput: counts an input that `parse` does not refuse.
template <class F>
int try_input(F&& parse) {
  ++counts.inputs;
  try {
    parse();
    ++counts.parsed;
  } catch (const InputError&) {
  } catch (const UsageError&) {
  }
  return 0;
}

inline std::span<const std::byte> bytes(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

}  // namespace tessera::fuzz
