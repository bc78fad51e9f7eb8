#include "training/pack.h"

#include <algorithm>

#include "base/error.h"

namespace rwkvx {

PackReport pack_tokens(const TokenFile& input, const Path& output, const PackOptions& options,
                       const Progress& progress) {
  if (options.length < 2 || options.length > INT32_MAX)
    fail("sequences must have from 2 to {} tokens, not {}", INT32_MAX, options.length);
  PackReport report;
  TokenFileWriter writer(output, input.type());
  std::vector<TokenId> sequence(options.length), joined;
  std::vector<TokenMark> marks, joined_marks;
  joined.reserve(options.length);
  const auto write = [&](std::vector<TokenId>& tokens, std::vector<TokenMark>& its_marks) {
    if (input.marked()) {
      writer.append(tokens, its_marks);
    } else {
      writer.append(tokens);
    }
    writer.end_document();
  };
  const auto join = [&](uint64_t begin, uint64_t size) {
    while (size > 0) {
      const uint64_t part = std::min(size, options.length - joined.size());
      const size_t old = joined.size();
      joined.resize(old + part);
      input.read(begin, std::span(joined).subspan(old));
      if (input.marked()) {
        joined_marks.resize(old + part);
        input.read_marks(begin, std::span(joined_marks).subspan(old));
      }
      begin += part;
      size -= part;
      if (joined.size() < options.length) return;
      write(joined, joined_marks);
      ++report.short_sequences;
      joined.clear();
    }
  };
  uint64_t done = 0;
  for (uint64_t i = 0; i < input.documents(); ++i) {
    auto [begin, size] = input.document(i);
    ++report.documents;
    done += size;
    if (size < options.shortest) {
      report.left_out += size;
      continue;
    }
    for (; size >= options.length; begin += options.length, size -= options.length) {
      input.read(begin, sequence);
      if (input.marked()) {
        marks.resize(options.length);
        input.read_marks(begin, marks);
      }
      write(sequence, marks);
      ++report.long_sequences;
    }
    if (options.long_only) {
      report.left_out += size;
    } else {
      join(begin, size);
    }
    if (progress) progress(done, input.tokens());
  }
  report.left_out += joined.size();
  if (writer.documents() == 0) {
    fail("{}: its {} tokens fill no sequence of {}; choose a smaller --length", input.path().string(),
         input.tokens(), options.length);
  }
  writer.commit();
  return report;
}

}  // namespace rwkvx
