#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"

namespace rwkvx {

struct Document {
  std::string name;  ///< file, and line where it has several
  std::string text;
};

/// Documents of files: each line of .jsonl (its string "text") is one, other files are one each; of folders,
/// all files by name. Empty documents are left out. Errors name the file and the line.
std::vector<Document> read_documents(std::span<const Path> paths);

}  // namespace rwkvx
