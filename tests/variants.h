// The variants of the network that the lesson compares, for tests that go through all of them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/unet_config.h"

namespace tessera {

// Options by name, with values other than the defaults.
using Variant = std::map<std::string, std::string>;

// Every value of every choice, each alone, and two networks that differ in most of them.
inline std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const UNetOption& option : unet_options())
    for (const std::string& value : option.values)
      if (value != option.get({})) all.push_back({{option.name, value}});
  all.push_back({{"down", "max"},
                 {"up", "transposed"},
                 {"norm", "batch"},
                 {"activation", "relu"},
                 {"no-skips", "true"},
                 {"no-time-gelu", "true"}});
  all.push_back(
      {{"down", "conv"}, {"up", "transposed"}, {"norm", "instance"}, {"activation", "gelu-tanh"}});
  return all;
}

// As words of a command line.
inline std::vector<std::string> flags_of(const Variant& variant) {
  std::vector<std::string> words;
  for (const auto& [name, value] : variant) {
    words.push_back("--" + name);
    if (!unet_option(name).is_flag()) words.push_back(value);
  }
  return words;
}

// "--down max --no-skips", for messages.
inline std::string text_of(const Variant& variant) {
  std::string text;
  for (const std::string& word : flags_of(variant)) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace tessera
