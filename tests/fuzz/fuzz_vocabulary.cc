// World vocabulary files: any bytes are either refused with an Error or give tokens that survive GGUF's
// escapes and, beside the single bytes, make a tokenizer that takes the file itself there and back.
#include <cstdlib>
#include <set>
#include <string>

#include "base/error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/world_vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  const std::string text(reinterpret_cast<const char*>(data), size);
  std::set<std::string> strings;
  for (int i = 0; i < 256; ++i) strings.emplace(1, static_cast<char>(i));
  try {
    for (const std::string& token : parse_world_vocabulary(text, "file")) {
      if (unescape_python_bytes(escape_python_bytes(token)) != token) std::abort();
      strings.insert(token);
    }
  } catch (const Error&) {
    return 0;
  }
  const auto tokenizer = make_world_tokenizer({strings.begin(), strings.end()});
  if (tokenizer->decode(tokenizer->encode(text)) != text) std::abort();
  return 0;
}
