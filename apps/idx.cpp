// Reads IDX3. A header's sizes are believed only as far as the file can hold them: a raw file must
// have exactly those bytes, a gzipped one is inflated no further than they say, and no memory is
// taken for more than deflate could have packed into the file.
#include "apps/idx.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <iomanip>

#include "core/check.h"
#include "core/file.h"

namespace tessera {
namespace {

constexpr size_t kHeaderBytes = 16;
constexpr uint32_t kMagic = 0x00000803;  // unsigned bytes, three dimensions
constexpr uint32_t kMaxSide = 65535;
constexpr uint64_t kMaxDeflateRatio = 1032;  // a match of 258 bytes in two bits

uint32_t big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

std::string hex(uint32_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << std::setw(8) << std::setfill('0') << value;
  return out.str();
}

// Inflates one gzip member piece by piece.
class GzipReader {
 public:
  GzipReader(std::span<const std::byte> input, std::string origin)
      : input_(input), origin_(std::move(origin)) {
    constexpr int kGzipOnly = 16;
    ENSURE(inflateInit2(&stream_, MAX_WBITS + kGzipOnly) == Z_OK, "zlib does not start");
  }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;
  ~GzipReader() { inflateEnd(&stream_); }

  // Fills `out` as far as the member reaches; returns the number of bytes.
  size_t read(std::span<uint8_t> out) {
    size_t filled = 0;
    while (filled < out.size() && !ended_) filled += inflate_some(out.subspan(filled));
    return filled;
  }

  // Compressed bytes behind the end of the member.
  size_t bytes_left() const { return stream_.avail_in + input_.size(); }

 private:
  size_t inflate_some(std::span<uint8_t> out) {
    constexpr size_t kPiece = 1 << 30;  // zlib counts in 32 bits
    if (stream_.avail_in == 0) {
      const auto piece = input_.first(std::min(input_.size(), kPiece));
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(piece.data()));
      stream_.avail_in = static_cast<uInt>(piece.size());
      input_ = input_.subspan(piece.size());
    }
    const auto room = static_cast<uInt>(std::min(out.size(), kPiece));
    stream_.next_out = out.data();
    stream_.avail_out = room;
    const int status = inflate(&stream_, Z_NO_FLUSH);
    if (status == Z_BUF_ERROR) throw InputError(origin_ + ": truncated gzip file");
    if (status != Z_OK && status != Z_STREAM_END) {
      throw InputError(concat(origin_, ": corrupt gzip file",
                              stream_.msg ? concat(": ", stream_.msg) : std::string()));
    }
    ended_ = status == Z_STREAM_END;
    return room - stream_.avail_out;
  }

  z_stream stream_{};
  std::span<const std::byte> input_;  // what zlib was not yet given
  std::string origin_;
  bool ended_ = false;
};

// Checks the first `got` <= 16 bytes of the (inflated) file and gives the sizes in them.
IdxImages parse_header(const uint8_t* header, size_t got, const std::string& origin) {
  if (got < 4 || big_endian(header) != kMagic) {
    throw InputError(concat(origin, ": not an IDX3 file of unsigned bytes: it begins with ",
                            got < 4 ? concat(got, " bytes") : hex(big_endian(header)),
                            ", expected ", hex(kMagic)));
  }
  if (got < kHeaderBytes) {
    throw InputError(
        concat(origin, ": truncated: header of ", kHeaderBytes, " bytes, ", got, " are there"));
  }
  const uint32_t n = big_endian(header + 4), h = big_endian(header + 8),
                 w = big_endian(header + 12);
  if (h == 0 || w == 0 || h > kMaxSide || w > kMaxSide) {
    throw InputError(
        concat(origin, ": images of ", h, "x", w, ", expected sides from 1 to ", kMaxSide));
  }
  return {n, h, w, {}};  // n*h*w is below 2^64
}

// The error of a file whose pixels are not as many as its header says.
[[noreturn]] void fail_size(const IdxImages& images, uint64_t expected, const std::string& found,
                            const std::string& origin) {
  throw InputError(concat(origin, ": ", images.n, " images of ", images.h, "x", images.w, " need ",
                          expected, " bytes of pixels, ", found));
}

uint64_t pixel_count(const IdxImages& images) {
  return static_cast<uint64_t>(images.n) * static_cast<uint64_t>(images.h * images.w);
}

IdxImages parse_raw(std::span<const std::byte> content, const std::string& origin) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(content.data());
  IdxImages images = parse_header(bytes, std::min(content.size(), kHeaderBytes), origin);
  const uint64_t expected = pixel_count(images), found = content.size() - kHeaderBytes;
  if (found != expected) {
    fail_size(images, expected, concat("the file has ", found), origin);
  }
  images.pixels.assign(bytes + kHeaderBytes, bytes + content.size());
  return images;
}

IdxImages parse_gzip(std::span<const std::byte> content, const std::string& origin) {
  GzipReader reader(content, origin);
  std::array<uint8_t, kHeaderBytes> header{};
  const size_t got = reader.read(header);
  IdxImages images = parse_header(header.data(), got, origin);
  const uint64_t expected = pixel_count(images);
  if (expected / kMaxDeflateRatio > content.size()) {
    fail_size(images, expected, concat("which ", content.size(), " gzipped bytes cannot hold"),
              origin);
  }
  images.pixels.resize(expected);
  const uint64_t found = reader.read(images.pixels);
  if (found != expected) {
    fail_size(images, expected, concat("the file has ", found), origin);
  }
  uint8_t beyond = 0;  // asking for one more byte also makes zlib check the sum at the end
  if (reader.read({&beyond, 1}) != 0) fail_size(images, expected, "the file has more", origin);
  if (reader.bytes_left() != 0) {
    throw InputError(
        concat(origin, ": ", reader.bytes_left(), " bytes behind the end of the gzip data"));
  }
  return images;
}

}  // namespace

IdxImages read_idx(const std::filesystem::path& path) {
  return parse_idx(read_file(path), path.string());
}

IdxImages parse_idx(std::span<const std::byte> content, const std::string& origin) {
  const bool gzip =
      content.size() >= 2 && content[0] == std::byte{0x1f} && content[1] == std::byte{0x8b};
  return gzip ? parse_gzip(content, origin) : parse_raw(content, origin);
}

}  // namespace tessera
