// Reads the Markdown tables that programs print.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace tessera {

// The cells of the row of a table that begins with these.
inline std::vector<std::string> row_of(const std::string& text, const std::string& begin) {
  const size_t at = ('\n' + text).find("\n| " + begin);
  if (at == std::string::npos) return {};
  std::istringstream line(text.substr(at, text.find('\n', at) - at));
  std::vector<std::string> cells;
  for (std::string cell; std::getline(line, cell, '|');) cells.push_back(cell);
  for (std::string& cell : cells) {
    cell.erase(0, cell.find_first_not_of(' '));
    cell.erase(cell.find_last_not_of(' ') + 1);
  }
  cells.erase(cells.begin());
  return cells;
}

}  // namespace tessera
