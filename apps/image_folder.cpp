#include "apps/image_folder.h"

#include <algorithm>
#include <cctype>
#include <string>
#include <system_error>

#include "core/check.h"

namespace tessera {

namespace fs = std::filesystem;

namespace {

bool is_image_name(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return char(std::tolower(c)); });
  return !path.filename().string().starts_with('.') &&
         (extension == ".png" || extension == ".jpg" || extension == ".jpeg");
}

}  // namespace

std::vector<fs::path> list_images(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    std::error_code ignored;
    if (is_image_name(entry->path()) && entry->is_regular_file(ignored))
      paths.push_back(entry->path());
  }
  if (error) throw InputError(concat("cannot read ", folder.string(), ": ", error.message()));
  std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) {
    return a.filename().string() < b.filename().string();
  });
  return paths;
}

}  // namespace tessera
