// Numbers in text.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace tessera {

// What the whole text says, as std::from_chars reads it: no sign '+', no blanks around it, nothing
// out of T's range.
template <class T>
std::optional<T> number_in(std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end) return {};
  return value;
}

}  // namespace tessera
