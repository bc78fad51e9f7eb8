#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "tokenizer/tokenizer.h"
#include "training/token_marks.h"

namespace rwkvx {

/// Element types of token files, by their codes in the index.
enum class TokenType : uint8_t { u8 = 1, i8 = 2, i16 = 3, i32 = 4, i64 = 5, u16 = 8 };
std::string_view name(TokenType type);
uint64_t bytes_of(TokenType type);

/// Tokenized text as RWKV-LM and Megatron-LM keep it (MMapIndexedDataset): NAME.bin holds the tokens of all
/// documents, one after another; NAME.idx says where each begins. Our own NAME.weights, where it is there,
/// has a mark for each token. docs/formats.md has the layout.
class TokenFile {
 public:
  /// `name` is the common part of the two names; with .bin or .idx behind it is understood too.
  /// Errors: a missing or damaged file, an index that does not fit the data, a type that holds no tokens.
  static TokenFile open(const Path& name);

  const Path& path() const { return data_->path(); }
  TokenType type() const { return type_; }
  uint64_t tokens() const { return tokens_; }
  uint64_t documents() const { return documents_; }

  /// Tokens of the stream of all documents, in the order of the file.
  struct Range {
    uint64_t begin = 0, size = 0;
  };
  Range document(uint64_t index) const;

  /// Tokens begin .. begin + out.size() of the stream, which must be inside it. Errors: a token that is
  /// negative or not below `vocab`, with its place.
  void read(uint64_t begin, std::span<TokenId> out, int64_t vocab = INT32_MAX) const;

  bool marked() const { return marks_ != nullptr; }
  /// Marks of the tokens begin .. begin + out.size(). Errors: a weight that is no number, with its place.
  void read_marks(uint64_t begin, std::span<TokenMark> out) const;

 private:
  std::shared_ptr<const MappedFile> index_, data_, marks_;
  TokenType type_ = TokenType::u16;
  uint64_t tokens_ = 0, documents_ = 0;
};

/// Writes a token file; both parts appear under their names at commit() and not before. The lengths of the
/// documents are kept in memory until then, 4 bytes for each.
class TokenFileWriter {
 public:
  TokenFileWriter(const Path& name, TokenType type);

  /// Adds to the document that is open. Tokens must fit the type.
  void append(std::span<const TokenId> tokens);
  /// With marks of as many tokens. Those of tokens without are 1 and no reset. Without any, there will be no
  /// NAME.weights, and one that is there is removed.
  void append(std::span<const TokenId> tokens, std::span<const TokenMark> marks);
  /// Documents without tokens are left out. Errors: more than 2^31 - 1 tokens, which an index cannot say.
  void end_document();
  void commit();

  uint64_t tokens() const { return tokens_; }
  uint64_t documents() const { return sizes_.size(); }

 private:
  void fill_marks();
  Path index_path_;
  TokenType type_;
  AtomicFile data_, index_;
  Path marks_path_;
  std::optional<AtomicFile> marks_;
  uint64_t marked_ = 0;  // tokens that have their mark in the file
  std::vector<int32_t> sizes_;
  uint64_t open_ = 0, tokens_ = 0;
  std::string block_;
};

/// The smallest type that RWKV-LM users expect: u16 up to 65,536 tokens, i32 beyond.
TokenType token_type_for(int64_t vocab);

/// NAME.bin, NAME.idx and NAME.weights of a name given with or without one of these endings.
Path token_data_path(const Path& name);
Path token_index_path(const Path& name);
Path token_marks_path(const Path& name);

}  // namespace rwkvx
