#include "tests/gpu_cards.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

size_t up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// The cells of a row of a Markdown table, without spaces and back quotes around them.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  for (size_t begin = line.find('|'); begin != std::string::npos;) {
    const size_t end = line.find('|', begin + 1);
    if (end == std::string::npos) break;
    std::string cell = line.substr(begin + 1, end - begin - 1);
    const auto around = [](char c) { return c == ' ' || c == '`'; };
    while (!cell.empty() && around(cell.back())) cell.pop_back();
    while (!cell.empty() && around(cell.front())) cell.erase(0, 1);
    cells.push_back(cell);
    begin = end;
  }
  return cells;
}

// 90 of "sm_90a".
int architecture_of(const std::string& text) {
  return text.starts_with("sm_") ? std::atoi(text.c_str() + 3) : 0;
}

}  // namespace

std::string bare_name(std::string name) {
  for (size_t at = 0; (at = name.find("::", at)) != std::string::npos;) {
    size_t begin = at;
    while (begin > 0 &&
           (std::isalnum(static_cast<unsigned char>(name[begin - 1])) || name[begin - 1] == '_'))
      --begin;
    name.erase(begin, at + 2 - begin);
    at = begin;
  }
  return name;
}

const MultiprocessorLimits* limits_of(int architecture) {
  constexpr size_t kb = 1024;
  // CUDA C++ Programming Guide, "Compute Capabilities".
  static constexpr MultiprocessorLimits limits[] = {
      {80, 64, 32, 164 * kb}, {86, 48, 16, 100 * kb},  {89, 48, 24, 100 * kb},
      {90, 64, 32, 228 * kb}, {100, 64, 32, 228 * kb}, {120, 48, 24, 100 * kb}};
  for (const MultiprocessorLimits& one : limits)
    if (one.architecture == architecture) return &one;
  return nullptr;
}

int resident_blocks(const MultiprocessorLimits& limits, int threads, size_t shared, int registers) {
  const int warps = int(up(size_t(threads), 32)) / 32;
  int blocks = std::min(limits.blocks, limits.warps / warps);
  // Of each of 4 partitions, which give them to warps in units of 256.
  if (registers) {
    const int warps_of_partition = int(16384 / up(size_t(registers) * 32, 256));
    blocks = std::min(blocks, warps_of_partition * 4 / warps);
  }
  // A block takes 1 KB more than it asks for.
  return std::min(blocks, int(limits.shared / up(shared + 1024, 128)));
}

KernelResources::KernelResources(const std::string& path) {
  read(path, {"registers"},
       [](Row& row, const std::vector<int>& values) { row.registers = values[0]; });
  read((fs::path(path).parent_path() / "kernel-instructions.md").string(),
       {"instructions", "loop", "mma", "stores", "loads", "outside", "stores outside",
        "loads outside"},
       [](Row& row, const std::vector<int>& values) {
         row.instructions = values[0], row.loop = values[1], row.products = values[2];
         row.stores = values[3], row.loads = values[4];
         row.outside = values[5], row.stores_outside = values[6], row.loads_outside = values[7];
       });
}

void KernelResources::read(const std::string& path, const std::vector<std::string>& columns,
                           const std::function<void(Row&, const std::vector<int>&)>& set) {
  if (!fs::exists(path)) return;
  const std::vector<std::byte> bytes = read_file(path);
  std::istringstream in(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  std::string line;
  std::getline(in, line);
  const std::vector<std::string> head = cells_of(line);
  const auto column = [&](const std::string& name) {
    const auto found = std::ranges::find(head, name);
    if (found == head.end())
      throw InputError(concat(path, " is no table of kernels: it has no column ", name));
    return size_t(found - head.begin());
  };
  const size_t kernel = column("kernel"), arch = column("arch");
  std::vector<size_t> places;
  for (const std::string& name : columns) places.push_back(column(name));
  while (std::getline(in, line)) {
    const std::vector<std::string> cells = cells_of(line);
    if (cells.size() != head.size() || !architecture_of(cells[arch])) continue;
    const std::string name = bare_name(cells[kernel]);
    Row& row = rows_[{name, architecture_of(cells[arch])}];
    row.kernel = name, row.architecture = architecture_of(cells[arch]);
    std::vector<int> values;
    for (const size_t place : places) values.push_back(std::atoi(cells[place].c_str()));
    set(row, values);
  }
}

std::string KernelResources::default_file() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return (program.parent_path().parent_path() / "kernel-resources.md").string();
}

KernelResources::Row KernelResources::find(int architecture,
                                           const std::vector<std::string>& parts) const {
  Row best;
  for (const auto& [key, row] : rows_) {
    const bool runs =
        row.architecture <= architecture && row.architecture / 10 == architecture / 10;
    const bool is_it = std::ranges::all_of(
        parts, [&](const std::string& part) { return row.kernel.find(part) != std::string::npos; });
    if (runs && is_it && row.architecture > best.architecture) best = row;
  }
  return best;
}

}  // namespace tessera
