#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// A set of byte strings that finds the longest one a text starts with: a double-array trie (Aoe 1989), whose
/// child of node n by byte c is slot base(n) + c, taken when that slot carries the label c. No two nodes
/// share a base, so the label alone proves the parent and a slot fits into 8 bytes. The first two bytes are
/// looked up in one table instead of two dependent steps.
class ByteTrie {
 public:
  /// The value of strings[i] is i; empty strings are left out.
  /// Errors: two equal strings, a single byte that is not among the strings, more than 2^23 nodes.
  explicit ByteTrie(std::span<const std::string> strings);

  struct Match {
    int32_t value;
    size_t length;
  };
  /// The longest string that begins `text`, which must not be empty. Every single byte is a string, so there
  /// always is one.
  Match longest_prefix(std::string_view text) const {
    const auto* const begin = reinterpret_cast<const unsigned char*>(text.data());
    const unsigned char* const end = begin + text.size();
    if (text.size() == 1) return {single_[begin[0]], 1};
    const Slot first = pairs_[begin[0] | begin[1] << 8];
    const unsigned char* p = begin + 2;
    Match match{first.value, first.link & kPairLengthMask};
    uint32_t base = first.link >> kBaseShift;
    while (p != end) {
      const Slot slot = slots_[base + *p];
      if ((slot.link & kLabelMask) != *p) break;
      ++p;
      if (slot.value >= 0) match = {slot.value, static_cast<size_t>(p - begin)};
      base = slot.link >> kBaseShift;
    }
    return match;
  }

 private:
  /// link: base << 9 | label. Label 256 marks a free slot; base 0 leads to slots that stay free, so a leaf
  /// needs no flag of its own. value: -1 when no string ends here.
  struct Slot {
    uint32_t link;
    int32_t value;
  };
  static constexpr uint32_t kBaseShift = 9;
  static constexpr uint32_t kLabelMask = (1u << kBaseShift) - 1;
  static constexpr uint32_t kFreeLabel = 256;
  static constexpr uint32_t kPairLengthMask = 3;

  class Builder;
  std::vector<Slot> slots_;
  /// By two bytes, the first in the low half: the node they reach, the longest match within them, and in
  /// place of the label its length. [65536]
  std::vector<Slot> pairs_;
  std::vector<int32_t> single_;  ///< by one byte [256]
};

}  // namespace rwkvx
