#pragma once

#include "tensor/view.h"

namespace rwkvx {

/// to[i] = from[i] between the plain float types (f32, f64, bf16, f16), rounded to nearest even, and from and
/// to the quantised types of tensor/quantise.h, whose rows are whole blocks. Shapes may differ, element
/// counts may not. Errors: another type.
void convert(ConstView from, View to);

/// How many elements are NaN or infinite; of quantised types, how many blocks have such a scale. 0 for
/// integers.
int64_t count_not_finite(ConstView x);

/// to [n, m] = from [m, n] transposed, any type of whole bytes.
void transpose(ConstView from, View to);

}  // namespace rwkvx
