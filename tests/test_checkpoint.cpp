// Checkpoints: what is saved comes back bit for bit, and nothing else is taken for one.
#include "apps/checkpoint.h"

#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "core/safetensors.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

struct Case {
  TempDir dir;
  Stream stream{Device::open(DeviceType::cpu, 1)};
  Trainer trainer{stream, tiny_options()};

  Parameters& parameters() { return trainer.model().parameters(); }
  std::filesystem::path save(const CheckpointState& state) {
    save_checkpoint(stream, parameters(), state, dir / "c.safetensors");
    return dir / "c.safetensors";
  }
  // What loading says for a file with one thing changed; the parameters must stay as they are.
  std::string error(const std::filesystem::path& path, int64_t images = 21) {
    const std::string before = state_of(stream, trainer);
    const std::string message =
        message_of<InputError>([&] { load_checkpoint(stream, parameters(), path, images); });
    CHECK(state_of(stream, trainer) == before);
    CHECK_THAT(message, Catch::StartsWith(path.string()) || Catch::Contains(path.string()));
    return message;
  }
};

// The file's tensors again, with the metadata of `change` over its own, without tensor `without`,
// and with the checksum of that.
void rewrite(const std::filesystem::path& from, const std::filesystem::path& to,
             const std::map<std::string, std::string>& change, const std::string& without = "") {
  const SafeTensors file = SafeTensors::read(from);
  std::map<std::string, std::string> metadata = change;
  metadata.insert(file.metadata().begin(), file.metadata().end());
  std::vector<SafeTensorEntry> entries;
  std::map<std::string, SafeTensor> tensors;
  for (const std::string& name : file.names()) {
    if (name == without) continue;
    const SafeTensor& tensor = file.at(name);
    const DType dtype = tensor.dtype == "F32"   ? DType::f32
                        : tensor.dtype == "F64" ? DType::f64
                                                : DType::i64;
    entries.push_back({name, dtype, tensor.shape, tensor.data});
    tensors[name] = tensor;
  }
  metadata["checksum"] = checksum_of(metadata, tensors);
  write_safetensors(to, std::move(entries), metadata);
}

// Bytes before the data: the header and its length.
size_t header_bytes(const std::filesystem::path& path) {
  uint64_t length = 0;
  std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&length), sizeof length);
  return sizeof length + length;
}

// One bit of a file is another one while it lives.
class Flip {
 public:
  Flip(std::filesystem::path path, size_t bit) : path_(std::move(path)), bit_(bit) { flip(); }
  Flip(const Flip&) = delete;
  ~Flip() { flip(); }

 private:
  void flip() const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(std::streamoff(bit_ / 8));
    const int byte = file.get();
    file.seekp(std::streamoff(bit_ / 8));
    file.put(char(byte ^ 1 << bit_ % 8));
  }

  std::filesystem::path path_;
  size_t bit_;
};

}  // namespace

TEST_CASE("a checkpoint brings back all state", "[checkpoint]") {
  Case c;
  for (uint32_t step = 0; step < 3; ++step) c.trainer.step(tiny_batch(4, step));
  const auto path = c.save({3, 0.1234567890123, 21});

  Trainer other(c.stream, tiny_options("2"));
  REQUIRE(state_of(c.stream, other) != state_of(c.stream, c.trainer));
  const CheckpointState state = load_checkpoint(c.stream, other.model().parameters(), path, 21);
  CHECK(state.step == 3);
  CHECK(state.epoch_loss == 0.1234567890123);
  CHECK(state_of(c.stream, other) == state_of(c.stream, c.trainer));
}

TEST_CASE("a checkpoint of another network, data set or version is refused", "[checkpoint]") {
  Case c;
  const auto path = c.save({3, 0.5, 21}), changed = c.dir / "changed.safetensors";

  CHECK_THAT(c.error(path, 22), Catch::Contains("'images' is 21, expected 22"));
  rewrite(path, changed, {{"schema", "1"}});  // its checksum was of less
  CHECK_THAT(c.error(changed), Catch::Contains("'schema' is 1, expected 3"));

  TrainOptions wider = tiny_options();
  wider.base = 16;
  Trainer other(c.stream, wider);
  save_checkpoint(c.stream, other.model().parameters(), {3, 0.5, 21}, changed);
  CHECK_THAT(c.error(changed), Catch::Contains("'network' is "));
}

TEST_CASE("a checkpoint that lacks a tensor or has a wrong one is refused", "[checkpoint]") {
  Case c;
  const auto path = c.save({3, 0.5, 21}), changed = c.dir / "changed.safetensors";
  for (const char* name : {"values", "m", "v", "step", "epoch_loss"}) {
    rewrite(path, changed, {}, name);
    CHECK_THAT(c.error(changed), Catch::Contains(concat("'", name, "' is missing")));
  }
  c.save({-1, 0.5, 21});
  CHECK_THAT(c.error(path), Catch::Contains("step -1"));
  c.save({1, std::numeric_limits<double>::quiet_NaN(), 21});
  CHECK_THAT(c.error(path), Catch::Contains("epoch_loss nan"));
}

TEST_CASE("a checkpoint with any one bit of its header changed is refused",
          "[checkpoint][unthreaded]") {
  Case c;
  const auto path = c.save({3, 0.5, 21, {{"seed", "5"}, {"lr", "0.001"}}});
  const size_t header = header_bytes(path);
  for (size_t bit = 0; bit < 8 * header; ++bit) {
    CAPTURE(bit);
    const Flip flip(path, bit);
    CHECK_THAT(c.error(path), Catch::StartsWith(path.string() + ": "));
  }
  CHECK(load_checkpoint(c.stream, c.parameters(), path, 21).step == 3);  // each was undone
}

TEST_CASE("a checkpoint with one changed bit in its data says that it is damaged",
          "[checkpoint][unthreaded]") {
  Case c;
  const auto path = c.save({3, 0.5, 21});
  const size_t first = 8 * header_bytes(path), bits = 8 * std::filesystem::file_size(path) - first;
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) {
    const size_t bit = first + random() % bits;
    CAPTURE(bit);
    const Flip flip(path, bit);
    CHECK_THAT(c.error(path), Catch::StartsWith(path.string() + ": damaged: its checksum is "));
  }
  CHECK(load_checkpoint(c.stream, c.parameters(), path, 21).step == 3);
}

TEST_CASE("a checkpoint without a checksum, or with another's, is damaged", "[checkpoint]") {
  Case c;
  const auto path = c.save({3, 0.5, 21});
  const std::string content = read_text(path), key = "\"checksum\":\"";
  const size_t at = content.find(key), begin = at + key.size(), end = content.find('"', begin);
  REQUIRE(at != std::string::npos);
  const std::string sum = content.substr(begin, end - begin);
  std::string changed = content;
  write_text(path, changed.replace(at + 1, 1, "C"));
  CHECK(c.error(path).starts_with(path.string() + ": damaged: its checksum is missing, that of "));
  changed = content;
  write_text(path, changed.replace(begin, 1, sum[0] == '9' ? "8" : "9"));
  CHECK(c.error(path) == path.string() + ": damaged: its checksum is " +
                             (sum[0] == '9' ? "8" : "9") + sum.substr(1) +
                             ", that of its content " + sum);
}

TEST_CASE("a checkpoint that is cut short is refused", "[checkpoint]") {
  Case c;
  const auto path = c.save({3, 0.5, 21});
  const std::string content = read_text(path);
  for (size_t bytes : {size_t{0}, size_t{7}, size_t{100}, content.size() / 2, content.size() - 1}) {
    write_text(path, content.substr(0, bytes));
    CHECK_FALSE(c.error(path).empty());
  }
  std::filesystem::remove(path);
  CHECK_THAT(c.error(path), Catch::Contains("No such file"));
}

TEST_CASE("a fingerprint tells networks apart by their statistics, and texts by their ends",
          "[checkpoint]") {
  const TempDir dir;
  Stream stream(Device::open(DeviceType::cpu, 1));
  Trainer group(stream, tiny_options()), batch(stream, tiny_options("1", {{"norm", "batch"}}));
  save_checkpoint(stream, batch.model().parameters(), {3, 0.5, 21}, dir / "c");
  CHECK_THAT(message_of<InputError>(
                 [&] { load_checkpoint(stream, group.model().parameters(), dir / "c", 21); }),
             Catch::Contains("'network' is "));
  CHECK(checksum_of({{"a", "b"}}, {}) != checksum_of({{"ab", ""}}, {}));
}
