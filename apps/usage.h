// How programs parse their command lines, and what they say of one that cannot be parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

#include "core/check.h"
#include "core/number.h"

namespace tessera {

// In the program's words where the library's are clumsy. What is unknown comes first: whatever else
// is missing may be missing because it was misspelt.
inline UsageError usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::string message = error.what(), name = message.substr(0, message.find(':'));
  const CLI::Option* option = app.get_option_no_throw(name);
  const std::string text = [&] {
    if (const auto unknown = app.remaining(); !unknown.empty())
      return concat("'", unknown.front(), "' is not expected here");
    if (error.get_name() != "ArgumentMismatch" || !option) return message;
    const size_t times = option->count();
    return times > 1 ? concat(name, " is given ", times, " times") : name + " needs a value";
  }();
  return UsageError(text + " (see --help)");
}

// For Option::transform(): a whole number in decimal, where the library takes 010 for 8.
inline CLI::Validator whole_number(int64_t low, int64_t high) {
  const auto read = [=](std::string& text) {
    const auto value = number_in<int64_t>(text);
    if (!value || *value < low || *value > high)
      return concat("Value ", text, " not in range ", low, " to ", high);
    text = std::to_string(*value);
    return std::string();
  };
  return {read, ""};
}

// Returns the answer of --help and --version: print it, and be done. Throws UsageError.
inline std::optional<std::string> parse(CLI::App& app, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::CallForVersion& version) {
    return concat(version.what(), "\n");
  } catch (const CLI::ParseError& error) {
    throw usage_error(app, error);
  }
  return std::nullopt;
}

}  // namespace tessera
