// Checkpoints: what is saved comes back bit for bit, and nothing else is taken for one.
#include "apps/checkpoint.h"

#include <catch2/catch.hpp>

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

// The file's tensors again, with the metadata of `change` over its own, without tensor `without`.
void rewrite(const std::filesystem::path& from, const std::filesystem::path& to,
             const std::map<std::string, std::string>& change, const std::string& without = "") {
  const SafeTensors file = SafeTensors::read(from);
  std::map<std::string, std::string> metadata = change;
  metadata.insert(file.metadata().begin(), file.metadata().end());
  std::vector<SafeTensorEntry> entries;
  for (const std::string& name : file.names()) {
    if (name == without) continue;
    const SafeTensor& tensor = file.at(name);
    const DType dtype = tensor.dtype == "F32"   ? DType::f32
                        : tensor.dtype == "F64" ? DType::f64
                                                : DType::i64;
    entries.push_back({name, dtype, tensor.shape, tensor.data});
  }
  write_safetensors(to, std::move(entries), metadata);
}

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
  rewrite(path, changed, {{"schema", "2"}});
  CHECK_THAT(c.error(changed), Catch::Contains("'schema' is 2, expected 1"));

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

TEST_CASE("a checkpoint with one changed bit is refused", "[checkpoint]") {
  Case c;
  const auto path = c.save({3, 0.5, 21});
  const std::string content = read_text(path);
  for (size_t at = content.size() - 1; at > content.size() / 2; at -= content.size() / 40) {
    std::string changed = content;
    changed[at] = char(changed[at] ^ 1 << at % 8);
    write_text(path, changed);
    const std::string message = c.error(path);
    CHECK_THAT(message, Catch::Contains("'checksum' is ") || Catch::Contains("expected a step"));
  }
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
