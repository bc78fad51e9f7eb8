// Any bytes as a model file: opened, and its weights loaded when it is one.
#include "base/error.h"
#include "base/log.h"
#include "fuzz_file.h"
#include "model/weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  static const auto ops = make_ops({"reference", Precision::f32, 1});
  set_log_level(LogLevel::off);
  const FuzzFile file(data, size);
  try {
    const LoadedWeights weights(open_checkpoint(file.path()), *ops);
    static_cast<void>(weights.fingerprint());
  } catch (const Error&) {
  }
  return 0;
}
