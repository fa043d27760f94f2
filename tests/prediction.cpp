#include "tests/prediction.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <utility>

#include "core/simt/options.h"

namespace tessera {
namespace {

constexpr double kSharedBytesPerClock = 128;
constexpr double kIssuedPerClock = 4;  // instructions of a multiprocessor

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
}

// As in the tables of kernels.
std::string table_name(std::string name) {
  replace_all(name, "{anonymous}::", "");
  replace_all(name, "Activation::GeluTanh", "(Activation)1");
  replace_all(name, "Activation::Gelu", "(Activation)0");
  replace_all(name, "Activation::Relu", "(Activation)2");
  replace_all(name, "Pooling::Max", "(Pooling)0");
  replace_all(name, "Pooling::Average", "(Pooling)1");
  name = bare_name(name);
  while (name.find("> >") != std::string::npos) replace_all(name, "> >", ">>");
  return name;
}

LaunchWork work_of(const simt::LaunchRecord& launch) {
  LaunchWork work{};
  work.kernel = table_name(launch.kernel);
  work.blocks = int64_t(launch.grid.count());
  work.counted_blocks = int64_t(launch.ran);
  work.threads = int(launch.block.count());
  work.shared = launch.shared_bytes;
  work.flops = 2 * launch.total(simt::kMultiplyAdds);
  work.read = double(launch.read), work.written = double(launch.written);
  work.l2 = launch.total(simt::kCopied) + launch.total(simt::kLoaded) + launch.total(simt::kStored);
  work.filled = launch.total(simt::kFilled);
  work.products = work.mma = {launch.total(simt::kMatrices), launch.total(simt::kPasses),
                              launch.total(simt::kProducts)};
  work.loads = launch.total(simt::kVectorLoads), work.stores = launch.total(simt::kVectorStores);
  return work;
}

// The host model, with memory that is address space until it is touched.
simt::Options counting_options(int architecture) {
  simt::Options options;
  options.profile = simt::profile_of(90);
  options.profile.capability = architecture;
  options.landing = simt::Landing::Earliest;
  options.reserve_from = 1;
  options.total_memory = size_t{1} << 40;
  options.sampled_blocks = 1;
  return options;
}

double peak_of(const Card& card, const Mode& mode) {
  if (mode.arithmetic.storage == DType::bf16) return card.bf16;
  return mode.arithmetic.math == Math::tf32 ? card.tf32 : card.f32;
}

// Instructions that the warps of a launch issue: by what is counted of it and lies in the main
// loop.
double instructions_of(const LaunchWork& work, const LaunchWork::Products& products,
                       const KernelResources::Row& row) {
  if (row.products) return products.instructions * row.loop / row.products;
  const double warps = double(work.blocks) * ((work.threads + 31) / 32);
  if (row.stores + row.loads == 0) return warps * row.instructions;
  const double accesses = row.stores ? work.stores / 32 - warps * row.stores_outside
                                     : work.loads / 32 - warps * row.loads_outside;
  const double passes = std::max(0.0, accesses) / (row.stores ? row.stores : row.loads);
  return warps * row.outside + passes * row.loop;
}

std::string cell(double value, double unit, int digits) {
  return value > 0 ? fmt::format("{:.{}f}", value / unit, digits) : "-";
}

std::vector<LaunchWork> count_once(const std::function<CountedCall(Stream&)>& prepare,
                                   const Counting& counting) {
  const simt::ScopedOptions scope(counting_options(counting.architecture));
  Stream stream(Device::open(DeviceType::simt));
  const CountedCall counted = prepare(stream);
  if (counted.before) counted.before();
  stream.synchronize();
  simt::options().sampled_blocks = uint64_t(counting.blocks);
  const simt::LaunchTrace trace;
  counted.call();
  stream.synchronize();
  std::vector<LaunchWork> work;
  for (const simt::LaunchRecord& launch : trace.launches) work.push_back(work_of(launch));
  return work;
}

// Launches of one function on a card of 9.0, and on one below: the same, where they are the same
// kernels, but for the tensor cores' instructions; else each for its own cards.
void merge(std::vector<LaunchWork>& work, std::vector<LaunchWork> below) {
  const auto name = [](const LaunchWork& one) {
    return one.kernel.substr(0, one.kernel.find('<'));
  };
  if (std::ranges::equal(work, below, {}, name, name)) {
    for (size_t i = 0; i < work.size(); ++i) work[i].mma = below[i].products;
    return;
  }
  for (LaunchWork& one : work) one.only = 90;
  for (LaunchWork& one : below) one.only = 80;
  work.insert(work.end(), below.begin(), below.end());
}

}  // namespace

std::vector<LaunchWork> count_launches(const std::function<CountedCall(Stream&)>& prepare,
                                       double flops, const Counting& counting) {
  std::vector<LaunchWork> work = count_once(prepare, counting);
  if (counting.others && counting.architecture == 90)
    merge(work, count_once(prepare, {counting.blocks, 80}));
  const auto has_products = [](const LaunchWork& one) { return one.products.instructions > 0; };
  if (std::ranges::any_of(work, has_products)) return work;
  for (const int only : {0, 90, 80}) {
    const auto first = std::ranges::find(work, only, &LaunchWork::only);
    if (first != work.end()) first->flops = flops;
  }
  return work;
}

std::vector<LaunchWork> count_launches(const OpCase& c, Direction direction, const Mode& mode,
                                       const Counting& counting) {
  const Cost cost = cost_of(c, direction, mode.arithmetic.storage);
  const bool is_linear = c.op == "linear";
  auto work = count_launches(
      [&](Stream& stream) {
        const auto op = std::make_shared<OpRun>(stream, c, direction, mode);
        return CountedCall{[=] { op->before(); }, [=] { op->run(); }};
      },
      is_linear ? 0 : cost.flops, counting);
  if (is_linear) {
    LaunchWork product{};
    product.kernel = "a product by cuBLAS, as the case has it";
    product.flops = cost.flops, product.read = cost.bytes;
    work.insert(work.begin(), product);
  }
  return work;
}

std::vector<LaunchWork> count_launches(const KernelCase& c, const Counting& counting) {
  return count_launches(
      [&](Stream& stream) {
        stream.math = c.mode.arithmetic.math;
        return CountedCall{{}, c.prepare(stream)};
      },
      c.cost.flops, counting);
}

double least_seconds(const Card& card, const Cost& cost, const Mode& mode) {
  return std::max(cost.flops / peak_of(card, mode), cost.bytes / card.bandwidth);
}

double Prediction::seconds() const { return std::max({memory, l2, math, shared, issue, waves}); }

std::string Prediction::limit() const {
  using Named = std::pair<double, const char*>;
  const auto longest = [](std::initializer_list<Named> all) {
    return *std::ranges::max_element(all, {}, &Named::first);
  };
  const Named inside = longest({{math, "math"}, {shared, "shared memory"}, {issue, "issue"}});
  const Named moved = longest({{memory, "memory"}, {l2, "L2"}});
  if (seconds() == 0) return "-";
  if (moved.first == seconds()) return moved.second;
  return concat(inside.second, waves > inside.first ? " in waves" : "");
}

Prediction predict(const LaunchWork& work, const Card& card, const KernelResources& resources,
                   const Mode& mode) {
  if (!work.is_for(card)) return {};
  const KernelResources::Row row = resources.find(card.architecture, {work.kernel});
  const double clocks = card.multiprocessors * card.clock;
  Prediction p{};
  p.memory = (work.read + work.written) / card.bandwidth;
  p.l2 = work.l2 / card.l2_bandwidth;
  p.math = work.flops / peak_of(card, mode);
  p.shared = (work.on(card).passes + work.filled / kSharedBytesPerClock) / clocks;
  p.issue = instructions_of(work, work.on(card), row) / kIssuedPerClock / clocks;
  if (work.blocks == 0) return p;  // not one of ours
  const double share = double(work.blocks) / card.multiprocessors;
  p.waves = std::max({p.math, p.shared, p.issue}) * std::ceil(share) / share;
  p.registers = row.registers;
  if (const auto* limits = limits_of(card.architecture))
    p.resident_blocks = resident_blocks(*limits, work.threads, work.shared, row.registers);
  return p;
}

void PredictionReport::add(const std::string& name, const Cost& cost, const Mode& mode,
                           const std::vector<LaunchWork>& launches) {
  const int first = number_ + 1;
  for (const LaunchWork& work : launches) add_launch(work, mode);
  add_sums(name, cost, mode, launches,
           launches.empty() ? "none" : fmt::format("{} to {}", first, number_));
}

void PredictionReport::add_sums(const std::string& name, const Cost& cost, const Mode& mode,
                                const std::vector<LaunchWork>& launches, const std::string& where) {
  benchmarks_ += fmt::format("| {} | {:.1f} | {:.2f} |", name, cost.flops / 1e6, cost.bytes / 1e6);
  for (const Card& card : kCards) {
    double sum = 0;
    for (const LaunchWork& work : launches) sum += predict(work, card, resources_, mode).seconds();
    benchmarks_ +=
        fmt::format(" {:.1f} | {:.1f} |", least_seconds(card, cost, mode) * 1e6, sum * 1e6);
  }
  benchmarks_ += concat(' ', where, " |\n");
}

void PredictionReport::add_step(const std::string& name, const Cost& cost, const Mode& mode,
                                const std::vector<LaunchWork>& launches) {
  const auto count = [&](int below) {
    return std::ranges::count_if(launches, [=](const auto& one) { return one.only != below; });
  };
  add_sums(name, cost, mode, launches,
           count(80) == count(90)
               ? fmt::format("{}, below", count(80))
               : fmt::format("{} on 9.0, {} on others, below", count(80), count(90)));
  struct Kernel {
    int launches[2] = {};  // on 9.0, below
    double flops = 0, bytes = 0, seconds[std::size(kCards)] = {};
    std::map<std::string, double> limits;  // on the first card, with their shares
  };
  std::map<std::string, Kernel> kernels;
  for (const LaunchWork& work : launches) {
    Kernel& kernel = kernels[work.kernel];
    if (work.only != 80) ++kernel.launches[0];
    if (work.only != 90) ++kernel.launches[1];
    // The work of 9.0, whose launches come first; else that of other cards.
    if (work.only != 80 || kernel.launches[0] == 0)
      kernel.flops += work.flops, kernel.bytes += work.read + work.written;
    for (size_t i = 0; i < std::size(kCards); ++i) {
      const Prediction p = predict(work, kCards[i], resources_, mode);
      kernel.seconds[i] += p.seconds();
      if (i == 0) kernel.limits[p.limit()] += p.seconds();
    }
  }
  std::vector<std::pair<std::string, Kernel>> rows(kernels.begin(), kernels.end());
  std::ranges::stable_sort(rows, std::greater{},
                           [](const auto& row) { return row.second.seconds[0]; });
  steps_ +=
      fmt::format("\nKernels of {}, microseconds:\n\n| kernel | launches | Mflop | MB |", name);
  std::string rule = "| --- | ---: | ---: | ---: |";
  for (const Card& card : kCards) steps_ += concat(' ', card.name, " |"), rule += " ---: |";
  steps_ += concat(" limit on ", kCards[0].name, " |\n", rule, " --- |\n");
  for (const auto& [kernel, of] : rows) {
    const std::string launches = of.launches[0] == of.launches[1]
                                     ? std::to_string(of.launches[0])
                                     : fmt::format("{} / {}", of.launches[0], of.launches[1]);
    steps_ += fmt::format("| `{}` | {} | {} | {} |", kernel, launches, cell(of.flops, 1e6, 0),
                          cell(of.bytes, 1e6, 1));
    for (const double seconds : of.seconds) steps_ += fmt::format(" {:.1f} |", seconds * 1e6);
    const auto limit =
        std::ranges::max_element(of.limits, {}, [](const auto& l) { return l.second; });
    steps_ += concat(' ', limit->first, " |\n");
  }
}

void PredictionReport::add_launch(const LaunchWork& work, const Mode& mode) {
  const KernelResources::Row row = resources_.find(work.only == 80 ? 80 : 90, {work.kernel});
  const double elements = work.written / double(size_of(mode.arithmetic.storage));
  std::string instructions = "-";
  if (row.products)
    instructions = fmt::format("{:.1f}/mma", double(row.loop) / row.products);
  else if (row.instructions && elements > 0)
    instructions =
        fmt::format("{:.1f}/element", 32 * instructions_of(work, work.products, row) / elements);
  launches_ +=
      fmt::format("| {} | `{}` | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", ++number_,
                  work.kernel, work.blocks, work.counted_blocks, cell(work.flops, 1e6, 1),
                  cell(work.read + work.written, 1e6, 2), cell(work.l2, 1e6, 1),
                  cell(128 * work.products.matrices, 1e6, 1),
                  work.products.matrices > 0
                      ? fmt::format("{:.0f}", work.products.passes - work.products.matrices)
                      : "-",
                  cell(work.products.instructions, 1e3, 0), instructions);
  for (const Card& card : kCards)
    if (work.is_for(card)) add_time(card, work, predict(work, card, resources_, mode));
}

void PredictionReport::add_time(const Card& card, const LaunchWork& work, const Prediction& p) {
  const bool known = p.resident_blocks > 0;
  times_ += fmt::format(
      "| {} | {} | {} | {} | {} | {} | {}{} | {} | {} | {} | {} | **{:.1f}** | {} |\n", number_,
      card.name, p.registers ? std::to_string(p.registers) : "-",
      known ? fmt::format("{}{}", p.registers ? "" : "<= ", p.resident_blocks) : "-",
      known ? fmt::format("{:.2f}", double(work.blocks) / card.multiprocessors / p.resident_blocks)
            : "-",
      cell(p.memory, 1e-6, 1), card.l2_estimated && p.l2 > 0 ? "~" : "", cell(p.l2, 1e-6, 1),
      cell(p.math, 1e-6, 1), cell(p.shared, 1e-6, 1), cell(p.issue, 1e-6, 1),
      cell(p.waves, 1e-6, 1), p.seconds() * 1e6, p.limit());
}

std::string PredictionReport::text() const {
  std::string head = "| benchmark | Mflop | MB |", rule = "| --- | ---: | ---: |";
  for (const Card& card : kCards)
    head += fmt::format(" {} least, us | predicted |", card.name), rule += " ---: | ---: |";
  const std::string benchmarks = head + " launches |\n" + rule + " --- |\n" + benchmarks_;
  if (launches_.empty()) return benchmarks + steps_;
  return benchmarks +
         "\n| # | launch | blocks | counted | Mflop | memory, MB | L2, MB | ldmatrix, MB | "
         "conflicts | mma, thousands | instructions |\n"
         "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n" +
         launches_ +
         "\nCounted on so many blocks on the host model, for architecture 90 (80, where those "
         "cards launch others), and scaled to all. "
         "Memory: the extents of what is read and written, each once. L2: what blocks load and "
         "store "
         "altogether, by cp.async, vectors and __ldg. Plain scalar accesses are not seen. An mma "
         "is "
         "2,048 multiply-adds (1,024 of tf32).\n"
         "\nMicroseconds by each limit; the longest is predicted. Memory and L2 as if the other "
         "launches left nothing in the L2 cache; ~: by an estimated bandwidth. Whole waves: math, "
         "shared memory or issue when every multiprocessor waits for the one with the most "
         "blocks.\n\n"
         "| # | card | registers | blocks at once | waves | memory | L2 | math | shared memory | "
         "issue | whole waves | predicted | limit |\n"
         "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- "
         "|\n" +
         times_ + steps_;
}

}  // namespace tessera
