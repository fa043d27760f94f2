// Config files of `train`: one flat JSON object, its keys the names of the options.
#include <nlohmann/json.hpp>
#include <set>

#include "apps/train_options.h"
#include "core/file.h"

namespace tessera {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr uint64_t kMaxBytes = 1 << 20;

// The begin of a text for a message, in whole characters.
std::string shown(const std::string& text) {
  size_t end = 80;
  if (text.size() <= end) return text;
  while ((text[end] & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}
// What is nested may be too deep to be printed.
std::string shown(const json& value) {
  return value.is_structured() ? concat("an ", value.type_name()) : shown(value.dump());
}

// Throws when a key of the outer object comes twice: the library would silently keep the last.
json parse_object(const std::string& text, const std::string& origin) {
  std::set<std::string> seen;
  std::string repeated;
  const auto watch_keys = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1)
      if (!seen.insert(parsed.get<std::string>()).second) repeated = parsed.get<std::string>();
    return true;
  };
  json root;
  try {
    root = json::parse(text, watch_keys);
  } catch (const json::exception& error) {
    const std::string message = error.what();  // behind the library's name for it, in brackets
    throw InputError(concat(origin, ": ", message.substr(message.find("] ") + 2)));
  }
  if (!root.is_object()) throw InputError(concat(origin, ": expected a JSON object"));
  if (!repeated.empty())
    throw UsageError(concat(origin, ": key '", shown(repeated), "' comes twice"));
  return root;
}

// The value as the text that the command line would have.
std::string value_text(const TrainOption& option, const json& value, const std::string& source) {
  const bool fits = option.is_text()   ? value.is_string()
                    : option.is_flag() ? value.is_boolean()
                    : option.is_real() ? value.is_number()
                                       : value.is_number_integer();
  if (!fits)
    throw UsageError(concat(source, " is ", shown(value), ", expected ",
                            option.is_text()   ? "a string"
                            : option.is_flag() ? "true or false"
                            : option.is_real() ? "a number"
                                               : "an integer"));
  return option.is_text() ? value.get<std::string>() : value.dump();
}

}  // namespace

GivenOptions parse_config(const std::string& text, const std::string& origin) {
  const json root = parse_object(text, origin);
  const auto& table = train_option_table();
  GivenOptions given;
  for (const auto& [key, value] : root.items()) {
    const std::string source = concat(origin, ": key '", shown(key), "'");
    const auto option = std::ranges::find(table, key, &TrainOption::name);
    if (option == table.end())
      throw UsageError(concat(source, " with value ", shown(value),
                              " is unknown: expected names of options as in --help"));
    given[key] = {value_text(*option, value, source), source};
  }
  return given;
}

GivenOptions read_config(const std::filesystem::path& path) {
  const std::vector<std::byte> content = read_file(path, kMaxBytes);
  return parse_config({reinterpret_cast<const char*>(content.data()), content.size()},
                      path.string());
}

std::string config_text(const TrainOptions& options) {
  ordered_json root = ordered_json::object();
  for (const TrainOption& option : train_option_table()) {
    if (option.name == "out" || option.name == "resume") continue;
    const auto value = option.get(options);
    if (!value) continue;
    root[option.name] = option.is_text() ? ordered_json(*value) : ordered_json::parse(*value);
    try {
      root[option.name].dump();
    } catch (const json::exception&) {
      throw InputError(concat("--", option.name,
                              " is not UTF-8, as config.json is that has to name it: ", *value));
    }
  }
  return root.dump(2) + "\n";
}

}  // namespace tessera
