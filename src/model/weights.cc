#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "tensor/convert.h"
#include "tensor/host_pages.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

/// Vectors come as [C], [1, 1, C] or, r_k, [H, 64].
bool shape_fits(const TensorSpec& spec, const Shape& found) {
  if (is_matrix(spec.role)) return found == spec.shape;
  if (found.elements() != spec.shape.elements()) return false;
  if (spec.role == Role::bonus && found.rank() == 2 && found[1] == kHeadSize) return true;
  for (int i = 0; i + 1 < found.rank(); ++i) {
    if (found[i] != 1) return false;
  }
  return found.rank() > 0;
}

bool has_quantised_matrices(const Catalog& catalog) {
  const auto& tensors = catalog.tensors();
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const CatalogTensor& tensor) { return is_quantised(tensor.data.dtype()); });
}

}  // namespace

Shape public_shape(const TensorSpec& spec) {
  switch (spec.role) {
    case Role::low_rank:
      return {spec.shape[1], spec.shape[0]};
    case Role::mix:
    case Role::offset:
    case Role::scale:
      return {1, 1, spec.shape[0]};
    case Role::bonus:
      return {spec.shape[0] / kHeadSize, kHeadSize};
    default:
      return spec.shape;
  }
}

std::vector<TensorSpec> tensor_list(const ModelConfig& config) {
  std::vector<TensorSpec> list;
  const Weights w(config);
  Weights::for_each(w, config, [&](TensorSpec spec, const auto&) { list.push_back(std::move(spec)); });
  return list;
}

void check_tensors(const Checkpoint& checkpoint) {
  const Catalog& catalog = checkpoint.catalog;
  const std::string file = catalog.path.string();
  const std::vector<TensorSpec> list = tensor_list(checkpoint.config);
  std::unordered_set<std::string_view> known;
  for (const TensorSpec& spec : list) {
    known.insert(spec.name);
    const CatalogTensor* tensor = catalog.find(spec.name);
    const std::string shown = checkpoint.file_name_of(spec.name);
    const Shape shown_shape = checkpoint.dialect == Dialect::rwkv ? public_shape(spec) : spec.shape;
    if (tensor == nullptr) fail("{}: tensor {} {} is missing", file, shown, shown_shape.str());
    if (!shape_fits(spec, tensor->data.shape())) {
      const Shape& found = tensor->data.shape();
      const bool turned =
          checkpoint.dialect == Dialect::rwkv && spec.role == Role::low_rank && found.rank() == 2;
      fail("{}: tensor {} has shape {}, but {} is needed beside the file's other tensors", file, shown,
           turned ? Shape{found[1], found[0]}.str() : found.str(), shown_shape.str());
    }
    const bool multiplied =
        is_matrix(spec.role) && spec.role != Role::embedding;  // types are prepare()'s to judge
    const DType type = tensor->data.dtype();
    const bool readable = is_float(type) || (spec.role == Role::embedding && is_computable(type));
    if (!multiplied && !readable) {
      fail("{}: tensor {} is of type {}; {} is needed", file, shown, name(type),
           spec.role == Role::embedding ? "a float type, q8_0, q4_0, q4_k, q5_k or q6_k" : "a float type");
    }
  }
  for (const CatalogTensor& tensor : catalog.tensors()) {
    if (!known.contains(tensor.name)) {
      fail("{}: tensor {} {} belongs to no RWKV-7 or RWKV-X model of this size", file,
           printable(checkpoint.file_name_of(tensor.name)), tensor.data.shape().str());
    }
  }
}

LoadedWeights::LoadedWeights(std::shared_ptr<const Checkpoint> checkpoint, Ops& ops)
    : checkpoint_(std::move(checkpoint)), weights_(config()) {
  check_tensors(*checkpoint_);
  const Catalog& catalog = checkpoint_->catalog;
  const std::string file = catalog.path.string();
  int64_t vector_elements = 0;
  for (const TensorSpec& spec : tensor_list(config())) {
    if (!is_matrix(spec.role)) vector_elements += spec.shape.elements();
  }
  Allocator& allocator = ops.reads_host_memory() ? slab_allocator() : ops.allocator();
  vectors_ = Buffer(ops.real(), {vector_elements}, allocator);
  // Quantised matrices are packed into huge pages. In a file's small ones, what is left of a token's weights
  // takes as long to find as to read.
  const bool copied = ops.reads_host_memory() && has_quantised_matrices(catalog);
  Buffer host(ops.real(), {vector_elements});
  int64_t used = 0;
  std::string not_finite;
  Weights::for_each(weights_, config(), [&](const TensorSpec& spec, auto& slot) {
    ConstView data = catalog.find(spec.name)->data;
    if (not_finite.empty() && count_not_finite(data) > 0) not_finite = spec.name;
    if constexpr (std::is_same_v<std::decay_t<decltype(slot)>, Matrix>) {
      if (copied && spec.role == Role::low_rank) {
        Buffer& copy = copies_.emplace_back(data.dtype(), data.shape(), allocator);
        std::memcpy(copy.view().data(), data.data(), data.bytes());
        data = copy;
      }
      try {
        slot = ops.prepare(data, spec.sparse_input);
      } catch (const Error& error) {
        fail("{}: tensor {}: {}", file, checkpoint_->file_name_of(spec.name), error.what());
      }
    } else if (spec.role == Role::embedding) {
      table_ = ops.prepare_table(data);
      slot = table_.weight;
    } else {
      convert(data, host.view().rows(used, spec.shape.elements()));
      slot = vectors_.view().rows(used, spec.shape.elements());
      used += spec.shape.elements();
    }
  });
  ops.upload(host.view().raw(), vectors_.view().data());
  for (RwkvBlockWeights& block : weights_.blocks) {
    block.att.mix = ConstView(block.att.x[0].data(), ops.real(), {6, config().channels});
  }
  if (!not_finite.empty()) {
    log_warning("{}: tensor {} holds {} NaN or infinite values; outputs will likely be NaN", file,
                checkpoint_->file_name_of(not_finite), count_not_finite(catalog.find(not_finite)->data));
  }
}

uint64_t LoadedWeights::fingerprint() const {
  Hash64 hash;
  const ModelConfig& c = config();
  const int64_t sizes[] = {c.layers, c.sparse_blocks, c.channels, c.ffn, c.vocab, c.chunk_size, c.top_k};
  hash.update(std::as_bytes(std::span(sizes)));
  hash.update(std::as_bytes(std::span(c.sparse_after)));
  for (const TensorSpec& spec : tensor_list(c)) {
    const ConstView data = checkpoint_->catalog.find(spec.name)->data;
    if (is_matrix(spec.role)) {
      hash.update(data.raw());
    } else {
      Buffer vector(DType::f32, {data.elements()});
      convert(data, vector);
      hash.update(vector.view().raw());
    }
  }
  return hash.digest();
}

}  // namespace rwkvx
