#pragma once

#include "tokenizer/tokenizer.h"

namespace rwkvx::test {

/// A World tokenizer of all bytes and a few pieces of the texts of the tasks, so that tokens are of different
/// lengths, span words, and numbers take fewer tokens than digits.
inline std::shared_ptr<const Tokenizer> small_world_tokenizer() {
  std::vector<std::string> tokens{""};
  for (int c = 0; c < 256; ++c) tokens.emplace_back(1, static_cast<char>(c));
  for (const char* piece :
       {" the",   "The", " pass", " key", " is", " grass", ". The", "again", " number", "special",
        " magic", "12",  "34",    "56",   "78",  "90",     "00",    "11",    "\n\n",    " again."}) {
    tokens.emplace_back(piece);
  }
  return make_world_tokenizer(tokens);
}

}  // namespace rwkvx::test
