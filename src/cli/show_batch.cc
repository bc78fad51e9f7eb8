#include "cli/show_batch.h"

#include <algorithm>

#include "base/error.h"

namespace rwkvx::cli {
namespace {

/// Bytes of a stretch of tokens, made safe for a terminal; lines stay lines.
std::string readable(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const size_t line = std::min(bytes.find('\n'), bytes.size());
    out += printable(bytes.substr(0, line), SIZE_MAX);
    if (line < bytes.size()) out += '\n';
    bytes.remove_prefix(std::min(line + 1, bytes.size()));
  }
  return out;
}

class Painter {
 public:
  Painter(const TrainBatch& batch, const Tokenizer& tokenizer, bool colours)
      : batch_(batch), tokenizer_(tokenizer), colours_(colours) {
    for (int64_t row = 0; row < batch.rows(); ++row) most_ = std::max(most_, weight_of(row));
  }

  std::string sequence(int64_t begin, int64_t end) {
    out_.clear();
    stretch_.clear();
    weight_ = -1;
    for (int64_t row = begin; row <= end; ++row) {
      // The token of a row is the target of the row before; the last target has no row.
      const bool first = row == begin, last = row == end;
      const float weight = first ? 0 : weight_of(row - 1);
      if (weight != weight_) {
        flush();
        weight_ = weight;
      }
      if (!last && !batch_.resets.empty() && batch_.resets[static_cast<size_t>(row)] != 0) {
        flush();
        out_ += colours_ ? "\033[31m⟲\033[0m" : "⟲";
      }
      const auto at = static_cast<size_t>(row);
      const TokenId id = last ? batch_.targets[at - 1] : batch_.tokens[at];
      if (id >= 0) stretch_ += tokenizer_.token_bytes(id);
    }
    flush();
    return out_ + "\n";
  }

 private:
  float weight_of(int64_t row) const {
    const auto at = static_cast<size_t>(row);
    if (batch_.targets[at] < 0) return 0;
    return batch_.weights.empty() ? 1 : batch_.weights[at];
  }
  void flush() {
    if (stretch_.empty()) return;
    const std::string text = readable(stretch_);
    stretch_.clear();
    if (!colours_) {
      if (weight_ != said_) out_ += fmt::format("⟦{:.3g}⟧", weight_);
      said_ = weight_;
      out_ += text;
    } else if (weight_ > 0 && weight_ >= most_ / 2) {
      out_ += "\033[1;32m" + text + "\033[0m";
    } else if (weight_ < most_ / 20) {
      out_ += "\033[2m" + text + "\033[0m";
    } else {
      out_ += text;
    }
  }

  const TrainBatch& batch_;
  const Tokenizer& tokenizer_;
  bool colours_;
  float most_ = 0, weight_ = -1, said_ = -1;
  std::string out_, stretch_;
};

}  // namespace

std::string shown(const TrainBatch& batch, const Tokenizer& tokenizer, bool colours) {
  std::string out;
  Painter painter(batch, tokenizer, colours);
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t begin = batch.offsets[static_cast<size_t>(s)],
                  end = batch.offsets[static_cast<size_t>(s) + 1];
    if (s > 0) out += "---- a further sequence\n";
    out += painter.sequence(begin, end);
  }
  return out;
}

}  // namespace rwkvx::cli
