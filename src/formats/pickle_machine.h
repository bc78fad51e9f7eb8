#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "formats/byte_reader.h"
#include "tensor/dtype.h"

namespace rwkvx {

/// What a pickle may name. They are labels here: nothing is looked up or called.
enum class PickleGlobal : uint8_t {
  rebuild_tensor,
  rebuild_parameter,
  ordered_dict,
  size,
  typed_storage,    ///< torch.FloatStorage and its like, with a type
  untyped_storage,  ///< bytes
};

/// A value on the machine's stack. Values refer to each other by number, so that no pickle can make a deep or
/// cyclic ownership of memory.
struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    text,
    other,
    tuple,
    list,
    dict,
    global,
    storage,
    tensor
  };
  using Ref = uint32_t;

  Kind kind = Kind::none;
  PickleGlobal global = PickleGlobal::size;  // global
  DType dtype = DType::u8;                   // global (typed_storage), storage
  bool typed = false;                        // storage
  int64_t integer = 0;                       // boolean, integer; storage: its elements
  std::string_view text;                     // text; storage: its key; points into the pickle
  std::vector<Ref> items;  // tuple, list; dict: key, value, key, value; tensor: storage, offset, size, stride
};

/// The restricted interpreter of pickles (protocols 2 to 5). Bounds: values and memo entries grow with the
/// pickle's bytes, up to a few million.
class PickleMachine {
 public:
  using Kind = PickleValue::Kind;
  using Ref = PickleValue::Ref;

  PickleMachine(std::string where, std::span<const std::byte> pickle) : in_(std::move(where), pickle) {}
  /// Runs to STOP and returns the value left. Errors as read_pickle's.
  Ref run();
  const PickleValue& value(Ref ref) const { return values_[ref]; }

 private:
  const std::string& where() const { return in_.where(); }
  [[noreturn]] void damaged(std::string_view what) const;
  [[noreturn]] void refuse_opcode(uint8_t opcode) const;

  bool step(uint8_t opcode);
  bool step_scalar(uint8_t opcode);
  bool step_container(uint8_t opcode);
  bool step_stack(uint8_t opcode);

  PickleValue& make(Kind kind);
  void push(Ref ref);
  Ref pop();
  Ref top() const;
  std::vector<Ref> pop_to_mark();
  void push_integer(int64_t value);
  void push_text(uint64_t length);
  void push_other(uint64_t bytes_to_skip);
  void push_long(uint64_t length);
  void push_tuple(std::vector<Ref> items);
  void push_global(std::string_view module, std::string_view name);
  std::string_view line();
  void remember(uint32_t key);
  void recall(uint32_t key);
  void append(std::vector<Ref> items);
  void set_items(std::vector<Ref> items);
  void build();
  void reduce();
  void reduce_ordered_dict(const std::vector<Ref>& args);
  void reduce_tensor(const std::vector<Ref>& args);
  void persistent_id();

  ByteReader in_;
  std::vector<PickleValue> values_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, Ref> memo_;
};

}  // namespace rwkvx
