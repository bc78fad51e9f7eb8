// Mixtures: any bytes are either refused with an Error or make samples.
#include <string>

#include "base/error.h"
#include "training/mixture/mixture.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  static const auto tokenizer = make_byte_tokenizer();
  const SourceSetup setup{*tokenizer, 256, 0,
                          [](const std::string&) -> TokenFile { fail("there are no files here"); }};
  try {
    const auto mixture = std::make_shared<const Mixture>(
        std::string(reinterpret_cast<const char*>(data), size), "fuzz.json", setup);
    for (const int64_t context : {64, 700}) {
      TrainBatch batch;
      const auto samples = make_mixture_data(mixture, {context, 0, 256, nullptr, {}});
      for (uint64_t i = 0; i < 3; ++i) samples->add(i, batch);
    }
  } catch (const Error&) {
  }
  return 0;
}
