#include "evaluation/haystack.h"

#include <algorithm>

#include "base/error.h"
#include "retrieval/sentence.h"

namespace rwkvx {
namespace {

/// How far a needle may move to stand between two sentences, in tokens.
constexpr int64_t kFarthest = 2048;

}  // namespace

Haystack::Haystack(std::string name_, std::string text_, int64_t tokens_needed, const Tokenizer& tokenizer)
    : name(std::move(name_)), text(std::move(text_)) {
  if (text.empty()) fail("{}: the haystack is empty; give files with text in them (--haystack)", name);
  const auto needed = static_cast<size_t>(tokens_needed);
  // Repeated as text and not as tokens: tokens may span the seam.
  std::string repeated = text;
  for (tokens = tokenizer.encode(repeated); tokens.size() < needed; tokens = tokenizer.encode(repeated)) {
    const double share = static_cast<double>(tokens.size()) / static_cast<double>(repeated.size());
    const auto bytes = static_cast<size_t>(static_cast<double>(needed) / share * 1.02) + 1;
    while (repeated.size() < bytes) repeated += text;
  }
  tokens.resize(needed);
  sentence_ends.resize(needed);
  for (size_t i = 0; i < needed; ++i) sentence_ends[i] = ends_sentence(tokenizer.token_bytes(tokens[i]));
}

int64_t Haystack::sentence_end_before(int64_t place) const {
  for (int64_t p = place; p > std::max<int64_t>(0, place - kFarthest); --p) {
    if (sentence_ends[static_cast<size_t>(p - 1)]) return p;
  }
  return place <= kFarthest ? 0 : place;
}

std::vector<Path> text_files(std::span<const Path> paths) {
  std::vector<Path> out;
  for (const Path& path : paths) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      out.push_back(path);
      continue;
    }
    std::vector<Path> files;
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) files.push_back(entry.path());
    }
    if (error) fail("{}: the folder cannot be read: {}", path.string(), error.message());
    if (files.empty()) fail("{}: there are no files in this folder", path.string());
    std::sort(files.begin(), files.end());
    out.insert(out.end(), files.begin(), files.end());
  }
  return out;
}

std::string read_texts(std::span<const Path> paths) {
  std::string out;
  for (const Path& file : text_files(paths)) {
    std::string text = read_file(file);
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
    out += text;
    out += "\n\n";
  }
  return out.find_first_not_of('\n') == out.npos ? "" : out;
}

}  // namespace rwkvx
