// Config files of train, and the options made of them.
#include "apps/train_options.h"
#include "tests/fuzz/target.h"

using namespace tessera;

// The machine of this program has none: nothing of CUDA is linked.
bool tessera::has_gpu() { return false; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return fuzz::try_input([&] {
    const std::string text(reinterpret_cast<const char*>(data), size);
    const TrainOptions options = make_options(parse_config(text, "input"));
    total_steps(options, 1000);
    const std::string saved = config_text(options);
    ENSURE(config_text(make_options(parse_config(saved, "saved"))) == saved, saved);
  });
}
