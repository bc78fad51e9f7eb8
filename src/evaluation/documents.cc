#include "evaluation/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "evaluation/haystack.h"

namespace rwkvx {
namespace {

void add_lines(const Path& file, std::vector<Document>& out) {
  const std::string bytes = read_file(file);
  size_t number = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', at), bytes.size());
    const std::string_view text = std::string_view(bytes).substr(at, end - at);
    at = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == text.npos) continue;
    const nlohmann::json line = nlohmann::json::parse(text, nullptr, false);
    if (!line.is_object() || !line.contains("text") || !line["text"].is_string()) {
      fail("{}: line {} is not a JSON object with a string \"text\"", file.string(), number);
    }
    out.push_back({fmt::format("{}:{}", file.filename().string(), number), line["text"].get<std::string>()});
  }
}

}  // namespace

std::vector<Document> read_documents(std::span<const Path> paths) {
  std::vector<Document> out;
  for (const Path& file : text_files(paths)) {
    if (file.extension() == ".jsonl") {
      add_lines(file, out);
    } else {
      out.push_back({file.filename().string(), read_file(file)});
    }
  }
  std::erase_if(out, [](const Document& d) { return d.text.empty(); });
  return out;
}

std::vector<TokenId> tokens_of(const Document& document, const Tokenizer& tokenizer, int64_t most) {
  std::vector<TokenId> tokens;
  if (tokenizer.end_of_document() >= 0) tokens.push_back(tokenizer.end_of_document());
  const size_t begin = tokens.size();
  tokenizer.encode(document.text, tokens);
  if (most > 0) tokens.resize(std::min(tokens.size(), begin + static_cast<size_t>(most)));
  return tokens;
}

}  // namespace rwkvx
