#include "training/token_file.h"

#include <cstring>

#include "base/assert.h"
#include "base/checked.h"
#include "base/error.h"

namespace rwkvx {
namespace {

constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr uint64_t kVersion = 1;
constexpr std::string_view kMarksMagic{"RWKVXTW\1", 8};
constexpr uint64_t kHeaderBytes = 34;  // magic, version, type, number of sequences, number of document marks

/// Numbers of the index stand at odd addresses.
template <typename T>
T load(std::span<const std::byte> bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

bool known(uint8_t code) { return (code >= 1 && code <= 5) || code == 8; }

Path without_ending(const Path& name) {
  const Path ending = name.extension();
  return ending == ".bin" || ending == ".idx" || ending == ".weights" ? Path(name).replace_extension() : name;
}

Path with_ending(const Path& name, const char* ending) {
  Path path = without_ending(name);
  path += ending;
  return path;
}

template <typename T>
void convert_to(std::span<const TokenId> tokens, std::string& out) {
  out.resize(tokens.size() * sizeof(T));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const T value = static_cast<T>(tokens[i]);
    RWKVX_ASSERT(static_cast<int64_t>(value) == tokens[i]);
    std::memcpy(out.data() + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

std::string_view name(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return "u8";
    case TokenType::i8:
      return "i8";
    case TokenType::i16:
      return "i16";
    case TokenType::i32:
      return "i32";
    case TokenType::i64:
      return "i64";
    case TokenType::u16:
      return "u16";
  }
  return "?";
}

uint64_t bytes_of(TokenType type) {
  switch (type) {
    case TokenType::u8:
    case TokenType::i8:
      return 1;
    case TokenType::i16:
    case TokenType::u16:
      return 2;
    case TokenType::i32:
      return 4;
    case TokenType::i64:
      return 8;
  }
  return 1;
}

TokenType token_type_for(int64_t vocab) { return vocab <= 65536 ? TokenType::u16 : TokenType::i32; }

Path token_data_path(const Path& name) { return with_ending(name, ".bin"); }
Path token_index_path(const Path& name) { return with_ending(name, ".idx"); }
Path token_marks_path(const Path& name) { return with_ending(name, ".weights"); }

TokenFile TokenFile::open(const Path& name) {
  TokenFile file;
  file.index_ = MappedFile::open(token_index_path(name));
  file.data_ = MappedFile::open(token_data_path(name));
  const std::span<const std::byte> index = file.index_->bytes();
  const std::string shown = file.index_->path().string();
  if (index.size() < kHeaderBytes || std::memcmp(index.data(), kMagic.data(), kMagic.size()) != 0) {
    fail("{}: not an index of tokens: it does not begin with MMIDIDX; make one with rwkvx data prepare",
         shown);
  }
  if (const auto version = load<uint64_t>(index, 9); version != kVersion) {
    fail("{}: an index of version {}; rwkvx reads version {}", shown, version, kVersion);
  }
  const auto code = load<uint8_t>(index, 17);
  if (!known(code)) fail("{}: type code {} is not one of whole numbers; tokenize the text anew", shown, code);
  file.type_ = static_cast<TokenType>(code);
  file.documents_ = load<uint64_t>(index, 18);
  const auto marks = load<uint64_t>(index, 26);
  const auto lists = checked_mul(file.documents_, sizeof(int32_t) + sizeof(int64_t));
  const auto mark_bytes = checked_mul(marks, sizeof(int64_t));
  const auto body = lists && mark_bytes ? checked_add(*lists, *mark_bytes) : std::nullopt;
  if (!body || index.size() - kHeaderBytes != *body) {
    fail("{}: {} bytes, but {} sequences and {} document marks need {}; the file is cut or damaged", shown,
         index.size(), file.documents_, marks, body ? std::to_string(*body + kHeaderBytes) : "more");
  }
  const uint64_t width = bytes_of(file.type_), bytes = file.data_->bytes().size();
  if (bytes % width != 0) {
    fail("{}: {} bytes are no whole number of {} tokens; the file is cut or of another index", shown, bytes,
         rwkvx::name(file.type_));
  }
  file.tokens_ = bytes / width;
  uint64_t sum = 0;
  for (uint64_t i = 0; i < file.documents_; ++i) {
    const auto size = load<int32_t>(index, kHeaderBytes + 4 * i);
    const auto begin = load<int64_t>(index, kHeaderBytes + 4 * file.documents_ + 8 * i);
    if (size < 0 || begin < 0 || static_cast<uint64_t>(begin) % width != 0 ||
        !in_bounds(static_cast<uint64_t>(begin), static_cast<uint64_t>(size) * width, bytes)) {
      fail("{}: sequence {} ({} tokens from byte {}) is not inside the {} bytes of {}", shown, i, size, begin,
           bytes, file.data_->path().string());
    }
    sum += static_cast<uint64_t>(size);
  }
  if (sum != file.tokens_) {
    fail("{}: the index counts {} tokens, {} holds {}; the two do not belong together", shown, sum,
         file.data_->path().string(), file.tokens_);
  }
  if (std::filesystem::exists(token_marks_path(name))) {
    file.marks_ = MappedFile::open(token_marks_path(name));
    const std::span<const std::byte> list = file.marks_->bytes();
    const std::string path = file.marks_->path().string();
    if (list.size() < kMarksMagic.size() ||
        std::memcmp(list.data(), kMarksMagic.data(), kMarksMagic.size()) != 0) {
      fail("{}: no weights of tokens; remove it, or make it anew with rwkvx data prepare", path);
    }
    if ((list.size() - kMarksMagic.size()) % sizeof(uint16_t) != 0 ||
        (list.size() - kMarksMagic.size()) / sizeof(uint16_t) != file.tokens_) {
      fail("{}: {} bytes are no marks of the {} tokens of {}; the file is cut or belongs to another one",
           path, list.size(), file.tokens_, file.data_->path().string());
    }
  }
  return file;
}

void TokenFile::read_marks(uint64_t begin, std::span<TokenMark> out) const {
  RWKVX_ASSERT(marked() && in_bounds(begin, out.size(), tokens_));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = unpacked(load<uint16_t>(marks_->bytes(), kMarksMagic.size() + (begin + i) * sizeof(uint16_t)));
    if (!(out[i].weight <= kMostTokenWeight))
      fail("{}: the weight of token {} is no number", marks_->path().string(), begin + i);
  }
}

TokenFile::Range TokenFile::document(uint64_t index) const {
  RWKVX_ASSERT(index < documents_);
  const auto size = load<int32_t>(index_->bytes(), kHeaderBytes + 4 * index);
  const auto begin = load<int64_t>(index_->bytes(), kHeaderBytes + 4 * documents_ + 8 * index);
  return {static_cast<uint64_t>(begin) / bytes_of(type_), static_cast<uint64_t>(size)};
}

void TokenFile::read(uint64_t begin, std::span<TokenId> out, int64_t vocab) const {
  RWKVX_ASSERT(in_bounds(begin, out.size(), tokens_));
  const auto copy = [&]<typename T>(T) {
    const std::byte* from = data_->bytes().data() + begin * sizeof(T);
    for (size_t i = 0; i < out.size(); ++i) {
      T value;
      std::memcpy(&value, from + i * sizeof(T), sizeof(T));
      const auto id = static_cast<int64_t>(value);
      if (id < 0 || id >= vocab) {
        fail(
            "{}: token {} at position {} is outside the vocabulary of {}; the data were made for another one",
            path().string(), id, begin + i, vocab);
      }
      out[i] = static_cast<TokenId>(id);
    }
  };
  switch (type_) {
    case TokenType::u8:
      return copy(uint8_t{});
    case TokenType::i8:
      return copy(int8_t{});
    case TokenType::i16:
      return copy(int16_t{});
    case TokenType::i32:
      return copy(int32_t{});
    case TokenType::i64:
      return copy(int64_t{});
    case TokenType::u16:
      return copy(uint16_t{});
  }
}

TokenFileWriter::TokenFileWriter(const Path& name, TokenType type)
    : index_path_(token_index_path(name)),
      type_(type),
      data_(token_data_path(name)),
      index_(index_path_),
      marks_path_(token_marks_path(name)) {}

void TokenFileWriter::append(std::span<const TokenId> tokens, std::span<const TokenMark> marks) {
  RWKVX_ASSERT(marks.size() == tokens.size());
  if (!marks_) {
    marks_.emplace(marks_path_);
    marks_->write(kMarksMagic);
  }
  fill_marks();
  append(tokens);
  for (const TokenMark& mark : marks) {
    const uint16_t bits = packed(mark);
    marks_->write(std::as_bytes(std::span(&bits, 1)));
  }
  marked_ += marks.size();
}

/// Marks of the tokens that came without.
void TokenFileWriter::fill_marks() {
  const uint16_t plain = packed({});
  for (const uint64_t all = tokens_ + open_; marked_ < all; ++marked_)
    marks_->write(std::as_bytes(std::span(&plain, 1)));
}

void TokenFileWriter::append(std::span<const TokenId> tokens) {
  switch (type_) {
    case TokenType::u8:
      convert_to<uint8_t>(tokens, block_);
      break;
    case TokenType::i8:
      convert_to<int8_t>(tokens, block_);
      break;
    case TokenType::i16:
      convert_to<int16_t>(tokens, block_);
      break;
    case TokenType::i32:
      convert_to<int32_t>(tokens, block_);
      break;
    case TokenType::i64:
      convert_to<int64_t>(tokens, block_);
      break;
    case TokenType::u16:
      convert_to<uint16_t>(tokens, block_);
      break;
  }
  data_.write(block_);
  open_ += tokens.size();
}

void TokenFileWriter::end_document() {
  if (open_ == 0) return;
  if (open_ > INT32_MAX) {
    fail("{}: document {} has {} tokens; an index can say at most {}: split the text into documents",
         index_path_.string(), sizes_.size(), open_, INT32_MAX);
  }
  sizes_.push_back(static_cast<int32_t>(open_));
  tokens_ += open_;
  open_ = 0;
}

void TokenFileWriter::commit() {
  end_document();
  const auto number = [&](auto value) { index_.write(std::as_bytes(std::span(&value, 1))); };
  index_.write(kMagic);
  number(kVersion);
  number(static_cast<uint8_t>(type_));
  number(uint64_t{sizes_.size()});
  number(uint64_t{sizes_.size() + 1});
  index_.write(std::as_bytes(std::span(sizes_)));
  int64_t address = 0;
  for (const int32_t size : sizes_) {
    number(address);
    address += int64_t{size} * static_cast<int64_t>(bytes_of(type_));
  }
  for (int64_t document = 0; document <= static_cast<int64_t>(sizes_.size()); ++document) number(document);
  if (marks_) {
    fill_marks();
    marks_->commit();
  } else {
    std::error_code ignored;
    std::filesystem::remove(marks_path_, ignored);
  }
  data_.commit();
  index_.commit();
}

}  // namespace rwkvx
