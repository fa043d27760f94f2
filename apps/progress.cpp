#include "apps/progress.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace tessera {
namespace {

constexpr int kBarWidth = 24;
constexpr double kMemory = 0.95;  // weight of the past in the running means
constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr const char* kEraseLine = "\r\x1b[K";

}  // namespace

std::string clock_text(double seconds) {
  const auto s = int64_t(std::lround(std::clamp(seconds, 0.0, 1e9)));
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

Progress::Progress(std::ostream& out, bool live, int64_t step, int64_t total)
    : out_(out), live_(live), step_(step), total_(total) {}

Progress::~Progress() {
  if (!live_ || steps_seen_ == 0) return;
  draw();
  out_ << std::endl;
}

void Progress::step(double loss, double images, double seconds) {
  ++step_;
  loss_ = loss;
  // The first step makes tensors and primitives: it says nothing about those to come.
  const double past = ++steps_seen_ <= 2 ? 0 : kMemory;
  seconds_ = past * seconds_ + (1 - past) * seconds;
  images_ = past * images_ + (1 - past) * images;
  if (live_ && Clock::now() - drawn_at_ >= kRedraw) draw();
}

void Progress::status_line() {
  if (!live_) line(status());
}

void Progress::line(const std::string& text) {
  if (live_) out_ << kEraseLine;
  out_ << text << std::endl;
  if (live_ && steps_seen_ > 0) draw();
}

double Progress::seconds_left() const { return seconds_ * double(total_ - step_); }

std::string Progress::status() const {
  return fmt::format("step {}/{}  loss {:.6f}  {:.1f} images/s  {} left", step_, total_, loss_,
                     images_ / std::max(seconds_, 1e-9), clock_text(seconds_left()));
}

void Progress::draw() {
  const auto filled = int(kBarWidth * step_ / total_);
  out_ << kEraseLine << '[' << std::string(filled, '=') << std::string(kBarWidth - filled, ' ')
       << "] " << status() << std::flush;
  drawn_at_ = Clock::now();
}

}  // namespace tessera
