#include "model/parameters.h"

#include <algorithm>

#include "base/error.h"
#include "ops/training.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

/// Tensors begin at multiples of this many elements: whole cache lines in every type. The six token-shift
/// coefficients, multiples of 64 each, stay one matrix.
constexpr int64_t kAlign = 64;
int64_t padded(int64_t elements) { return (elements + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Parameters::Parameters(const ModelConfig& config, Ops& ops, const Choice& trainable)
    : config_(config), ops_(ops), weights_(config), gradients_(config) {
  const std::vector<TensorSpec> list = tensor_list(config);
  const bool round = ops.precision() == Precision::bf16;
  // Mixing coefficients are one matrix for the backward: all of them or none.
  const auto wanted = [&](const TensorSpec& spec) { return !trainable || trainable(spec); };
  int64_t masters = 0, rounded = 0, gradients = 0;
  for (const TensorSpec& spec : list) {
    const int64_t size = padded(spec.shape.elements());
    masters += size;
    if (round && is_matrix(spec.role)) rounded += size;
    if (wanted(spec) || spec.role == Role::mix) gradients += size;
  }
  masters_ = Buffer(ops.real(), {masters}, ops.allocator());
  rounded_ = Buffer(DType::bf16, {rounded}, ops.allocator());
  gradient_memory_ = Buffer(ops.real(), {gradients}, ops.allocator());
  int64_t master_at = 0, rounded_at = 0, gradient_at = 0;
  const auto take = [](Buffer& from, int64_t& at, const Shape& shape) {
    const View view = from.view().rows(at, shape.elements()).reshaped(shape);
    at += padded(shape.elements());
    return view;
  };
  for (const TensorSpec& spec : list) {
    Tensor tensor{spec, take(masters_, master_at, spec.shape), {}, {}};
    tensor.weight = round && is_matrix(spec.role) ? take(rounded_, rounded_at, spec.shape) : tensor.master;
    const bool with_gradient = wanted(spec);
    if (with_gradient || spec.role == Role::mix) {
      const View gradient = take(gradient_memory_, gradient_at, spec.shape);
      if (with_gradient) tensor.gradient = gradient;
    }
    tensors_.push_back(std::move(tensor));
  }

  size_t i = 0;
  Weights::for_each(weights_, config_, [&](const TensorSpec&, auto& slot) {
    if constexpr (std::is_same_v<std::decay_t<decltype(slot)>, Matrix>) {
      slot = ops.prepare(tensors_[i++].weight);
    } else {
      slot = tensors_[i++].weight;
    }
  });
  i = 0;
  Gradients::for_each(gradients_, config_,
                      [&](const TensorSpec&, View& slot) { slot = tensors_[i++].gradient; });
  for (size_t b = 0; b < weights_.blocks.size(); ++b) {
    TimeMixWeights& att = weights_.blocks[b].att;
    TimeMixGradients& d = gradients_.blocks[b].att;
    att.mix = ConstView(att.x[0].data(), ops.real(), {6, config.channels});
    // With one coefficient frozen, its share of the memory is written and read by nobody.
    for (int64_t m = 0; m < 6; ++m) {
      const View& one = d.x[static_cast<size_t>(m)];
      if (!one) continue;
      d.mix = View(static_cast<std::byte*>(one.data()) - m * static_cast<int64_t>(one.bytes()), ops.real(),
                   {6, config.channels});
    }
  }
}

const Parameters::Tensor* Parameters::find(std::string_view name) const {
  const auto found = std::find_if(tensors_.begin(), tensors_.end(),
                                  [&](const Tensor& tensor) { return tensor.spec.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}

void Parameters::set(const Tensor& tensor, ConstView values) {
  for (const View& to : {tensor.master, tensor.weight}) {
    Buffer host(to.dtype(), values.shape());
    convert(values, host);
    ops_.upload(host.view().raw(), to.data());
    if (tensor.weight.data() == tensor.master.data()) break;
  }
}

void Parameters::load(const Checkpoint& checkpoint) {
  if (checkpoint.config != config_) {
    fail("{}: a model of other sizes than the one in training", checkpoint.path().string());
  }
  check_tensors(checkpoint);
  for (const Tensor& tensor : tensors_) {
    const ConstView data = checkpoint.catalog.find(tensor.spec.name)->data;
    if (!is_float(data.dtype())) {
      fail("{}: tensor {} is of type {}; training starts from f32, bf16 or f16 weights",
           checkpoint.path().string(), checkpoint.file_name_of(tensor.spec.name), name(data.dtype()));
    }
    set(tensor, data);
  }
}

void Parameters::zero_gradients() { ops_.training().zero(gradient_memory_); }

}  // namespace rwkvx
