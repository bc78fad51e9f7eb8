#include "model/quantise_plan.h"

#include <fnmatch.h>

namespace rwkvx {
namespace {

bool fits(DType type, const TensorSpec& spec) { return spec.shape.dim(-1) % info(type).block_elements == 0; }

/// The next finer type for what is read for every token of the vocabulary, or read once only.
DType finer(DType type) { return type == DType::q4_k || type == DType::q5_k ? DType::q6_k : DType::q8_0; }

}  // namespace

bool fits_name(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

DType QuantisePlan::type_of(const TensorSpec& spec, DType found) const {
  for (const Override& o : overrides) {
    if (fits_name(o.pattern, spec.name)) return o.type.value_or(found);
  }
  if (!is_quantised(type)) return type;
  const DType sixteen_bits = found == DType::f16 ? DType::f16 : DType::bf16;
  DType wanted = type;
  if (spec.role == Role::low_rank) return sixteen_bits;
  if (spec.role == Role::embedding || spec.role == Role::head) wanted = finer(type);
  if (fits(wanted, spec)) return wanted;
  return fits(DType::q8_0, spec) ? DType::q8_0 : sixteen_bits;
}

}  // namespace rwkvx
