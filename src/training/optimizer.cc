#include "training/optimizer.h"

#include <cmath>

#include "base/error.h"

namespace rwkvx {
namespace {

bool decays(const TensorSpec& spec) { return is_matrix(spec.role) && spec.role != Role::low_rank; }
float rate_factor(const TensorSpec& spec) { return spec.name.ends_with(".att.w0") ? 2.0f : 1.0f; }

}  // namespace

Optimizer::Optimizer(Parameters& parameters) : parameters_(parameters) {
  int64_t elements = 0, used = 0;
  for (const Parameters::Tensor& tensor : parameters.tensors())
    if (tensor.gradient) elements += tensor.spec.shape.elements();
  Ops& ops = parameters.ops();
  memory_ = Buffer(ops.real(), {2 * elements}, ops.allocator());
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    if (!tensor.gradient) continue;
    const Shape& shape = tensor.spec.shape;
    const auto take = [&] {
      const View view = memory_.view().rows(used, shape.elements()).reshaped(shape);
      used += shape.elements();
      return view;
    };
    const View first = take(), second = take();
    moments_.push_back({&tensor, first, second});
    updates_.push_back({.master = tensor.master,
                        .gradient = tensor.gradient,
                        .moment1 = first,
                        .moment2 = second,
                        .weight = tensor.weight,
                        .decay = decays(tensor.spec),
                        .rate_factor = rate_factor(tensor.spec)});
  }
}

double Optimizer::gradient_norm() {
  std::vector<ConstView> gradients;
  for (const Moments& m : moments_) gradients.push_back(m.tensor->gradient);
  std::vector<double> sums(gradients.size());
  parameters_.ops().training().sums_of_squares(gradients, sums);
  double total = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    if (!std::isfinite(sums[i])) fail("the gradient of {} is not finite", moments_[i].tensor->spec.name);
    total += sums[i];
  }
  return std::sqrt(total);
}

}  // namespace rwkvx
