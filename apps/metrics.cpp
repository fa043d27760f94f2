// Every line goes out in one write() to a file opened for appending.
#include "apps/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// The step of a line, or -1 when it is not one of ours.
int64_t step_of(const json& line) {
  if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) return -1;
  return line["step"].get<int64_t>();
}

}  // namespace

Metrics::Metrics(std::filesystem::path path, int64_t step) : path_(std::move(path)) {
  if (std::filesystem::exists(path_)) {
    const std::vector<std::byte> content = read_file(path_);
    std::string_view rest(reinterpret_cast<const char*>(content.data()), content.size());
    std::string kept;
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      if (end == rest.npos) break;  // torn
      const auto line = json::parse(rest.substr(0, end), nullptr, /*allow_exceptions=*/false);
      const int64_t at = step_of(line);
      if (at >= 0 && at <= step) {
        kept += rest.substr(0, end + 1);
        if (line.contains("eval")) evaluated_.insert(at);
      }
      rest.remove_prefix(end + 1);
    }
    if (kept.size() != content.size())
      atomic_write(path_, [&](FileWriter& out) { out.write(kept.data(), kept.size()); });
  }
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0)
    throw InputError(
        concat("cannot write ", path_.string(), ": ", std::generic_category().message(errno)));
}

Metrics::~Metrics() { ::close(fd_); }

void Metrics::add(const StepMetrics& m) {
  append(ordered_json{{"step", m.step},
                      {"epoch", m.epoch},
                      {"loss", m.loss},
                      {"seconds_per_step", m.seconds_per_step},
                      {"images_per_second", m.images_per_second},
                      {"peak_bytes", m.peak_bytes}}
             .dump());
}

void Metrics::add(int64_t step, const std::vector<EvalPoint>& points) {
  ordered_json list = ordered_json::array();
  for (const EvalPoint& p : points)
    list.push_back({{"t", p.t},
                    {"noisy_mse", p.noisy_mse},
                    {"noisy_psnr", p.noisy_psnr},
                    {"denoised_mse", p.denoised_mse},
                    {"denoised_psnr", p.denoised_psnr}});
  append(ordered_json{{"step", step}, {"eval", std::move(list)}}.dump());
  evaluated_.insert(step);
}

void Metrics::append(const std::string& line) {
  const std::string text = line + "\n";
  FileWriter(fd_, path_).write(text.data(), text.size());
}

}  // namespace tessera
