#pragma once

#include <fmt/format.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "model/checkpoint.h"

/// Naming rules shared by the dialects.
namespace rwkvx::dialects {

/// "blocks." and rest "12.att.w1" -> index 12, tail "att.w1". Nothing when there is no such prefix or number.
struct Indexed {
  int64_t index;
  std::string tail;
};
std::optional<Indexed> split_index(std::string_view name, std::string_view prefix);

/// Adds `from` [m, n] transposed, in memory that the catalog keeps.
void add_transposed(Catalog& to, const std::string& name, ConstView from);

/// True when `x` holds the six token-shift vectors of a block, r w k v a g, in its rows; then adds them one
/// by one.
bool add_fused_mix(Catalog& to, int64_t block, ConstView x);

/// True for block 0's value-residual tensors, which some files carry and no model reads.
bool is_unused(std::string_view canonical);

inline constexpr std::array<std::string_view, 6> kMixNames{"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"};

/// GGUF names of a canonical tensor; `x_*` share one name, "time_mix_lerp_fused.weight".
std::string gguf_name(const std::string& canonical);
/// Names of flash-linear-attention, of its newer form.
std::string fla_name(const std::string& canonical);

}  // namespace rwkvx::dialects
