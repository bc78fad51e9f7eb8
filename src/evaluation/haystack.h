#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// The text that needles are hidden in, as tokens. It begins anew where it ends before enough is read.
struct Haystack {
  std::string name;  ///< "noise", or the files' names
  std::string text;  ///< once
  std::vector<TokenId> tokens;
  /// sentence_ends[i]: a sentence ends with token i.
  std::vector<bool> sentence_ends;

  /// Errors: nothing in the text.
  Haystack(std::string name, std::string text, int64_t tokens_needed, const Tokenizer& tokenizer);

  /// The last place at or before `place` that a sentence ends at; `place` itself when none is near. A place
  /// is the number of tokens before it.
  int64_t sentence_end_before(int64_t place) const;
};

/// Files as they are named, and the files of folders by name. Errors: a folder that cannot be read or has no
/// files.
std::vector<Path> text_files(std::span<const Path> paths);

/// The text of all text_files(), with blank lines between them. Errors: one that cannot be read.
std::string read_texts(std::span<const Path> paths);

}  // namespace rwkvx
