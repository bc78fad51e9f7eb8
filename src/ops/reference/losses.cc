#include "ops/reference/backward.h"

namespace rwkvx::reference {

void cross_entropy(const CrossEntropy& call) {
  const int64_t V = call.logits.dim(1);
  for (int64_t t = 0; t < call.logits.dim(0); ++t) {
    const int32_t target = call.targets[static_cast<size_t>(t)];
    if (target < 0) {
      put(call.losses, t, 0);
      if (call.hits) put(call.hits, t, 0);
      for (int64_t i = 0; call.dlogits && i < V; ++i) put(call.dlogits, t, i, 0);
      continue;
    }
    int64_t top = 0;
    for (int64_t i = 1; i < V; ++i) {
      if (at(call.logits, t, i) > at(call.logits, t, top)) top = i;
    }
    const double highest = at(call.logits, t, top);
    double total = 0;
    for (int64_t i = 0; i < V; ++i) total += std::exp(at(call.logits, t, i) - highest);
    put(call.losses, t, highest + std::log(total) - at(call.logits, t, target));
    if (call.hits) put(call.hits, t, at(call.logits, t, target) == highest ? 1 : 0);
    if (!call.dlogits) continue;
    const double weight = call.weights.empty() ? 1 : call.weights[static_cast<size_t>(t)];
    for (int64_t i = 0; i < V; ++i) {
      double d = weight * (std::exp(at(call.logits, t, i) - highest) / total - (i == target ? 1 : 0));
      if (i == top) d += static_cast<double>(call.l2wrap) * highest;
      put(call.dlogits, t, i, static_cast<double>(call.scale) * d);
    }
  }
}

void adamw(const AdamWTensor& tensor, const AdamWStep& step) {
  const double rate = step.rate * static_cast<double>(tensor.rate_factor);
  const double correction1 = 1 - std::pow(step.beta1, static_cast<double>(step.step));
  const double correction2 = 1 - std::pow(step.beta2, static_cast<double>(step.step));
  for (int64_t i = 0; i < tensor.master.elements(); ++i) {
    const double g = at(tensor.gradient, i) * step.gradient_scale;
    const double m = step.beta1 * at(tensor.moment1, i) + (1 - step.beta1) * g;
    const double v = step.beta2 * at(tensor.moment2, i) + (1 - step.beta2) * g * g;
    put(tensor.moment1, i, m);
    put(tensor.moment2, i, v);
    const double kept = at(tensor.master, i) * (1 - rate * (tensor.decay ? step.decay : 0));
    put(tensor.master, i, kept - rate * (m / correction1) / (std::sqrt(v / correction2) + step.eps));
    put(tensor.weight, i, at(tensor.master, i));
  }
}

}  // namespace rwkvx::reference
