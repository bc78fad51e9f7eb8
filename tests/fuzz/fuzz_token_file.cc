// Token files: the first byte says where the input divides into index and data. Any bytes are either refused
// with an Error or give documents that can all be read.
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "fuzz_file.h"
#include "training/token_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  if (size == 0) return 0;
  const size_t index_size = std::min<size_t>(size - 1, 34 + size_t{data[0]});
  static const Path folder = [] {
    Path path = std::filesystem::temp_directory_path() / ("fuzz_token_file-" + std::to_string(::getpid()));
    std::filesystem::create_directories(path);
    return path;
  }();
  const FuzzFile index(data + 1, index_size), bytes(data + 1 + index_size, size - 1 - index_size);
  for (const auto& [name, file] : {std::pair("x.idx", &index), std::pair("x.bin", &bytes)}) {
    std::filesystem::remove(folder / name);
    std::filesystem::create_symlink(file->path(), folder / name);
  }
  try {
    const TokenFile file = TokenFile::open(folder / "x");
    for (uint64_t i = 0; i < file.documents(); ++i) {
      const TokenFile::Range range = file.document(i);
      std::vector<TokenId> tokens(range.size);
      file.read(range.begin, tokens);
    }
  } catch (const Error&) {
  }
  return 0;
}
