#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/file.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// How text files are read.
enum class TextFormat {
  by_name,  ///< .jsonl, .ndjson and .json are JSON lines, everything else is plain text
  jsonl,    ///< one JSON object in each line, a document in each object
  text,     ///< the whole file is one document, or its parts between separators
};

struct TextOptions {
  TextFormat format = TextFormat::by_name;
  std::string field = "text";  ///< of the JSON objects
  std::string separator;       ///< between the documents of a text file; empty: none
};
TextFormat format_of(const Path& path, const TextOptions& options);

/// Where a text can be cut without changing its tokens: between two bytes that stand side by side in no
/// token of the vocabulary. A tokenizer that takes the longest match from left to right always has a boundary
/// there, so that the parts of a long document can be tokenized at the same time.
class CutTable {
 public:
  explicit CutTable(const Tokenizer& tokenizer);
  /// The first place to cut at or behind `from`; text.size() when there is none. from >= 1.
  size_t next_cut(std::string_view text, size_t from) const;

 private:
  std::bitset<65536> joined_;  // by first · 256 + second
};

/// Some whole lines of a JSON-lines file, or a part of a document of a text file.
struct TextPiece {
  std::string_view text;
  bool json_lines = false;
  bool ends_document = true;  ///< of a text file: the document is over behind it
};

/// Calls `take` with the pieces of a mapped file in order, each of about `piece_bytes`.
void for_each_piece(const MappedFile& file, const TextOptions& options, const CutTable& cuts,
                    size_t piece_bytes, const std::function<void(const TextPiece&)>& take);

/// The string in `field` of a JSON object in one line. Errors say what is wrong, without the place.
std::string text_of_json(std::string_view line, const std::string& field);

/// The number of the line that `at` points into, from 1, for messages.
uint64_t line_number(const MappedFile& file, const char* at);

}  // namespace rwkvx
