#include "tokenizer/byte_trie.h"

#include <algorithm>

#include "base/error.h"

namespace rwkvx {

class ByteTrie::Builder {
 public:
  Builder(ByteTrie& trie, std::span<const std::string> strings) : trie_(trie), strings_(strings) {}

  void build() {
    sort_keys();
    // Slots 0 to 255 stay free: they are where the base of a leaf leads.
    first_free_ = wide_start_ = kBytes;
    grow(2 * kBytes);
    // Breadth first: the nodes every token passes lie together, and the wide ones are placed while there is
    // room.
    std::vector<Node> queue;
    queue.push_back({0, keys_.size(), 0, kNoSlot});
    uint32_t root_base = 0;
    for (size_t next = 0; next < queue.size(); ++next) {
      const uint32_t base = place_children(queue[next], queue);
      if (next == 0) root_base = base;
    }
    // Any base plus any byte must stay inside the array.
    trie_.slots_.resize(static_cast<size_t>(max_base_) + kBytes, kFree);
    fill_tables(root_base);
  }

 private:
  static constexpr uint32_t kBytes = 256;
  static constexpr uint32_t kNoSlot = 0;
  static constexpr Slot kFree{kFreeLabel, -1};
  // So many free slots that do not fit are given up for every later node with several children.
  static constexpr int kMaxTries = 32;

  /// A string's first eight bytes, big endian, decide nearly every comparison of the sort.
  struct Key {
    uint64_t prefix;
    uint32_t index;
  };
  /// keys_[first, last) share their first `depth` bytes; `slot` is where the node they share lies.
  struct Node {
    size_t first, last, depth;
    uint32_t slot;
  };

  void sort_keys() {
    for (size_t i = 0; i < strings_.size(); ++i) {
      if (strings_[i].empty()) continue;
      uint64_t prefix = 0;
      for (size_t j = 0; j < 8; ++j) {
        prefix = prefix << 8 | (j < strings_[i].size() ? static_cast<unsigned char>(strings_[i][j]) : 0);
      }
      keys_.push_back({prefix, static_cast<uint32_t>(i)});
    }
    std::sort(keys_.begin(), keys_.end(), [this](const Key& a, const Key& b) {
      if (a.prefix != b.prefix) return a.prefix < b.prefix;
      const int order = strings_[a.index].compare(strings_[b.index]);
      return order != 0 ? order < 0 : a.index < b.index;
    });
    for (size_t i = 1; i < keys_.size(); ++i) {
      const Key &a = keys_[i - 1], &b = keys_[i];
      if (a.prefix == b.prefix && strings_[a.index] == strings_[b.index]) {
        fail("tokens {} and {} have the same bytes '{}'; every token of a vocabulary must differ", a.index,
             b.index, printable(strings_[a.index]));
      }
    }
  }

  /// Writes the slots of the node's children, queues them, and returns the node's base (0 for a leaf).
  uint32_t place_children(Node node, std::vector<Node>& queue) {
    size_t first = node.first;
    if (first < node.last && strings_[keys_[first].index].size() == node.depth)
      ++first;  // the one that ends here
    const size_t queued = queue.size();
    labels_.clear();
    while (first < node.last) {
      const uint32_t label = byte_at(first, node.depth);
      size_t last = first + 1;
      while (last < node.last && byte_at(last, node.depth) == label) ++last;
      labels_.push_back(label);
      queue.push_back({first, last, node.depth + 1, kNoSlot});
      first = last;
    }
    if (labels_.empty()) return 0;

    const uint32_t base = find_base();
    base_used_[base] = true;
    max_base_ = std::max(max_base_, base);
    if (node.slot != kNoSlot) trie_.slots_[node.slot].link |= base << kBaseShift;
    for (size_t i = 0; i < labels_.size(); ++i) {
      const uint32_t slot = base + labels_[i];
      Node& child = queue[queued + i];
      child.slot = slot;
      const std::string& shortest = strings_[keys_[child.first].index];
      const bool ends = shortest.size() == child.depth;
      trie_.slots_[slot] = {labels_[i], ends ? static_cast<int32_t>(keys_[child.first].index) : -1};
      unlink(slot);
    }
    return base;
  }

  /// A base not yet taken for which the slots of all labels_ are free.
  uint32_t find_base() {
    // An only child fits nearly anywhere and fills the holes; the others start behind the crowded beginning.
    const bool wide = labels_.size() > 1;
    uint32_t slot = wide ? wide_start_ : first_free_;
    for (int tries = 0;; ++tries, slot = next_free_[slot]) {
      const uint32_t base = slot - labels_[0];  // above 0, the leaves' base, because slot >= kBytes
      if (base + labels_.back() >= trie_.slots_.size()) grow(base + 2 * kBytes);
      if (wide && tries == kMaxTries) wide_start_ = slot;
      if (base_used_[base]) continue;
      if (std::all_of(labels_.begin(), labels_.end(),
                      [&](uint32_t label) { return is_free(base + label); })) {
        return base;
      }
    }
  }

  bool is_free(uint32_t slot) const {
    return slot >= kBytes && (trie_.slots_[slot].link & kLabelMask) == kFreeLabel;
  }

  /// New slots join the end of the list of free ones; the list's end is the array's size.
  void grow(uint32_t size) {
    const auto old = static_cast<uint32_t>(trie_.slots_.size());
    if (size > UINT32_MAX >> kBaseShift) {
      fail("the vocabulary is too large: its tokens have more than {} different beginnings",
           UINT32_MAX >> kBaseShift);
    }
    trie_.slots_.resize(size, kFree);
    base_used_.resize(size, false);
    next_free_.resize(size);
    previous_free_.resize(size);
    for (uint32_t slot = std::max(old, kBytes); slot < size; ++slot) {
      next_free_[slot] = slot + 1;
      previous_free_[slot] = last_free_;
      if (last_free_ != kNoSlot) next_free_[last_free_] = slot;
      last_free_ = slot;
    }
  }

  void unlink(uint32_t slot) {
    const uint32_t previous = previous_free_[slot], next = next_free_[slot];
    if (slot == first_free_) first_free_ = next;
    if (slot == wide_start_) wide_start_ = next;
    if (previous != kNoSlot) next_free_[previous] = next;
    if (slot == last_free_) {
      last_free_ = previous;
    } else {
      previous_free_[next] = previous;
    }
  }

  void fill_tables(uint32_t root_base) {
    const std::vector<Slot>& slots = trie_.slots_;
    trie_.single_.resize(kBytes);
    trie_.pairs_.resize(size_t{kBytes} * kBytes);
    for (uint32_t a = 0; a < kBytes; ++a) {
      const Slot one = slots[root_base + a];
      if ((one.link & kLabelMask) != a || one.value < 0) {
        fail("no token stands for the single byte \\x{:02x}; a vocabulary must have all 256", a);
      }
      trie_.single_[a] = one.value;
      for (uint32_t b = 0; b < kBytes; ++b) {
        Slot& pair = trie_.pairs_[a | b << 8];
        const Slot two = slots[(one.link >> kBaseShift) + b];
        if ((two.link & kLabelMask) != b) {
          pair = {1, one.value};
        } else {
          const uint32_t length = two.value >= 0 ? 2 : 1;
          pair = {(two.link & ~kLabelMask) | length, length == 2 ? two.value : one.value};
        }
      }
    }
  }

  uint32_t byte_at(size_t key, size_t depth) const {
    return static_cast<unsigned char>(strings_[keys_[key].index][depth]);
  }

  ByteTrie& trie_;
  std::span<const std::string> strings_;
  std::vector<Key> keys_;
  std::vector<uint32_t> labels_;
  std::vector<bool> base_used_;
  // The free slots from kBytes on, doubly linked in order.
  std::vector<uint32_t> next_free_, previous_free_;
  uint32_t first_free_ = 0, last_free_ = kNoSlot;
  uint32_t wide_start_ = 0;  ///< where the search for nodes with several children starts
  uint32_t max_base_ = 0;
};

ByteTrie::ByteTrie(std::span<const std::string> strings) { Builder(*this, strings).build(); }

}  // namespace rwkvx
