#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/tensor_list.h"
#include "tensor/dtype.h"

namespace rwkvx {

/// As shells match files: "blocks.*.att.value.weight".
bool fits_name(const std::string& pattern, const std::string& name);

/// Which type each matrix of a model gets when the model is quantised. Not all are equally sensitive:
/// docs/quantisation.md has the table and what it was measured on.
struct QuantisePlan {
  struct Override {
    std::string pattern;        ///< of names, see fits_name()
    std::optional<DType> type;  ///< none: as it is
  };
  DType type = DType::q8_0;         ///< q8_0, q4_0, q4_k, q5_k, q6_k, f16 or bf16
  std::vector<Override> overrides;  ///< the first that fits counts

  /// For a matrix that is found in type `found`. A type whose blocks do not divide the rows gives way to
  /// q8_0, that to bf16. f32 and f64 matrices that stay fine become bf16.
  DType type_of(const TensorSpec& spec, DType found) const;
};

}  // namespace rwkvx
