#include "formats/pickle_machine.h"

#include <array>

#include "base/error.h"
#include "formats/pickle_opcodes.h"

namespace rwkvx {
namespace {

using namespace pickle_opcodes;

// A 30-billion-parameter state dict has about 2,000 tensors of some 15 values each.
constexpr size_t kValueLimit = size_t{1} << 21;
constexpr size_t kStackLimit = size_t{1} << 20;
constexpr size_t kMarkLimit = 1000;

constexpr PickleMachine::Ref kNone = 0, kFalse = 1, kTrue = 2;

struct KnownGlobal {
  std::string_view module, name;
  PickleGlobal global;
  DType dtype = DType::u8;
};

constexpr std::array<KnownGlobal, 16> kGlobals = {{
    {"torch._utils", "_rebuild_tensor_v2", PickleGlobal::rebuild_tensor},
    {"torch._utils", "_rebuild_parameter", PickleGlobal::rebuild_parameter},
    {"collections", "OrderedDict", PickleGlobal::ordered_dict},
    {"torch", "Size", PickleGlobal::size},
    {"torch", "FloatStorage", PickleGlobal::typed_storage, DType::f32},
    {"torch", "HalfStorage", PickleGlobal::typed_storage, DType::f16},
    {"torch", "BFloat16Storage", PickleGlobal::typed_storage, DType::bf16},
    {"torch", "DoubleStorage", PickleGlobal::typed_storage, DType::f64},
    {"torch", "LongStorage", PickleGlobal::typed_storage, DType::i64},
    {"torch", "IntStorage", PickleGlobal::typed_storage, DType::i32},
    {"torch", "ShortStorage", PickleGlobal::typed_storage, DType::i16},
    {"torch", "CharStorage", PickleGlobal::typed_storage, DType::i8},
    {"torch", "ByteStorage", PickleGlobal::typed_storage, DType::u8},
    {"torch", "BoolStorage", PickleGlobal::typed_storage, DType::u8},
    {"torch.storage", "UntypedStorage", PickleGlobal::untyped_storage},
    {"torch.storage", "TypedStorage", PickleGlobal::untyped_storage},
}};

constexpr std::string_view kWhat = "the pickle";

}  // namespace

void PickleMachine::damaged(std::string_view what) const {
  fail("{}: {} at byte {}; the pickle is damaged or forged", where(), what, in_.position());
}

void PickleMachine::refuse_opcode(uint8_t opcode) const {
  const bool builds = opcode == kInst || opcode == kObj || opcode == kNewObj || opcode == kNewObjEx ||
                      (opcode >= kExt1 && opcode <= kExt4);
  if (builds) {
    fail(
        "{}: the pickle builds an object at byte {} (opcode {:#04x}): the file tries to run code, or holds "
        "something "
        "else than tensors; nothing was run. Save the model's state_dict alone",
        where(), in_.position() - 1, opcode);
  }
  fail(
      "{}: the pickle has the opcode {:#04x} at byte {}, which dictionaries of tensors do not need; the file "
      "is "
      "damaged or holds something else: save the model's state_dict alone",
      where(), opcode, in_.position() - 1);
}

PickleValue& PickleMachine::make(Kind kind) {
  if (values_.size() >= kValueLimit) damaged("more values than any model has");
  push(static_cast<Ref>(values_.size()));
  PickleValue& made = values_.emplace_back();
  made.kind = kind;
  return made;
}

void PickleMachine::push(Ref ref) {
  if (stack_.size() >= kStackLimit) damaged("a stack higher than any model needs");
  stack_.push_back(ref);
}

PickleMachine::Ref PickleMachine::top() const {
  // What is below a mark belongs to whoever set the mark.
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) damaged("an empty stack");
  return stack_.back();
}

PickleMachine::Ref PickleMachine::pop() {
  const Ref ref = top();
  stack_.pop_back();
  return ref;
}

std::vector<PickleMachine::Ref> PickleMachine::pop_to_mark() {
  if (marks_.empty()) damaged("no mark");
  const auto begin = stack_.begin() + static_cast<ptrdiff_t>(marks_.back());
  std::vector<Ref> items(begin, stack_.end());
  stack_.erase(begin, stack_.end());
  marks_.pop_back();
  return items;
}

void PickleMachine::push_integer(int64_t value) { make(Kind::integer).integer = value; }

void PickleMachine::push_text(uint64_t length) {
  const auto text = in_.take_text(length, "text in the pickle");
  make(Kind::text).text = text;
}

void PickleMachine::push_other(uint64_t bytes_to_skip) {
  in_.take(bytes_to_skip, kWhat);
  make(Kind::other);
}

void PickleMachine::push_long(uint64_t length) {
  const auto bytes = in_.take(length, "a number in the pickle");
  if (length > 8) {
    make(Kind::other);  // no size of a tensor
    return;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  if (length > 0 && length < 8 && (value >> (8 * length - 1)) != 0) value |= ~uint64_t{0} << (8 * length);
  push_integer(static_cast<int64_t>(value));
}

void PickleMachine::push_tuple(std::vector<Ref> items) { make(Kind::tuple).items = std::move(items); }

void PickleMachine::push_global(std::string_view module, std::string_view name) {
  for (const KnownGlobal& known : kGlobals) {
    if (known.module == module && known.name == name) {
      PickleValue& made = make(Kind::global);
      made.global = known.global;
      made.dtype = known.dtype;
      return;
    }
  }
  if (module == "torch" && name.ends_with("Storage")) {
    fail("{}: holds tensors of torch's {}, which is not supported; save them as bfloat16, half or float",
         where(), printable(name));
  }
  fail(
      "{}: the pickle names {}.{}: the file tries to run code, or holds something else than tensors; nothing "
      "was run. "
      "Save the model's state_dict alone",
      where(), printable(module), printable(name));
}

std::string_view PickleMachine::line() {
  constexpr size_t kLimit = 256;
  ByteReader ahead = in_;
  size_t length = 0;
  while (ahead.read<char>("a name in the pickle") != '\n') {
    if (++length > kLimit) damaged("a name longer than any");
  }
  const auto text = in_.take_text(length, kWhat);
  in_.take(1, kWhat);
  return text;
}

void PickleMachine::remember(uint32_t key) {
  if (memo_.size() >= kValueLimit) damaged("more memo entries than any model has");
  memo_[key] = top();
}

void PickleMachine::recall(uint32_t key) {
  const auto it = memo_.find(key);
  if (it == memo_.end()) damaged("a memo entry that was never stored");
  push(it->second);
}

void PickleMachine::append(std::vector<Ref> items) {
  PickleValue& list = values_[top()];
  if (list.kind != Kind::list) damaged("an append to something that is no list");
  list.items.insert(list.items.end(), items.begin(), items.end());
}

void PickleMachine::set_items(std::vector<Ref> items) {
  PickleValue& dict = values_[top()];
  if (dict.kind != Kind::dict) damaged("an item for something that is no dictionary");
  if (items.size() % 2 != 0) damaged("a key without a value");
  dict.items.insert(dict.items.end(), items.begin(), items.end());
}

void PickleMachine::build() {
  pop();
  // A state_dict carries its modules' versions as an attribute (_metadata), of no use to a reader of tensors.
  if (values_[top()].kind != Kind::dict) {
    fail(
        "{}: the pickle sets attributes of an object at byte {}: the file holds something else than tensors; "
        "save the "
        "model's state_dict alone",
        where(), in_.position() - 1);
  }
}

void PickleMachine::reduce_ordered_dict(const std::vector<Ref>& args) {
  std::vector<Ref> items;
  if (args.size() > 1) damaged("an OrderedDict of several arguments");
  if (args.size() == 1) {
    const PickleValue& pairs = values_[args[0]];
    if (pairs.kind != Kind::list && pairs.kind != Kind::tuple)
      damaged("an OrderedDict of something else than pairs");
    for (Ref ref : pairs.items) {
      const PickleValue& pair = values_[ref];
      if ((pair.kind != Kind::list && pair.kind != Kind::tuple) || pair.items.size() != 2) {
        damaged("an OrderedDict of something else than pairs");
      }
      items.insert(items.end(), pair.items.begin(), pair.items.end());
    }
  }
  make(Kind::dict).items = std::move(items);
}

void PickleMachine::reduce_tensor(const std::vector<Ref>& args) {
  // storage, offset, size, stride, requires_grad, backward hooks, and since PyTorch 2 metadata
  if (args.size() < 6 || args.size() > 7) damaged("a tensor of other than six or seven arguments");
  const auto all_integers = [&](const PickleValue& tuple) {
    for (Ref ref : tuple.items) {
      if (values_[ref].kind != Kind::integer) return false;
    }
    return tuple.kind == Kind::tuple;
  };
  if (values_[args[0]].kind != Kind::storage || values_[args[1]].kind != Kind::integer ||
      !all_integers(values_[args[2]]) || !all_integers(values_[args[3]])) {
    damaged("a tensor of arguments of other types than torch writes");
  }
  make(Kind::tensor).items.assign(args.begin(), args.begin() + 4);
}

void PickleMachine::reduce() {
  const PickleValue& tuple = values_[pop()];
  const PickleValue& function = values_[pop()];
  if (tuple.kind != Kind::tuple || function.kind != Kind::global)
    damaged("a call of something that cannot be called");
  const std::vector<Ref> args = tuple.items;  // a copy: making values moves them
  switch (function.global) {
    case PickleGlobal::ordered_dict:
      return reduce_ordered_dict(args);
    case PickleGlobal::rebuild_tensor:
      return reduce_tensor(args);
    case PickleGlobal::rebuild_parameter:
      if (args.empty() || values_[args[0]].kind != Kind::tensor) damaged("a parameter that is no tensor");
      return push(args[0]);
    case PickleGlobal::size:
      if (args.size() != 1 || values_[args[0]].kind != Kind::tuple) damaged("a torch.Size that is no tuple");
      return push(args[0]);
    case PickleGlobal::typed_storage:
    case PickleGlobal::untyped_storage:
      fail(
          "{}: the pickle makes a storage by a call at byte {}, which torch.save never does; nothing was run",
          where(), in_.position() - 1);
  }
}

void PickleMachine::persistent_id() {
  // ("storage", type, key, device, elements); PyTorch 1.6 to 1.12 may add a None.
  const PickleValue& id = values_[pop()];
  if (id.kind != Kind::tuple) damaged("a storage that is not described as torch does");
  const std::vector<Ref> items = id.items;  // a copy: making a value moves them
  const auto kind = [&](size_t i) { return values_[items[i]].kind; };
  if (items.size() < 5 || kind(0) != Kind::text || values_[items[0]].text != "storage" ||
      kind(1) != Kind::global || kind(2) != Kind::text || kind(4) != Kind::integer) {
    damaged("a storage that is not described as torch does");
  }
  const PickleValue& type = values_[items[1]];
  if (type.global != PickleGlobal::typed_storage && type.global != PickleGlobal::untyped_storage) {
    damaged("a storage of no storage type");
  }
  if (values_[items[4]].integer < 0) damaged("a storage of negative size");
  PickleValue storage;
  storage.kind = Kind::storage;
  storage.dtype = type.dtype;
  storage.typed = type.global == PickleGlobal::typed_storage;
  storage.text = values_[items[2]].text;
  storage.integer = values_[items[4]].integer;
  make(Kind::storage) = storage;
}

bool PickleMachine::step_scalar(uint8_t opcode) {
  switch (opcode) {
    case kNoneOp:
      push(kNone);
      return true;
    case kNewTrue:
      push(kTrue);
      return true;
    case kNewFalse:
      push(kFalse);
      return true;
    case kBinInt:
      push_integer(in_.read<int32_t>(kWhat));
      return true;
    case kBinInt1:
      push_integer(in_.read<uint8_t>(kWhat));
      return true;
    case kBinInt2:
      push_integer(in_.read<uint16_t>(kWhat));
      return true;
    case kLong1:
      push_long(in_.read<uint8_t>(kWhat));
      return true;
    case kLong4: {
      const auto length = in_.read<int32_t>(kWhat);
      if (length < 0) damaged("a number of negative length");
      push_long(static_cast<uint64_t>(length));
      return true;
    }
    case kBinFloat:
      push_other(8);
      return true;
    case kShortBinUnicode:
    case kShortBinString:
      push_text(in_.read<uint8_t>(kWhat));
      return true;
    case kBinUnicode:
      push_text(in_.read<uint32_t>(kWhat));
      return true;
    case kBinString: {
      const auto length = in_.read<int32_t>(kWhat);
      if (length < 0) damaged("text of negative length");
      push_text(static_cast<uint64_t>(length));
      return true;
    }
    case kBinUnicode8:
      push_text(in_.read<uint64_t>(kWhat));
      return true;
    case kShortBinBytes:
      push_other(in_.read<uint8_t>(kWhat));
      return true;
    case kBinBytes:
      push_other(in_.read<uint32_t>(kWhat));
      return true;
    case kBinBytes8:
      push_other(in_.read<uint64_t>(kWhat));
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_container(uint8_t opcode) {
  switch (opcode) {
    case kEmptyTuple:
      push_tuple({});
      return true;
    case kTuple:
      push_tuple(pop_to_mark());
      return true;
    case kTuple1:
    case kTuple2:
    case kTuple3: {
      std::vector<Ref> items(opcode - kTuple1 + size_t{1});
      for (size_t i = items.size(); i-- > 0;) items[i] = pop();
      push_tuple(std::move(items));
      return true;
    }
    case kEmptyList:
      make(Kind::list);
      return true;
    case kList: {
      auto items = pop_to_mark();
      make(Kind::list).items = std::move(items);
      return true;
    }
    case kAppend: {
      const Ref item = pop();
      append({item});
      return true;
    }
    case kAppends:
      append(pop_to_mark());
      return true;
    case kEmptyDict:
      make(Kind::dict);
      return true;
    case kDict: {
      auto items = pop_to_mark();
      make(Kind::dict);
      set_items(std::move(items));
      return true;
    }
    case kSetItem: {
      const Ref value = pop(), key = pop();
      set_items({key, value});
      return true;
    }
    case kSetItems:
      set_items(pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool PickleMachine::step_stack(uint8_t opcode) {
  switch (opcode) {
    case kMark:
      if (marks_.size() >= kMarkLimit) damaged("marks nested deeper than any model needs");
      marks_.push_back(stack_.size());
      return true;
    case kPop:
      if (!marks_.empty() && marks_.back() == stack_.size()) {
        marks_.pop_back();  // Python's pickler removes a mark this way
      } else {
        pop();
      }
      return true;
    case kPopMark:
      pop_to_mark();
      return true;
    case kBinPut:
      remember(in_.read<uint8_t>(kWhat));
      return true;
    case kLongBinPut:
      remember(in_.read<uint32_t>(kWhat));
      return true;
    case kMemoize:
      remember(static_cast<uint32_t>(memo_.size()));
      return true;
    case kBinGet:
      recall(in_.read<uint8_t>(kWhat));
      return true;
    case kLongBinGet:
      recall(in_.read<uint32_t>(kWhat));
      return true;
    case kFrame:
      in_.read<uint64_t>(kWhat);
      return true;  // a hint for reading ahead
    default:
      return false;
  }
}

bool PickleMachine::step(uint8_t opcode) {
  if (step_scalar(opcode) || step_container(opcode) || step_stack(opcode)) return true;
  switch (opcode) {
    case kGlobal: {
      const auto module = line(), name = line();
      push_global(module, name);
      return true;
    }
    case kStackGlobal: {
      const PickleValue name = values_[pop()], module = values_[pop()];
      if (name.kind != Kind::text || module.kind != Kind::text) damaged("a global without a name");
      push_global(module.text, name.text);
      return true;
    }
    case kReduce:
      reduce();
      return true;
    case kBuild:
      build();
      return true;
    case kBinPersId:
      persistent_id();
      return true;
    case kInst: {
      const auto module = line(), name = line();
      push_global(module, name);  // names most culprits
      refuse_opcode(opcode);
    }
    default:
      return false;
  }
}

PickleMachine::Ref PickleMachine::run() {
  values_.resize(3);
  values_[kFalse].kind = values_[kTrue].kind = Kind::boolean;
  values_[kTrue].integer = 1;

  if (in_.read<uint8_t>(kWhat) != kProto) damaged("no protocol");
  const auto protocol = in_.read<uint8_t>(kWhat);
  if (protocol < 2 || protocol > 5) {
    fail("{}: the pickle has protocol {}; torch.save writes 2 to 5: the file is damaged", where(), protocol);
  }
  while (true) {
    const auto opcode = in_.read<uint8_t>(kWhat);
    if (opcode == kStop) break;
    if (!step(opcode)) refuse_opcode(opcode);
  }
  if (stack_.size() != 1 || !marks_.empty()) damaged("the end before everything is put together");
  if (in_.remaining() != 0) damaged("bytes behind the end");
  return stack_.back();
}

}  // namespace rwkvx
