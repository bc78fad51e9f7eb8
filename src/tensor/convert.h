#pragma once

#include "tensor/view.h"

namespace rwkvx {

/// to[i] = from[i] between the plain float types (f32, f64, bf16, f16), rounded to nearest even. Shapes may
/// differ, element counts may not. Errors: a type that is not a plain float.
void convert(ConstView from, View to);

/// How many elements are NaN or infinite; 0 for types that are not plain floats.
int64_t count_not_finite(ConstView x);

/// to [n, m] = from [m, n] transposed, any type of whole bytes.
void transpose(ConstView from, View to);

}  // namespace rwkvx
