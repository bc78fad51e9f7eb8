#pragma once

#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace rwkvx {

/// A tensor as a pickle of torch.save describes it: a strided window onto a storage.
struct PickledTensor {
  std::string name;
  DType dtype = DType::f32;
  std::string storage;            ///< the zip entry <archive>/data/<storage> holds its elements
  uint64_t storage_elements = 0;  ///< what the pickle says; the entry's size is another matter
  uint64_t offset = 0;            ///< of the first element, in elements
  std::vector<int64_t> size, stride;
};

/// The dictionary of tensors in a pickle of torch.save, in its order. The dictionary is the pickled object
/// itself or, where that one holds none, the only one directly inside it that holds tensors ({"model": {...},
/// "step": 1}); what is no tensor is ignored.
///
/// Nothing is executed: the pickle runs on a machine that knows the opcodes dictionaries of tensors are made
/// of, and the globals it may name are a fixed list that stand for data (Python's pickletools.py describes
/// the opcodes). Errors begin with `where`: any other opcode or global, a damaged pickle, a structure that
/// contains itself, two tensors of one name, no tensors.
std::vector<PickledTensor> read_pickle(const std::string& where, std::span<const std::byte> pickle);

}  // namespace rwkvx
