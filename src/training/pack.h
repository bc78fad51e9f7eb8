#pragma once

#include <cstdint>

#include "base/progress.h"
#include "training/token_file.h"

namespace rwkvx {

struct PackOptions {
  uint64_t length = 65536;  ///< tokens of every sequence that is written
  bool long_only = false;   ///< leave out what does not fill a sequence by itself
  uint64_t shortest = 0;    ///< leave out documents with fewer tokens
};

struct PackReport {
  uint64_t documents = 0;        ///< read
  uint64_t long_sequences = 0;   ///< cut from documents of `length` tokens and more
  uint64_t short_sequences = 0;  ///< made of several documents
  uint64_t left_out = 0;         ///< tokens
};

/// Writes sequences of exactly `length` tokens, as ProLong (arXiv 2410.02660) trains on: documents that long
/// are cut into sequences of their own; shorter ones, and what is left of long ones, are joined one after
/// another, and the one that crosses the end of a sequence continues in the next. Their order stays that of
/// the documents; the order of training shuffles. Progress is in tokens.
/// Errors: no sequence can be filled.
PackReport pack_tokens(const TokenFile& input, const Path& output, const PackOptions& options,
                       const Progress& progress = {});

}  // namespace rwkvx
