// safetensors: exact bytes (those of the format's own library), round trips, and hostile files,
// each refused with one line that names file, tensor and both values.
#include "core/safetensors.h"

#include <catch2/catch.hpp>
#include <cstring>

#include "core/check.h"
#include "tests/temp_dir.h"

using namespace tessera;

namespace {

// A file with this header, its length in front, and `data_bytes` of data.
std::string file_with(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + std::string(data_bytes, '\x01');
}

// What reading it says; "" if it is accepted.
std::string refusal(const std::string& file) {
  const auto bytes = bytes_of(file);
  return message_of<InputError>([&] {
    SafeTensors::parse({bytes.begin(), bytes.end()}, "f.safetensors");
  });
}

std::string refusal(const std::string& header, size_t data_bytes) {
  return refusal(file_with(header, data_bytes));
}

std::string f32_header(const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

// One tensor of every kind, deliberately out of order. `storage` holds their data.
std::vector<SafeTensorEntry> sample_entries() {
  static const std::vector<float> kFloats = {1, 2, 3};
  static const std::vector<int64_t> kSeven = {7};
  static const std::vector<uint8_t> kBytes = {1, 2, 3};
  return {{"u", DType::u8, {3}, std::as_bytes(std::span(kBytes))},
          {"c", DType::f32, {0, 3}, {}},
          {"b", DType::f32, {1, 3}, std::as_bytes(std::span(kFloats))},
          {"a", DType::i64, {}, std::as_bytes(std::span(kSeven))}};
}

// The same written by safetensors 0.8.0 (Python), byte for byte.
const std::string& sample_file() {
  static const std::string kFile =
      file_with(R"({"__metadata__":{"k":"v"},"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                R"("b":{"dtype":"F32","shape":[1,3],"data_offsets":[8,20]},)"
                R"("c":{"dtype":"F32","shape":[0,3],"data_offsets":[20,20]},)"
                R"("u":{"dtype":"U8","shape":[3],"data_offsets":[20,23]}}   )",
                0) +
      std::string("\x07\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\x01\x02\x03", 23);
  return kFile;
}

}  // namespace

TEST_CASE("safetensors: the bytes are those of the reference library", "[safetensors]") {
  TempDir dir;
  write_safetensors(dir / "f", sample_entries(), {{"k", "v"}});
  CHECK(read_text(dir / "f") == sample_file());
}

TEST_CASE("safetensors: a file gives back what was written", "[safetensors]") {
  TempDir dir;
  write_safetensors(dir / "f", sample_entries(), {{"k", "v"}, {"quote", "\"\n\xc3\xa9"}});
  const SafeTensors file = SafeTensors::read(dir / "f");
  CHECK(file.names() == std::vector<std::string>{"a", "b", "c", "u"});
  CHECK(file.metadata() ==
        std::map<std::string, std::string>{{"k", "v"}, {"quote", "\"\n\xc3\xa9"}});
  for (const SafeTensorEntry& entry : sample_entries()) {
    REQUIRE(file.contains(entry.name));
    const SafeTensor& tensor = file.at(entry.name);
    CHECK(tensor.dtype == safetensors_name(entry.dtype));
    CHECK(tensor.shape == entry.shape);
    CHECK(std::equal(tensor.data.begin(), tensor.data.end(), entry.data.begin(), entry.data.end()));
  }
  CHECK_FALSE(file.contains("z"));
  CHECK(message_of<InputError>([&] { file.at("z"); }) ==
        (dir / "f").string() + ": no tensor \"z\"");
}

TEST_CASE("safetensors: every dtype has its name", "[safetensors]") {
  const std::vector<std::byte> zeros(8);
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f64, DType::u8, DType::i32, DType::i64}) {
    TempDir dir;
    write_safetensors(dir / "f", {{"t", dtype, {1}, std::span(zeros).first(size_of(dtype))}});
    std::string upper = name_of(dtype);
    for (char& c : upper) c = static_cast<char>(std::toupper(c));
    CHECK(SafeTensors::read(dir / "f").at("t").dtype == upper);
  }
}

TEST_CASE("safetensors: no tensors, with and without metadata", "[safetensors]") {
  TempDir dir;
  write_safetensors(dir / "f", {});
  CHECK(read_text(dir / "f") == file_with("{}      ", 0));
  CHECK(SafeTensors::read(dir / "f").names().empty());
  CHECK(refusal("{}", 0).empty());
  CHECK(refusal(R"({"__metadata__":{}})", 0).empty());
}

TEST_CASE("safetensors: a writer refuses wrong sizes and names", "[safetensors]") {
  TempDir dir;
  const std::vector<std::byte> data(8);
  const auto write = [&](std::vector<SafeTensorEntry> entries) {
    write_safetensors(dir / "f", std::move(entries));
  };
  CHECK_THROWS_AS(write({{"a", DType::f32, {3}, data}}), Error);
  CHECK_THROWS_AS(write({{"a", DType::f32, {2}, data}, {"a", DType::f32, {2}, data}}), Error);
  CHECK_THROWS_AS(write({{"__metadata__", DType::f32, {2}, data}}), Error);
  CHECK_FALSE(std::filesystem::exists(dir / "f"));
}

TEST_CASE("safetensors: offsets in any order, foreign dtypes and unpadded headers are legal",
          "[safetensors]") {
  CHECK(refusal(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[3,7]},)"
                R"("b":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})",
                7)
            .empty());
  CHECK(refusal(f32_header("[4611686018427387904,4611686018427387904,0]", "[0,0]"), 0).empty());
}

TEST_CASE("safetensors: a file cut at any length is refused", "[safetensors]") {
  for (size_t length = 0; length < sample_file().size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(refusal(sample_file().substr(0, length)).empty());
  }
  CHECK(refusal(sample_file()).empty());
  CHECK(refusal("") ==
        "f.safetensors: not a safetensors file: it is 0 bytes long, its header's length alone "
        "takes 8");
  CHECK(refusal(sample_file().substr(0, 10)) ==
        "f.safetensors: truncated: header of 248 bytes, 2 are there");
  CHECK(refusal(sample_file().substr(0, sample_file().size() - 1)) ==
        "f.safetensors: tensor \"u\": data_offsets [20,23] do not lie in the 22 bytes of data");
}

TEST_CASE("safetensors: the header's length and beginning", "[safetensors]") {
  CHECK(refusal(std::string(8, '\xff')) ==
        "f.safetensors: not a safetensors file: header of 18446744073709551615 bytes, at most "
        "100000000 are allowed");
  CHECK(refusal(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8)) ==
        "f.safetensors: not a safetensors file: header of 100000001 bytes, at most 100000000 are "
        "allowed");
  const std::string no_brace =
      "f.safetensors: not a safetensors file: its header does not begin with '{'";
  CHECK(refusal("", 0) == no_brace);
  CHECK(refusal(" {}", 0) == no_brace);
  CHECK(refusal("[]", 0) == no_brace);
  CHECK(refusal("{", 0) == "f.safetensors: header is not valid JSON");
  CHECK(refusal("{} x", 0) == "f.safetensors: header is not valid JSON");
  CHECK(refusal("{\"\xff\":1}", 0) == "f.safetensors: header is not valid JSON");
  CHECK(refusal(std::string("{}\0", 3), 0) == "f.safetensors: header is not valid JSON");
}

TEST_CASE("safetensors: duplicate keys are refused", "[safetensors]") {
  const std::string w = R"("w":{"dtype":"F32","shape":[],"data_offsets":[0,4]})";
  CHECK(refusal("{" + w + "," + w + "}", 4) == "f.safetensors: header has the key \"w\" twice");
  CHECK(refusal(R"({"w":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4) ==
        "f.safetensors: header has the key \"dtype\" twice");
  CHECK(refusal(R"({"__metadata__":{"a":"1","a":"2"}})", 0) ==
        "f.safetensors: header has the key \"a\" twice");
}

TEST_CASE("safetensors: metadata is string to string", "[safetensors]") {
  CHECK(refusal(R"({"__metadata__":[]})", 0) == "f.safetensors: __metadata__ is not an object");
  CHECK(refusal(R"({"__metadata__":{"a":1}})", 0) ==
        "f.safetensors: __metadata__ entry \"a\" is not a string");
}

TEST_CASE("safetensors: a tensor's fields have the right types", "[safetensors]") {
  const std::string tensor = "f.safetensors: tensor \"w\"";
  CHECK(refusal(R"({"w":3})", 0) == tensor + " is not an object");
  CHECK(refusal(R"({"w":{"shape":[],"data_offsets":[0,4]}})", 4) == tensor + " has no dtype");
  CHECK(refusal(R"({"w":{"dtype":4,"shape":[],"data_offsets":[0,4]}})", 4) ==
        tensor + " has no dtype");
  CHECK(refusal(R"({"w":{"dtype":"F31","shape":[],"data_offsets":[0,4]}})", 4) ==
        tensor + " has unknown dtype \"F31\"");
  CHECK(refusal(R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4) == tensor + " has no shape");
  CHECK(refusal(R"({"w":{"dtype":"F32","shape":[]}})", 4) == tensor + " has no data_offsets");
  const std::string not_integers = " is not an array of integers from 0 to 2^63 - 1";
  for (const char* shape : {"4", "[-1]", "[1.0]", "[\"1\"]", "{}", "null", "[9223372036854775808]",
                            "[18446744073709551617]", "[1e2]"}) {
    CAPTURE(shape);
    CHECK(refusal(f32_header(shape, "[0,4]"), 4) == tensor + ": shape" + not_integers);
  }
  CHECK(refusal(f32_header("[1]", "[0,-4]"), 4) == tensor + ": data_offsets" + not_integers);
  CHECK(refusal(f32_header("[1]", "[0,2,4]"), 4) ==
        tensor + ": data_offsets has 3 numbers, expected 2");
}

TEST_CASE("safetensors: shapes and offsets must agree with each other and with the file",
          "[safetensors]") {
  const std::string tensor = "f.safetensors: tensor \"w\"";
  CHECK(refusal(f32_header("[4611686018427387904]", "[0,4]"), 4) ==
        tensor + ": shape [4611686018427387904] overflows 64 bits");
  CHECK(refusal(f32_header("[4294967296,1073741825]", "[0,4]"), 4) ==
        tensor + ": shape [4294967296,1073741825] overflows 64 bits");
  CHECK(refusal(f32_header("[2305843009213693951]", "[0,9223372036854775804]"), 4) ==
        tensor + ": data_offsets [0,9223372036854775804] do not lie in the 4 bytes of data");
  CHECK(refusal(f32_header("[1]", "[4,0]"), 4) ==
        tensor + ": data_offsets [4,0] do not lie in the 4 bytes of data");
  CHECK(refusal(f32_header("[2]", "[0,4]"), 4) ==
        tensor + ": F32 [2] needs 8 bytes, data_offsets [0,4] have 4");
  CHECK(refusal(f32_header("[0]", "[0,4]"), 4) ==
        tensor + ": F32 [0] needs 0 bytes, data_offsets [0,4] have 4");
}

TEST_CASE("safetensors: holes, overlaps and trailing bytes are refused", "[safetensors]") {
  const auto two = [](const std::string& a, const std::string& b) {
    return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + a +
           R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + b + "}}";
  };
  CHECK(refusal(two("[4,8]", "[0,4]"), 8).empty());
  CHECK(refusal(two("[0,4]", "[2,6]"), 6) ==
        "f.safetensors: tensor \"b\" begins at byte 2 of the data, expected 4 (overlap)");
  CHECK(refusal(two("[0,4]", "[0,4]"), 4) ==
        "f.safetensors: tensor \"b\" begins at byte 0 of the data, expected 4 (overlap)");
  CHECK(refusal(two("[0,4]", "[5,9]"), 9) ==
        "f.safetensors: tensor \"b\" begins at byte 5 of the data, expected 4 (hole)");
  CHECK(refusal(two("[4,8]", "[8,12]"), 12) ==
        "f.safetensors: tensor \"a\" begins at byte 4 of the data, expected 0 (hole)");
  CHECK(refusal(two("[0,4]", "[4,8]"), 9) ==
        "f.safetensors: the tensors end at byte 8 of 9 bytes of data");
  CHECK(refusal("{}", 1) == "f.safetensors: the tensors end at byte 0 of 1 bytes of data");
}

TEST_CASE("safetensors: deep nesting and long names stay one short line", "[safetensors]") {
  const std::string too_deep = "f.safetensors: header is nested too deeply";
  CHECK(refusal(R"({"w":)" + std::string(100'000, '['), 0) == too_deep);
  CHECK(refusal(f32_header("[[1]]", "[0,4]"), 4) == too_deep);
  const std::string message = refusal("{\"" + std::string(100'000, 'n') + "\":3}", 0);
  CHECK(message == "f.safetensors: tensor \"" + std::string(200, 'n') + "...\" is not an object");
  CHECK(refusal(R"({"a\nb":3})", 0) == "f.safetensors: tensor \"a\\nb\" is not an object");
}

TEST_CASE("safetensors: a file that cannot be read names itself", "[safetensors]") {
  TempDir dir;
  CHECK(message_of<InputError>([&] { SafeTensors::read(dir / "no"); }) ==
        "cannot read " + (dir / "no").string() + ": No such file or directory");
  CHECK(message_of<InputError>([&] { SafeTensors::read(dir.path()); }) ==
        "cannot read " + dir.path().string() + ": Is a directory");
}

TEST_CASE("the largest extent", "[safetensors]") {
  const TempDir dir;
  write_safetensors(dir / "a", {{"w", DType::f32, {INT64_MAX, 0}, {}}});
  CHECK(SafeTensors::read(dir / "a").at("w").shape == std::vector<int64_t>{INT64_MAX, 0});
}
