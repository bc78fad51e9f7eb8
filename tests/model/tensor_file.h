#pragma once

#include <optional>
#include <string>
#include <vector>

#include "formats/catalog.h"
#include "tensor/buffer.h"

namespace rwkvx::test {

/// A file of tensors in memory, to be changed and written.
struct TensorFile {
  struct Tensor {
    std::string name;
    std::vector<std::byte> bytes;
    DType dtype = DType::f32;
    Shape shape;
    ConstView view() const { return {bytes.data(), dtype, shape}; }
  };
  std::vector<Tensor> tensors;
  Metadata metadata;

  static TensorFile read(const Path& path);
  void write(const Path& path, FileFormat format = FileFormat::safetensors) const;

  bool has(const std::string& name) const;
  Tensor& at(const std::string& name);
  void erase(const std::string& name);
  void add(const std::string& name, ConstView data);
  void add(const std::string& name, Shape shape, float value);  ///< f32, all alike
  void rename(const std::string& from, const std::string& to) { at(from).name = to; }
  void transpose(const std::string& name);
  void convert(const std::string& name, DType dtype);
};

/// A small model with random weights, named as RWKV-LM and RWKV-X name them: 64 channels, vocabulary 256.
/// Hybrids record chunks of 2048 and top-k 3.
TensorFile small_model(int64_t layers, int64_t sparse_blocks, DType dtype = DType::f32);
/// The same with more channels, all sizes multiples of 32; channel mixes are 4 times as wide.
TensorFile wide_model(int64_t channels, int64_t layers, int64_t sparse_blocks);

/// Renamed and transposed into what flash-linear-attention writes, for plain RWKV-7. `fused`: the first
/// generation, which holds the six token-shift coefficients in one tensor.
TensorFile as_fla(const TensorFile& rwkv, bool fused);

}  // namespace rwkvx::test
