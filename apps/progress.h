// What a long run shows: a bar that moves on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace tessera {

// "2:05", "1:02:05".
std::string clock_text(double seconds);

class Progress {
 public:
  // live: a bar; else lines. `out` must outlive this.
  Progress(std::ostream& out, bool live, int64_t step, int64_t total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  // A step is done. Redraws the bar, ten times a second at most.
  void step(double loss, double images, double seconds);
  // A line of the step that was done last; nothing on a terminal, whose bar says the same.
  void status_line();
  // A line for good, above the bar.
  void line(const std::string& text);
  // How long the steps to come will take.
  double seconds_left() const;
  // Steps since this was made.
  int64_t steps_seen() const { return steps_seen_; }

 private:
  using Clock = std::chrono::steady_clock;
  std::string status() const;
  void draw();

  std::ostream& out_;
  const bool live_;
  int64_t step_;
  const int64_t total_;
  double loss_ = 0;
  int64_t steps_seen_ = 0;
  double seconds_ = 0, images_ = 0;  // of a recent step: running means
  Clock::time_point drawn_at_{};
};

}  // namespace tessera
