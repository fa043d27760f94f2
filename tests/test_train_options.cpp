// Options of train: their layers, their errors, and config files that reproduce a run.
#include <catch2/catch.hpp>

#include "apps/train_options.h"
#include "core/precision.h"
#include "tests/temp_dir.h"
#include "tests/train_case.h"

using namespace tessera;

namespace {

using Words = std::vector<std::string>;

CommandLine parse(const Words& words) {
  std::vector<const char*> argv{"train"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_command_line(int(argv.size()), argv.data());
}

TrainOptions options_of(const Words& words, const std::string& config = "{}") {
  return make_options(layered(parse_config(config, "c.json"), parse(words).given));
}

std::string usage_error(const Words& words, const std::string& config = "{}") {
  return message_of<UsageError>([&] { options_of(words, config); });
}

// A value other than the default that the option takes beside those of other_values().
std::string other_value(const TrainOption& option) {
  static const std::map<std::string, std::string> values{{"preset", "lesson"},
                                                         {"data", "/some/where"},
                                                         {"image-size", "48"},
                                                         {"channels", "3"},
                                                         {"base", "24"},
                                                         {"levels", "2"},
                                                         {"groups", "6"},
                                                         {"time-dim", "66"},
                                                         {"activation", "gelu-tanh"},
                                                         {"down", "max"},
                                                         {"up", "transposed"},
                                                         {"norm", "instance"},
                                                         {"no-skips", "true"},
                                                         {"no-time-gelu", "true"},
                                                         {"weights", "/w"},
                                                         {"batch", "5"},
                                                         {"epochs", "7"},
                                                         {"steps", "11"},
                                                         {"lr", "0.00325"},
                                                         {"noise-level", "0.25"},
                                                         {"seed", "123456789012"},
                                                         {"device", "simt"},
                                                         {"precision", "tf32"},
                                                         {"fusion", "off"},
                                                         {"threads", "3"},
                                                         {"out", "o"},
                                                         {"resume", "r"},
                                                         {"checkpoint-every", "9"},
                                                         {"eval-every", "8"},
                                                         {"log-every", "2"},
                                                         {"figure", "lesson"}};
  return values.at(option.name);
}

// Where an option alone would not fit the others' defaults.
Words companions(const TrainOption& option) {
  if (option.name == "groups") return {"--base", "24"};
  return {};
}

std::string json_of(const TrainOption& option, const std::string& value) {
  return option.is_text() ? "\"" + value + "\"" : value;
}

// On the command line.
Words words_of(const TrainOption& option) {
  if (option.is_flag()) return {"--" + option.name};
  return {"--" + option.name, other_value(option)};
}

void append(Words& words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
}

}  // namespace

TEST_CASE("every flag of train is a key of its config file", "[train]") {
  for (const TrainOption& option : train_option_table()) {
    INFO(option.name);
    const std::string value = other_value(option);
    const std::string config = "{\"" + option.name + "\": " + json_of(option, value) + "}";
    Words words = companions(option);
    const TrainOptions by_config = options_of(words, config), untouched = options_of(words);
    append(words, words_of(option));
    const TrainOptions by_flag = options_of(words);
    CHECK(option.get(by_flag) == value);
    CHECK(option.get(by_config) == value);
    CHECK(option.get(untouched) != value);
  }
}

TEST_CASE("the command line wins over the config file, and that over the preset", "[train]") {
  CHECK(options_of({"--device", "cpu"}).preset == "quick");
  CHECK(options_of({"--device", "cpu"}).image_size == 32);
  CHECK(options_of({"--device", "cpu"}).steps == 600);
  CHECK(options_of({"--preset", "lesson"}).image_size == 64);
  CHECK(options_of({"--preset", "lesson"}).epochs == 50);
  CHECK_FALSE(options_of({"--preset", "lesson"}).steps);
  const std::string config = R"({"preset": "lesson", "image-size": 16, "batch": 7})";
  CHECK(options_of({}, config).image_size == 16);
  CHECK(options_of({}, config).base == 64);
  CHECK(options_of({"--image-size", "24"}, config).image_size == 24);
  CHECK(options_of({"--image-size", "24"}, config).batch == 7);
  CHECK(options_of({"--preset", "quick"}, config).base == 32);
}

TEST_CASE("the device chooses the preset that nobody names", "[train]") {
  // Parsing needs no GPU.
  CHECK(options_of({"--device", "cuda"}).preset == "lesson");
  CHECK(options_of({"--device", "cuda"}).image_size == 64);
  CHECK(options_of({}, R"({"device": "cuda"})").preset == "lesson");
  CHECK(options_of({"--device", "simt"}).preset == "tiny");
  CHECK(options_of({"--device", "cpu"}).preset == "quick");
  CHECK(options_of({"--device", "cuda", "--preset", "quick"}).preset == "quick");
}

TEST_CASE("what a precision means on a device", "[train]") {
  const auto resolved = [](const std::string& name, const char* device, int capability) {
    return resolve_precision(options_of({"--precision", name}).precision, device, capability);
  };
  const auto refusal = [&](const std::string& name, const char* device, int capability) {
    return message_of<UsageError>([&] { resolved(name, device, capability); });
  };
  CHECK(resolved("auto", "cpu", 0) == "f32");
  CHECK(resolved("auto", "cuda", 75) == "f32");
  CHECK(resolved("auto", "cuda", 80) == "bf16");
  CHECK(resolved("auto", "cuda", 90) == "bf16");
  for (int capability : {0, 75, 80, 90}) CHECK(resolved("f32", "any", capability) == "f32");
  for (const char* name : {"tf32", "bf16"})
    for (int capability : {80, 90}) CHECK(resolved(name, "cuda", capability) == name);
  CHECK(resolved("bf16", "cuda", 75) == "bf16");  // without tensor cores, but it runs
  CHECK(refusal("tf32", "cuda", 75) ==
        "--precision tf32 needs a GPU of compute capability 8.0 or more, this one has 7.5");
  CHECK(resolved("bf16", "cpu", 0) == "bf16");  // in f32 where the CPU does not multiply it
  CHECK(refusal("tf32", "cpu", 0) ==
        "--precision tf32 is not available on device cpu (f32 and bf16 are)");
}

TEST_CASE("steps win over epochs, but not over epochs of a higher layer", "[train]") {
  CHECK(total_steps(options_of({"--steps", "9", "--epochs", "2"}), 100) == 9);
  CHECK(total_steps(options_of({"--epochs", "2"}), 100) == 8);  // quick has steps
  CHECK(total_steps(options_of({"--epochs", "2"}, R"({"steps": 9})"), 100) == 8);
  CHECK(total_steps(options_of({"--steps", "9"}, R"({"epochs": 2})"), 100) == 9);
  CHECK(total_steps(options_of({}, R"({"epochs": 2, "steps": 9})"), 100) == 9);
}

TEST_CASE("groups mean nothing where the norm is no group norm", "[train]") {
  for (const char* norm : {"batch", "layer", "instance"})
    CHECK(options_of({"--base", "12", "--groups", "8", "--norm", norm}).base == 12);
  CHECK(usage_error({"--base", "12", "--norm", "group"}) ==
        "--base 12 is not a multiple of --groups 8");
}

TEST_CASE("a choice is a setting of the run where it is not the default", "[train]") {
  const auto settings = options_of({"--norm", "layer", "--no-skips"}).settings();
  CHECK(settings.at("norm") == "layer");
  CHECK(settings.at("no-skips") == "true");
  for (const char* name : {"down", "up", "no-time-gelu"}) CHECK_FALSE(settings.contains(name));
  CHECK_FALSE(options_of({}).settings().contains("norm"));  // as in older checkpoints
}

TEST_CASE("a saved config gives the same options again", "[train]") {
  Words all;
  for (const TrainOption& option : train_option_table())
    if (option.name != "resume" && option.name != "out" && option.name != "device")
      append(all, words_of(option));
  for (const Words& words : {Words{}, Words{"--preset", "lesson"}, Words{"--epochs", "3"}, all}) {
    const TrainOptions saved = options_of(words);
    const TrainOptions loaded = options_of({}, config_text(saved));
    for (const TrainOption& option : train_option_table()) {
      INFO(option.name);
      CHECK(option.get(loaded) == option.get(saved));
    }
  }
}

TEST_CASE("a config file does not carry where the run wrote to", "[train]") {
  const std::string text = config_text(options_of({"--out", "somewhere"}));
  CHECK(text.find("somewhere") == std::string::npos);
}

TEST_CASE("values that are out of range name the flag and what is expected", "[train]") {
  const auto [words, message] = GENERATE(table<Words, std::string>({
      {{"--batch", "0"}, "--batch is '0', expected an integer from 1 to 65536"},
      {{"--batch", "x"}, "--batch is 'x', expected an integer from 1 to 65536"},
      {{"--batch", "3.5"}, "--batch is '3.5', expected an integer from 1 to 65536"},
      {{"--steps", "0"}, "--steps is '0', expected an integer from 1 to 4000000000"},
      {{"--seed", "-1"}, "--seed is '-1', expected an integer from 0 to 9223372036854774784"},
      {{"--seed", "9223372036854775807"},
       "--seed is '9223372036854775807', expected an integer from 0 to 9223372036854774784"},
      {{"--lr", "nan"}, "--lr is 'nan', expected a number from 1e-12 to 10"},
      {{"--lr", "0"}, "--lr is '0', expected a number from 1e-12 to 10"},
      {{"--noise-level", "inf"}, "--noise-level is 'inf', expected a number from 1e-06 to 100"},
      {{"--device", "gpu"}, "--device is 'gpu', expected auto, cpu, cuda or simt"},
      {{"--preset", "fast"}, "--preset is 'fast', expected lesson, quick or tiny"},
      {{"--activation", "swish"}, "--activation is 'swish', expected gelu, gelu-tanh or relu"},
      {{"--down", "pool"}, "--down is 'pool', expected rearrange, conv, max or avg"},
      {{"--up", "bilinear"}, "--up is 'bilinear', expected nearest or transposed"},
      {{"--norm", "none"}, "--norm is 'none', expected group, batch, layer or instance"},
      {{"--norm", ""}, "--norm is empty, expected NAME"},
      {{"--no-skips=yes"}, "--no-skips is 'yes', expected true or false"},
      {{"--no-time-gelu=0"}, "--no-time-gelu is '0', expected true or false"},
      {{"--norm", "batch", "--image-size", "8", "--levels", "3"},
       "--image-size is 8, but --norm batch needs more than the 1x1 pixels that --levels 3 leaves "
       "of it"},
      {{"--out", ""}, "--out is empty, expected DIR"},
      {{"--channels", "2"}, "--channels is 2, expected 1 (grey) or 3 (colour)"},
      {{"--base", "30"}, "--base 30 is not a multiple of --groups 8"},
      {{"--image-size", "36"},
       "--image-size is 36, expected a multiple of 8 (2^--levels, --levels 3)"},
      {{"--threads", "1025"}, "--threads is '1025', expected an integer from 0 to 1024"},
      {{"--threads", "-1"}, "--threads is '-1', expected an integer from 0 to 1024"},
      {{"--batch", ""}, "--batch is '', expected an integer from 1 to 65536"},
      {{"--batch", " 3"}, "--batch is ' 3', expected an integer from 1 to 65536"},
      {{"--batch", "+3"}, "--batch is '+3', expected an integer from 1 to 65536"},
      {{"--batch", "0x10"}, "--batch is '0x10', expected an integer from 1 to 65536"},
      {{"--batch", "99999999999999999999"},
       "--batch is '99999999999999999999', expected an integer from 1 to 65536"},
      {{"--image-size", "4097"}, "--image-size is '4097', expected an integer from 1 to 4096"},
      {{"--channels", "4"}, "--channels is '4', expected an integer from 1 to 3"},
      {{"--base", "0"}, "--base is '0', expected an integer from 1 to 4096"},
      {{"--levels", "9"}, "--levels is '9', expected an integer from 1 to 8"},
      {{"--groups", "0"}, "--groups is '0', expected an integer from 1 to 4096"},
      {{"--time-dim", "1"}, "--time-dim is '1', expected an integer from 2 to 4096"},
      {{"--time-dim", "7"}, "--time-dim is 7, expected an even number"},
      {{"--epochs", "0"}, "--epochs is '0', expected an integer from 1 to 1000000"},
      {{"--lr", "-0.1"}, "--lr is '-0.1', expected a number from 1e-12 to 10"},
      {{"--lr", "1e-3x"}, "--lr is '1e-3x', expected a number from 1e-12 to 10"},
      {{"--lr", "1e400"}, "--lr is '1e400', expected a number from 1e-12 to 10"},
      {{"--noise-level", "0"}, "--noise-level is '0', expected a number from 1e-06 to 100"},
      {{"--checkpoint-every", "-1"},
       "--checkpoint-every is '-1', expected an integer from 0 to 4000000000"},
      {{"--eval-every", "x"}, "--eval-every is 'x', expected an integer from 0 to 4000000000"},
      {{"--log-every", "0"}, "--log-every is '0', expected an integer from 1 to 4000000000"},
      {{"--precision", "f16"}, "--precision is 'f16', expected auto, f32, tf32 or bf16"},
      {{"--fusion", "yes"}, "--fusion is 'yes', expected on or off"},
      {{"--figure", ""}, "--figure is empty, expected NAME"},
      {{"--figure", "none"}, "--figure is 'none', expected matched or lesson"},
      {{"--data", ""}, "--data is empty, expected auto|PATH"},
      {{"--weights", ""}, "--weights is empty, expected FILE"},
      {{"--config", ""}, "--config is empty, expected FILE"},
  }));
  CHECK(usage_error(words) == message);
}

TEST_CASE("a command line that cannot be parsed is a usage error", "[train]") {
  const auto [words, message] = GENERATE(table<Words, std::string>({
      {{"--bogus"}, "'--bogus' is not expected here"},
      {{"--bogus", "3", "--batch", "0"}, "'--bogus' is not expected here"},
      {{"--bogus=3"}, "'--bogus=3' is not expected here"},
      {{"--Batch", "3"}, "'--Batch' is not expected here"},
      {{"-b", "3"}, "'-b' is not expected here"},
      {{"stray", "more"}, "'stray' is not expected here"},
      {{"--batch", "3", "4"}, "'4' is not expected here"},
      {{"--", "--batch"}, "'--' is not expected here"},
      {{""}, "'' is not expected here"},
      {{"--batch"}, "--batch needs a value"},
      {{"--batch="}, "--batch needs a value"},
      {{"--batch", "--steps", "3"}, "'3' is not expected here"},  // --steps is taken for the value
      {{"--resume"}, "--resume needs a value"},
      {{"--config"}, "--config needs a value"},
      {{"--batch", "1", "--batch", "2"}, "--batch is given 2 times"},
      {{"--batch", "1", "--batch=1", "--batch", "1"}, "--batch is given 3 times"},
      {{"--config", "a", "--config", "b"}, "--config is given 2 times"},
      {{"--no-skips", "--no-skips"}, "--no-skips is given 2 times"},
      {{"--no-skips", "true"}, "'true' is not expected here"},
      {{"--skips"}, "'--skips' is not expected here"},
      {{"--batch", "1", "--batch", "2", "--bogus"}, "'--bogus' is not expected here"},
  }));
  CHECK(usage_error(words) == message + " (see --help)");
}

TEST_CASE("help and version answer and give no options", "[train]") {
  const std::string help = parse({"--help"}).answer.value();
  for (const TrainOption& option : train_option_table())
    CHECK_THAT(help, Catch::Contains("--" + option.name + (option.is_flag() ? "" : " ")));
  CHECK_THAT(help, Catch::Contains("--config "));
  CHECK_THAT(parse({"--version"}).answer.value(), Catch::Contains("."));
}

TEST_CASE("errors of a config file name file, key and value", "[train]") {
  const auto [config, message] = GENERATE(table<std::string, std::string>({
      {R"({"btach": 3})",
       "c.json: key 'btach' with value 3 is unknown: expected names of options as in --help"},
      {R"({"batch": "3"})", "c.json: key 'batch' is \"3\", expected an integer"},
      {R"({"batch": 3.0})", "c.json: key 'batch' is 3.0, expected an integer"},
      {R"({"batch": null})", "c.json: key 'batch' is null, expected an integer"},
      {R"({"batch": 99999999999999999999999})",
       "c.json: key 'batch' is 9.999999999999999e+22, expected an integer"},
      {R"({"batch": 0})", "c.json: key 'batch' is '0', expected an integer from 1 to 65536"},
      {R"({"lr": true})", "c.json: key 'lr' is true, expected a number"},
      {R"({"data": ["a"]})", "c.json: key 'data' is an array, expected a string"},
      {R"({"no-skips": 1})", "c.json: key 'no-skips' is 1, expected true or false"},
      {R"({"no-skips": "true"})", "c.json: key 'no-skips' is \"true\", expected true or false"},
      {R"({"norm": true})", "c.json: key 'norm' is true, expected a string"},
      {R"({"down": "pool"})", "c.json: key 'down' is 'pool', expected rearrange, conv, max or avg"},
      {R"({"batch": 3, "batch": 4})", "c.json: key 'batch' comes twice"},
  }));
  CHECK(usage_error({}, config) == message);
}

TEST_CASE("a config that is no JSON object is an input error that names the file", "[train]") {
  const std::string key = "syntax error while parsing object key - ",
                    value = "syntax error while parsing value - ";
  const auto [config, message] = GENERATE_COPY(table<std::string, std::string>({
      {"[]", "expected a JSON object"},
      {"3", "expected a JSON object"},
      {"", "parse error at line 1, column 1: " + value +
               "unexpected end of input; expected '[', '{', or a literal"},
      {"{", "parse error at line 1, column 2: " + key +
                "unexpected end of input; expected string literal"},
      {"{\"batch\": 3,}",
       "parse error at line 1, column 13: " + key + "unexpected '}'; expected string literal"},
      {"{\n\"batch\" 3}",
       "parse error at line 2, column 9: syntax error while parsing object "
       "separator - unexpected number literal; expected ':'"},
      {"{\"batch\": 3} x", "parse error at line 1, column 14: " + value +
                               "invalid literal; last read: '3} x'; expected end of input"},
      {"{\"lr\": 1e400}", "number overflow parsing '1e400'"},
      {"\xff", "parse error at line 1, column 1: " + value + "invalid literal; last read: '\xff'"},
  }));
  CAPTURE(config);
  const auto parse = [&config = config] { parse_config(config, "c.json"); };
  CHECK(message_of<InputError>(parse) == "c.json: " + message);
}

TEST_CASE("a config file that cannot be read is an input error", "[train]") {
  TempDir dir;
  const auto error = [](const std::filesystem::path& path) {
    return message_of<InputError>([&] { read_config(path); });
  };
  CHECK(error("/no/such.json") == "cannot read /no/such.json: No such file or directory");
  CHECK(error(dir.path()) == "cannot read " + dir.path().string() + ": Is a directory");
  write_text(dir / "c.json", std::string((1 << 20) + 1, ' '));
  CHECK(error(dir / "c.json") == "cannot read " + (dir / "c.json").string() +
                                     ": it is 1048577 bytes long, at most 1048576 are expected");
  write_text(dir / "deep.json", std::string(1 << 20, '['));
  CHECK_THAT(error(dir / "deep.json"),
             Catch::StartsWith((dir / "deep.json").string() + ": parse error at line 1, column "));
}

TEST_CASE("what a config file nests is named, not printed", "[train]") {
  const std::string deep = std::string(400000, '[') + std::string(400000, ']'), text(100, 'x'),
                    start = "c.json: key 'batch' is ";
  const auto error = [](const std::string& value) {
    return message_of<UsageError>([&] { parse_config("{\"batch\": " + value + "}", "c.json"); });
  };
  CHECK(error(deep) == start + "an array, expected an integer");
  CHECK(error(R"({"a": 1})") == start + "an object, expected an integer");
  CHECK(error('"' + text + '"') == start + '"' + text.substr(0, 79) + "..., expected an integer");
  CHECK(message_of<UsageError>([&] { parse_config("{\"x\": " + deep + "}", "c.json"); }) ==
        "c.json: key 'x' with value an array is unknown: expected names of options as in --help");
}

TEST_CASE("files are kept as absolute paths that mean what they meant", "[train]") {
  const auto data = [](const std::string& text) { return options_of({"--data", text}).data; };
  const std::string here = std::filesystem::current_path().string();
  CHECK(data("images") == here + "/images");
  CHECK(data("./a//b/./") == here + "/a/b");
  const TempDir dir;
  const std::string folder = dir.path().string();
  for (const char* name : {"there", "there/deep", "there/b", "b"})
    std::filesystem::create_directory(dir / name);
  CHECK(data(folder + "/there/../b/") == folder + "/b");
  std::filesystem::create_symlink("there/deep", dir / "link");
  CHECK(data(folder + "/link/../b") == folder + "/link/../b");  // which is there/b
  CHECK(data("auto") == "auto");
}

TEST_CASE("a resumed run keeps its options, but for its length and its rhythm", "[train]") {
  const GivenOptions saved =
      parse_config(R"({"batch": 5, "steps": 9, "threads": 2, "lr": 0.001})", "c.json");
  const auto resumed = [&](const Words& words) {
    return resumed_options(saved, parse(words).given, "runs/a");
  };
  CHECK(resumed({}).batch == 5);
  CHECK(resumed({}).steps == 9);
  const TrainOptions changed = resumed({"--steps", "20", "--threads", "1", "--checkpoint-every",
                                        "3", "--eval-every", "4", "--log-every", "6"});
  CHECK(changed.steps == 20);
  CHECK(changed.threads == 1);
  CHECK(changed.checkpoint_every == 3);
  CHECK(changed.eval_every == 4);
  CHECK(changed.log_every == 6);
  CHECK(total_steps(resumed({"--epochs", "2"}), 100) == 40);
  CHECK(resumed({"--batch", "5", "--lr", "1e-3", "--device", "auto", "--out", "runs/a"}).batch ==
        5);
  const GivenOptions in_bf16 = parse_config(R"({"precision": "bf16"})", "c.json");
  CHECK(resumed_options(in_bf16, parse({"--precision", "auto"}).given, "runs/a").precision ==
        "bf16");
  // The same by another name.
  const TempDir dir;
  const std::string folder = dir.path().string();
  CHECK(resumed_options(saved, parse({"--out", folder + "/"}).given, folder).out == folder);
  std::filesystem::create_directory_symlink(folder, folder + "/link");
  const GivenOptions of_folder = parse_config("{\"data\": \"" + folder + "\"}", "c.json");
  CHECK(resumed_options(of_folder, parse({"--data", folder + "/link"}).given, "runs/a").data ==
        folder + "/link");
}

TEST_CASE("every option that may not change on resume is refused with both values", "[train]") {
  const GivenOptions saved = parse_config(R"({"base": 48, "seed": 5})", "c.json");
  for (const TrainOption& option : train_option_table()) {
    if (option.resume == TrainOption::Resume::MayChange || option.name == "resume") continue;
    INFO(option.name);
    const std::string value = other_value(option);
    const std::string message = message_of<UsageError>(
        [&] { resumed_options(saved, parse(words_of(option)).given, "runs/a"); });
    CHECK_THAT(message, Catch::StartsWith("--" + option.name + " is " + value +
                                          ", but the run in "
                                          "runs/a has "));
  }
}

TEST_CASE("fusion is a setting where it is off", "[train]") {
  CHECK(tiny_options("1", {{"fusion", "off"}}).settings().at("fusion") == "off");
  CHECK_FALSE(tiny_options("1").settings().contains("fusion"));
}

TEST_CASE("steps win over epochs, and keys within values are nobody's", "[train]") {
  const TrainOptions both = tiny_options("1", {{"steps", "9"}, {"epochs", "2"}});
  CHECK_FALSE(both.epochs);
  CHECK(config_text(both).find("epochs") == std::string::npos);
  CHECK_THAT(
      message_of<UsageError>([] { parse_config(R"({"data": {"x": 1, "x": 2}})", "c.json"); }),
      Catch::Contains("key 'data' is an object, expected a string"));
}
