#include "tests/bench_compare.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "tessera bench";  // a key of the file; its value is a version
constexpr int kVersion = 1;
constexpr uint64_t kMaxBytes = 16 << 20;

std::map<std::string, double> seconds_by_name(const BenchRun& run) {
  std::map<std::string, double> result;
  for (const BenchRun::Time& time : run.times) result[time.name] = time.seconds;
  return result;
}

double positive(const ordered_json& value) {
  const double number = value.get<double>();
  if (!(number > 0)) throw InputError(concat(value.dump(), " is not a positive number"));
  return number;
}

BenchRun run_of(const ordered_json& root) {
  if (!root.is_object() || !root.contains(kFormat) || root[kFormat].is_structured())
    throw InputError("not a file that bench --save wrote");
  if (root[kFormat] != kVersion)
    throw InputError(concat("of version ", root[kFormat].dump(), ", expected ", kVersion));
  BenchRun run;
  run.device = root.at("device").get<std::string>();
  run.threads = root.at("threads").get<int>();
  run.precisions = root.at("precisions").get<std::vector<std::string>>();
  for (const auto& [name, value] : root.at("peaks").items()) run.peaks[name] = positive(value);
  for (const auto& [name, value] : root.at("seconds").items())
    run.times.push_back({name, positive(value)});
  return run;
}

std::string text_of(const BenchRun& run) {
  std::string text = run.device;
  if (run.threads > 0) text += concat(", ", run.threads, " threads");
  for (const std::string& precision : run.precisions) text += concat(", ", precision);
  return text;
}

}  // namespace

void BenchRun::add(const std::string& name, double seconds) {
  if (!(seconds > 0)) return;  // less than a clock can see
  const auto found = std::ranges::find(times, name, &Time::name);
  if (found == times.end())
    times.push_back({name, seconds});
  else
    found->seconds = std::min(found->seconds, seconds);
}

void expect_writable(const fs::path& file) {
  std::error_code ignored;
  if (fs::exists(file, ignored) && !fs::is_regular_file(file, ignored))
    throw InputError(concat("cannot write ", file.string(), ": it is not a regular file"));
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw InputError(
        concat("cannot write ", file.string(), ": ", std::generic_category().message(errno)));
}

void save(const BenchRun& run, const fs::path& file) {
  ordered_json root, seconds = ordered_json::object();
  for (const BenchRun::Time& time : run.times) seconds[time.name] = time.seconds;
  root[kFormat] = kVersion;
  root["device"] = run.device;
  root["threads"] = run.threads;
  root["precisions"] = run.precisions;
  root["peaks"] = run.peaks;
  root["seconds"] = seconds;
  const std::string text = root.dump(1) + "\n";
  atomic_write(file, [&](FileWriter& out) { out.write(text.data(), text.size()); });
}

BenchRun load_run(const fs::path& file) {
  const std::vector<std::byte> content = read_file(file, kMaxBytes);
  const char* const begin = reinterpret_cast<const char*>(content.data());
  try {
    return run_of(ordered_json::parse(begin, begin + content.size()));
  } catch (const ordered_json::exception& error) {
    const std::string message = error.what();  // behind the library's name for it, in brackets
    throw InputError(concat(file.string(), ": ", message.substr(message.find("] ") + 2)));
  } catch (const InputError& error) {
    throw InputError(concat(file.string(), ": ", error.what()));
  }
}

std::string difference(const BenchRun& then, const BenchRun& now) {
  const std::string a = text_of(then), b = text_of(now);
  return a == b ? "" : concat("it is of ", a, "; this run is of ", b);
}

std::string comparison(const BenchRun& then, const BenchRun& now) {
  std::string text;
  for (const auto& [name, peak] : now.peaks)
    if (const auto old = then.peaks.find(name); old != then.peaks.end())
      text += fmt::format("peak {}: then {:.1f}, now {:.1f}, now/then {:.3f}\n", name, old->second,
                          peak, peak / old->second);
  text += "\n| benchmark | then, ms | now, ms | now/then |\n| --- | ---: | ---: | ---: |\n";
  const auto before = seconds_by_name(then);
  size_t both = 0;
  double logarithms = 0;
  for (const auto& [name, seconds] : now.times) {
    const auto old = before.find(name);
    if (old == before.end()) continue;
    const double ratio = seconds / old->second;
    ++both, logarithms += std::log(ratio);
    text += fmt::format("| {} | {:.4g} | {:.4g} | {:.3f} |\n", name, old->second * 1e3,
                        seconds * 1e3, ratio);
  }
  text += both == 0 ? "\nno benchmark is in both\n"
                    : fmt::format("\ngeometric mean of {} ratios: {:.3f}\n", both,
                                  std::exp(logarithms / double(both)));
  return text + fmt::format("only then: {}, only now: {}\n", before.size() - both,
                            now.times.size() - both);
}

}  // namespace tessera
