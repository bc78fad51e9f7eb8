#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

struct Document {
  std::string name;  ///< file, and line where it has several
  std::string text;
};

/// Documents of files: each line of .jsonl (its string "text") is one, other files are one each; of folders,
/// all files by name. Empty documents are left out. Errors name the file and the line.
std::vector<Document> read_documents(std::span<const Path> paths);

/// The document's tokens, at most `most` of them (0: all), with the end of a document before them where the
/// tokenizer has one.
std::vector<TokenId> tokens_of(const Document& document, const Tokenizer& tokenizer, int64_t most);

}  // namespace rwkvx
