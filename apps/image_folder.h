// Which files of a folder are pictures.
#pragma once

#include <filesystem>
#include <vector>

namespace tessera {

// The .png, .jpg and .jpeg files of a folder (not of those in it), in the order of their names'
// bytes; names that begin with '.' are passed over. Throws InputError naming the folder when it
// cannot be read.
std::vector<std::filesystem::path> list_images(const std::filesystem::path& folder);

}  // namespace tessera
