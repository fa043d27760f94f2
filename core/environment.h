// What the environment can turn off.
#pragma once

#include <cstdlib>
#include <string_view>

namespace tessera {

// Whether what `variable` stands for is wanted: not where it is 0.
inline bool is_wanted(const char* variable) {
  const char* const value = std::getenv(variable);
  return !value || std::string_view(value) != "0";
}

}  // namespace tessera
