// train: files and combinations of flags that cannot be used, and what it says then. What is wrong
// with a flag by itself: test_train_options.cpp.
#include <catch2/catch.hpp>

#include "core/simt/sanitizer.h"
#include "tests/train_program.h"

using namespace tessera;
namespace fs = std::filesystem;

namespace {

// "--data none --steps 2", with "" for a word that is empty.
Words split(const std::string& line) {
  Words words;
  std::istringstream in(line);
  for (std::string word; in >> word;) words.push_back(word == "\"\"" ? "" : word);
  return words;
}

}  // namespace

TEST_CASE("train: what is wrong is one line on stderr, and the status says whose fault it is",
          "[train][cli][errors]") {
  const TrainRuns c;
  const std::string here = c.dir.path().string();
  train(c.fresh("run", {"--steps", "2"}));
  fs::copy_file(c.data, c.dir / "images");
  for (const char* name : {"empty", "broken"}) fs::create_directory(c.dir / name);
  write_text(c.dir / "broken" / "a.png", "no picture");
  write_text(c.dir / "none", idx_file(0, 8, 8, ""));
  write_text(c.dir / "one", idx_file(1, 8, 8, std::string(64, 'x')));
  write_text(c.dir / "short", idx_file(2, 8, 8, std::string(64, 'x')));
  write_text(c.dir / "words", "neither images nor weights");
  for (const auto& [name, text] : {std::pair{"syntax", "{"},
                                   {"list", "[]"},
                                   {"key", R"({"btach": 3})"},
                                   {"type", R"({"batch": "3"})"},
                                   {"range", R"({"batch": 0})"},
                                   {"twice", R"({"batch": 3, "batch": 3})"},
                                   {"nowhere", R"({"resume": ""})"}})
    write_text(c.dir / (std::string(name) + ".json"), text);
  for (const char* name : {"damaged", "torn"})
    fs::copy(c.dir / "run", c.dir / name, fs::copy_options::recursive);
  train(c.fresh("variant", {"--steps", "2", "--norm", "layer"}));
  fs::copy(c.dir / "run", c.dir / "changed", fs::copy_options::recursive);
  fs::rename(c.dir / "variant" / "config.json", c.dir / "changed" / "config.json");
  fs::copy_file(c.dir / "run" / "config.json", c.dir / "variant" / "config.json");
  write_text(c.dir / "damaged" / "checkpoint.safetensors", "broken");
  write_text(c.dir / "torn" / "config.json", "{");

  const std::string tiny =
      "--data images --image-size 8 --base 8 --levels 1 --groups 4 --time-dim 8 ";
  struct Case {
    std::string arguments;
    int status;
    std::string message;
  };
  std::vector<Case> cases = {
      // The command line.
      {"--bogus", 2, "'--bogus' is not expected here (see --help)"},
      {"--batch 3 --batch 3", 2, "--batch is given 2 times (see --help)"},
      {"--batch 0", 2, "--batch is '0', expected an integer from 1 to 65536"},
      {"--resume \"\"", 2, "--resume is empty, expected DIR"},
      {tiny + "--device cpu --precision tf32", 2,
       "--precision tf32 is not available on device cpu (f32 and bf16 are)"},
      {tiny + "--device simt --precision tf32 --config twice.json", 2,
       "twice.json: key 'batch' comes twice"},
      // Config files: JSON that is none is a broken file, a wrong key a wrong option.
      {"--config no.json", 1, "cannot read no.json: No such file or directory"},
      {"--config empty", 1, "cannot read empty: Is a directory"},
      {"--config syntax.json", 1,
       "syntax.json: parse error at line 1, column 2: syntax error while parsing object key - "
       "unexpected end of input; expected string literal"},
      {"--config list.json", 1, "list.json: expected a JSON object"},
      {"--config key.json", 2,
       "key.json: key 'btach' with value 3 is unknown: expected names of options as in --help"},
      {"--config type.json", 2, "type.json: key 'batch' is \"3\", expected an integer"},
      {"--config range.json", 2,
       "range.json: key 'batch' is '0', expected an integer from 1 to 65536"},
      {"--config nowhere.json", 2, "nowhere.json: key 'resume' is empty, expected DIR"},
      // Images.
      {"--data no", 1, "cannot read " + here + "/no: No such file or directory"},
      {"--data empty", 1,
       here + "/empty: neither train-images-idx3-ubyte[.gz] nor PNG or JPEG files are in this "
              "directory"},
      {"--data broken", 1, here + "/broken/a.png: neither a PNG nor a JPEG image"},
      {"--data none", 1, here + "/none: no images, at least 1 is needed"},
      {"--data one", 1, here + "/one: 1 image, at least 2 are needed: one is held out"},
      {"--data short", 1,
       here + "/short: 2 images of 8x8 need 128 bytes of pixels, the file has 64"},
      {"--data words", 1,
       here + "/words: not an IDX3 file of unsigned bytes: it begins with 0x6e656974, expected "
              "0x00000803"},
      // Weights.
      {tiny + "--weights no", 1, "cannot read " + here + "/no: No such file or directory"},
      {tiny + "--weights words", 1,
       here + "/words: not a safetensors file: header of 2338042655862777198 bytes, at most "
              "100000000 are allowed"},
      {tiny + "--weights run/model.safetensors --base 16", 2,
       "--base is given 2 times (see --help)"},
      {tiny + "--norm layer --weights run/model.safetensors", 1,
       here + "/run/model.safetensors holds a network with --norm group, but --norm is layer"},
      {tiny + "--norm batch --weights run/model.safetensors", 1,
       here + "/run/model.safetensors holds a network with --norm group, but --norm is batch"},
      {tiny + "--down avg --weights run/model.safetensors", 1,
       here + "/run/model.safetensors holds a network with --down rearrange, but --down is avg"},
      {tiny + "--no-skips --weights run/model.safetensors", 1,
       here + "/run/model.safetensors holds a network with --no-skips false, but --no-skips is "
              "true"},
      {tiny + "--activation gelu-tanh --weights run/model.safetensors", 1,
       here + "/run/model.safetensors holds a network with --activation gelu, but --activation is "
              "gelu-tanh"},
      {tiny + "--weights run/checkpoint.safetensors", 1,
       here + "/run/checkpoint.safetensors: tensor 'init_conv.weight' is missing: not weights of "
              "this U-Net"},
      // Runs.
      {tiny + "--out run", 1,
       "--out run holds config.json of another run: give a new directory, or go on with --resume "
       "run"},
      {tiny + "--out words", 1, "cannot write to words: Not a directory"},
      {tiny + "--out words/new", 1, "cannot write to words/new: Not a directory"},
      {"--resume no", 1, "--resume no is not the directory of a run: it has no config.json"},
      {"--resume empty", 1, "--resume empty is not the directory of a run: it has no config.json"},
      {"--resume words", 1, "--resume words is not the directory of a run: it has no config.json"},
      {"--resume torn", 1,
       "torn/config.json: parse error at line 1, column 2: syntax error while parsing object key - "
       "unexpected end of input; expected string literal"},
      {"--resume damaged", 1,
       "damaged/checkpoint.safetensors: not a safetensors file: it is 6 bytes long, its header's "
       "length alone takes 8"},
      {"--resume run --batch 5", 2,
       "--batch is 5, but the run in run has 4: only --steps, --epochs, --threads and --*-every "
       "may change"},
      {"--resume run --no-skips", 2,
       "--no-skips is true, but the run in run has false: only --steps, --epochs, --threads and "
       "--*-every may change"},
      {"--resume changed", 1,
       "changed/checkpoint.safetensors: metadata 'norm' is missing, expected layer"},
      {"--resume variant", 1,
       "variant/checkpoint.safetensors: metadata 'norm' is layer, which is not what this run has"},
      {"--resume run --weights words", 2,
       "--weights is " + here +
           "/words, but the run in run has none: only --steps, --epochs, "
           "--threads and --*-every may change"},
      {"--resume run --out new", 2,
       "--out is new, but the run in run has run: only --steps, --epochs, --threads and --*-every "
       "may change"},
      {"--resume run --steps 1", 2,
       "--resume run is at step 2 already, beyond the 1 that are asked for"},
      {"--resume run --config type.json", 2,
       "type.json: key 'batch' is \"3\", expected an integer"},
  };
  if (!has_gpu())
    cases.push_back({tiny + "--device cuda", 1,
                     message_of<InputError>([] { Device::open(DeviceType::cuda); })});
  for (const Case& wrong : cases) {
    CAPTURE(wrong.arguments);
    const Finished run =
        run_program("train", split(wrong.arguments), "cd " + shell_word(here) + " &&");
    CHECK(run.err == "train: error: " + wrong.message + "\n");
    CHECK(run.out == "");
    CHECK(run.status == wrong.status);
    CHECK_FALSE(fs::exists(c.dir / "runs"));  // nothing is made before all is known to be right
    CHECK_FALSE(fs::exists(c.dir / "new"));
  }
  CHECK(c.checkpoint_step("run") == 2);
}

TEST_CASE("train: files that config.json cannot name", "[train][cli][errors]") {
  const TrainRuns c;
  const std::string folder = (c.dir / "not\xff").string();
  fs::create_directory(folder);
  fs::copy_file(c.data, folder + "/images");
  CHECK(error_of(c.fresh("r", {"--data", folder + "/images"}), 1) ==
        "--data is not UTF-8, as config.json is that has to name it: " + folder + "/images\n");
  CHECK_FALSE(fs::exists(c.dir / "r"));
  train(c.fresh("not\xfe", {"--steps", "2"}));
  train(c.resume("not\xfe", {"--steps", "3"}));
}

TEST_CASE("programs: output that cannot be written, and files that may not grow", "[train][cli]") {
  const TrainRuns c;
  const auto run = [&](const std::string& name, const Words& words, const std::string& before,
                       const std::string& behind) {
    std::string line = before + ' ' + shell_word(concat(bin_dir(), "/", name));
    for (const std::string& word : words) line += ' ' + shell_word(word);
    const int status = std::system((line + ' ' + behind).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  };
  const std::string err = (c.dir / "err").string(), quiet = " 2>" + shell_word(err);
  for (const char* name : {"train", "denoise"}) {
    CHECK(run(name, {"--help"}, "", ">/dev/full" + quiet) == 1);
    CHECK(read_text(err) == concat(name, ": error: what was printed could not be written\n"));
    // Nobody has to read it, though.
    run(name, {"--help"}, "(", "; echo $? >" + shell_word(err) + ") | true");
    CHECK(read_text(err) == "0\n");
  }
#ifndef TESSERA_TSAN  // which keeps files of its own
  const Words few = c.fresh("r", {"--steps", "3"});
  CHECK(run("train", few, "ulimit -f 8;", ">/dev/null" + quiet) == 1);
  CHECK_THAT(read_text(err), Catch::Contains("File too large"));
  for (const auto& file : fs::directory_iterator(c.dir / "r"))
    CHECK(file.path().extension() != ".tmp");
#endif
}

TEST_CASE("train: a name with a line break in it stays one line", "[train][cli][errors]") {
  CHECK(error_of({"--data", "/no/data\nthere"}, 1) ==
        "cannot read /no/data there: No such file or directory\n");
}
