#include "formats/pickle_reader.h"

#include <unordered_set>

#include "base/error.h"
#include "formats/pickle_machine.h"

namespace rwkvx {
namespace {

using Kind = PickleValue::Kind;
using Ref = PickleValue::Ref;

/// Errors: a value that can be reached from itself. Walks without recursion: depth is the file's choice.
void check_acyclic(const std::string& where, const PickleMachine& machine, Ref root) {
  struct Step {
    Ref ref;
    size_t next;  // item to visit
  };
  std::unordered_set<Ref> open, done;
  std::vector<Step> path{{root, 0}};
  open.insert(root);
  while (!path.empty()) {
    Step& step = path.back();
    const auto& items = machine.value(step.ref).items;
    if (step.next == items.size()) {
      open.erase(step.ref);
      done.insert(step.ref);
      path.pop_back();
      continue;
    }
    const Ref item = items[step.next++];
    if (machine.value(item).items.empty() || done.contains(item)) continue;
    if (!open.insert(item).second) {
      fail(
          "{}: the pickle contains itself (a cyclic memo), so it is no dictionary of tensors; the file is "
          "forged",
          where);
    }
    path.push_back({item, 0});
  }
}

bool holds_tensors(const PickleMachine& machine, const PickleValue& dict) {
  for (size_t i = 1; i < dict.items.size(); i += 2) {
    if (machine.value(dict.items[i]).kind == Kind::tensor) return true;
  }
  return false;
}

std::string key_text(const PickleValue& key) {
  switch (key.kind) {
    case Kind::text:
      return fmt::format("\"{}\"", printable(key.text));
    case Kind::integer:
      return fmt::format("{}", key.integer);
    default:
      return "a key that is no text";
  }
}

/// The dictionary whose tensors are meant.
Ref find_tensors(const std::string& where, const PickleMachine& machine, Ref root) {
  const PickleValue& top = machine.value(root);
  if (top.kind != Kind::dict) {
    fail("{}: holds {} instead of a dictionary of tensors by name; save the model's state_dict", where,
         top.kind == Kind::tensor ? "one tensor without a name" : "something else");
  }
  std::vector<Ref> found;
  std::string names;
  const auto note = [&](Ref dict, const std::string& key) {
    if (!holds_tensors(machine, machine.value(dict))) return;
    for (Ref known : found) {
      if (known == dict) return;
    }
    found.push_back(dict);
    if (found.size() <= 4) names += (names.empty() ? "" : ", ") + key;
  };
  note(root, "the top");
  for (size_t i = 0; i + 1 < top.items.size() && found.size() < 5; i += 2) {
    const Ref value = top.items[i + 1];
    if (machine.value(value).kind == Kind::dict) note(value, key_text(machine.value(top.items[i])));
  }
  if (found.empty()) fail("{}: holds no tensors; save the model's state_dict", where);
  if (found.size() > 1) {
    fail(
        "{}: holds tensors at several places ({}{}), and which of them are the model is not clear; save the "
        "model's "
        "state_dict alone",
        where, names, found.size() > 4 ? ", ..." : "");
  }
  return found[0];
}

std::vector<int64_t> integers(const PickleMachine& machine, Ref tuple) {
  std::vector<int64_t> out;
  for (Ref ref : machine.value(tuple).items) out.push_back(machine.value(ref).integer);
  return out;
}

PickledTensor describe(const std::string& where, const PickleMachine& machine, std::string name, Ref tensor) {
  const auto& items = machine.value(tensor).items;
  const PickleValue& storage = machine.value(items[0]);
  const std::string shown = printable(name);
  if (!storage.typed) {
    fail("{}: tensor \"{}\" lies in a storage without a type; save it as a float tensor", where, shown);
  }
  PickledTensor t;
  t.name = std::move(name);
  t.dtype = storage.dtype;
  t.storage = std::string(storage.text);
  t.storage_elements = static_cast<uint64_t>(storage.integer);
  const int64_t offset = machine.value(items[1]).integer;
  t.size = integers(machine, items[2]);
  t.stride = integers(machine, items[3]);
  if (t.size.size() != t.stride.size()) {
    fail("{}: tensor \"{}\" has {} dimensions but {} strides; the file is damaged or forged", where, shown,
         t.size.size(), t.stride.size());
  }
  if (offset < 0)
    fail("{}: tensor \"{}\" begins before its storage; the file is damaged or forged", where, shown);
  t.offset = static_cast<uint64_t>(offset);
  for (size_t i = 0; i < t.size.size(); ++i) {
    if (t.size[i] < 0 || t.stride[i] < 0) {
      fail("{}: tensor \"{}\" has a negative size or stride; the file is damaged or forged", where, shown);
    }
  }
  return t;
}

}  // namespace

std::vector<PickledTensor> read_pickle(const std::string& where, std::span<const std::byte> pickle) {
  PickleMachine machine(where, pickle);
  const Ref root = machine.run();
  check_acyclic(where, machine, root);
  const PickleValue& dict = machine.value(find_tensors(where, machine, root));
  std::vector<PickledTensor> tensors;
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const PickleValue& key = machine.value(dict.items[i]);
    if (machine.value(dict.items[i + 1]).kind != Kind::tensor) continue;
    if (key.kind != Kind::text) {
      fail("{}: holds a tensor under {} instead of a name; save the model's state_dict", where,
           key_text(key));
    }
    if (!names.insert(key.text).second) {
      fail("{}: tensor \"{}\" is there twice; the file is damaged or forged", where, printable(key.text));
    }
    tensors.push_back(describe(where, machine, std::string(key.text), dict.items[i + 1]));
  }
  return tensors;
}

}  // namespace rwkvx
