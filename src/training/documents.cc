#include "training/documents.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/assert.h"
#include "base/error.h"

namespace rwkvx {
namespace {

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

size_t pair_of(char first, char second) {
  return static_cast<size_t>(static_cast<unsigned char>(first)) << 8 | static_cast<unsigned char>(second);
}

/// Takes one string out of an object and checks the rest without building it.
class FieldHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit FieldHandler(const std::string& field) : field_(field) {}
  std::string text, error;
  bool found = false, is_object = false;

  bool null() override { return other("null"); }
  bool boolean(bool) override { return other("a truth value"); }
  bool number_integer(number_integer_t) override { return other("a number"); }
  bool number_unsigned(number_unsigned_t) override { return other("a number"); }
  bool number_float(number_float_t, const string_t&) override { return other("a number"); }
  bool binary(binary_t&) override { return other("binary data"); }
  bool string(string_t& value) override {
    if (!wanted_) return other("text");
    wanted_ = false;
    found = true;
    text = std::move(value);
    return true;
  }
  bool start_object(size_t) override {
    if (depth_ == 0) is_object = true;
    return other("an object") && deeper();
  }
  bool start_array(size_t) override { return other("a list") && deeper(); }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool key(string_t& value) override {
    wanted_ = depth_ == 1 && value == field_;
    if (wanted_ && found) {
      error = fmt::format("\"{}\" is there twice", field_);
      return false;
    }
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    error = fmt::format("no valid JSON from its byte {} on", position);
    return false;
  }

 private:
  bool deeper() {
    // The parser itself does not recurse, but nothing that deep is a document.
    if (++depth_ <= 1000) return true;
    error = "JSON more than 1000 levels deep";
    return false;
  }
  bool other(const char* what) {
    if (depth_ == 0 && !is_object) {
      error = fmt::format("{} instead of an object", what);
      return false;
    }
    if (!wanted_) return true;
    error = fmt::format("\"{}\" is {} instead of text", field_, what);
    return false;
  }

  std::string field_;
  int depth_ = 0;
  bool wanted_ = false;
};

/// Parts of one document, cut where tokens end.
void cut_document(std::string_view document, const CutTable& cuts, size_t piece_bytes,
                  const std::function<void(const TextPiece&)>& take) {
  while (document.size() > piece_bytes) {
    const size_t end = cuts.next_cut(document, piece_bytes);
    if (end == document.size()) break;
    take({document.substr(0, end), false, false});
    document.remove_prefix(end);
  }
  take({document, false, true});
}

}  // namespace

TextFormat format_of(const Path& path, const TextOptions& options) {
  if (options.format != TextFormat::by_name) return options.format;
  const Path ending = path.extension();
  return ending == ".jsonl" || ending == ".ndjson" || ending == ".json" ? TextFormat::jsonl
                                                                        : TextFormat::text;
}

CutTable::CutTable(const Tokenizer& tokenizer) {
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    for (size_t i = 1; i < bytes.size(); ++i) joined_.set(pair_of(bytes[i - 1], bytes[i]));
  }
}

size_t CutTable::next_cut(std::string_view text, size_t from) const {
  RWKVX_ASSERT(from >= 1);
  for (size_t i = from; i < text.size(); ++i) {
    if (!joined_.test(pair_of(text[i - 1], text[i]))) return i;
  }
  return text.size();
}

void for_each_piece(const MappedFile& file, const TextOptions& options, const CutTable& cuts,
                    size_t piece_bytes, const std::function<void(const TextPiece&)>& take) {
  std::string_view rest = text_of(file);
  if (format_of(file.path(), options) == TextFormat::jsonl) {
    while (!rest.empty()) {
      size_t end = rest.size() <= piece_bytes ? rest.npos : rest.find('\n', piece_bytes);
      end = end == rest.npos ? rest.size() : end + 1;
      take({rest.substr(0, end), true, true});
      rest.remove_prefix(end);
    }
    return;
  }
  while (!rest.empty()) {
    const size_t end = options.separator.empty() ? rest.npos : rest.find(options.separator);
    const std::string_view document = rest.substr(0, end);
    if (!document.empty()) cut_document(document, cuts, piece_bytes, take);
    if (end == rest.npos) return;
    rest.remove_prefix(end + options.separator.size());
  }
}

std::string text_of_json(std::string_view line, const std::string& field) {
  FieldHandler handler(field);
  const bool fine = nlohmann::json::sax_parse(line.begin(), line.end(), &handler);
  if (!handler.error.empty()) fail("{}", handler.error);
  if (!fine) fail("no valid JSON");
  if (!handler.found) fail("the object has no \"{}\" (--field names another one)", printable(field));
  return std::move(handler.text);
}

uint64_t line_number(const MappedFile& file, const char* at) {
  const std::string_view text = text_of(file);
  return 1 + static_cast<uint64_t>(std::count(text.data(), at, '\n'));
}

}  // namespace rwkvx
