#include "model/checkpoint_writer.h"

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "model/dialects/dialects.h"
#include "model/weights.h"
#include "tensor/convert.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

constexpr uint32_t kMixRows = 6;

/// convert() by rows, in several threads where the result is quantised: looking for scales takes time.
void convert_rows(ConstView from, View to) {
  const int64_t rows = from.dim(0);
  const auto cores = static_cast<int64_t>(std::max(1u, std::thread::hardware_concurrency()));
  const int64_t parts = is_quantised(to.dtype()) && from.elements() > (1 << 16) ? std::min(rows, cores) : 1;
  std::vector<std::jthread> threads;
  for (int64_t i = 1; i < parts; ++i) {
    threads.emplace_back([=] {
      const int64_t begin = rows * i / parts, count = rows * (i + 1) / parts - begin;
      convert(from.rows(begin, count), to.rows(begin, count));
    });
  }
  convert(from.rows(0, rows / parts), to.rows(0, rows / parts));
}

/// Streams the tensors of a checkpoint, one converted tensor in memory at a time.
class Exporter {
 public:
  Exporter(const Checkpoint& checkpoint, const WriteOptions& options)
      : checkpoint_(checkpoint), options_(options) {}

  std::vector<TensorToWrite> public_tensors() {
    std::vector<TensorToWrite> out;
    for (const TensorSpec& spec : tensor_list(config())) {
      const bool prefixed = config().sparse_blocks > 0 && !spec.name.starts_with("moba.");
      const bool turned = spec.role == Role::low_rank;
      const ConstView data = find(spec);
      const DType dtype = type_of(spec);
      if (is_quantised(dtype)) {
        fail("{}: tensor {} is of type {}, which only GGUF holds; write .gguf, or pass --dtype bf16",
             checkpoint_.path().string(), checkpoint_.file_name_of(spec.name), name(dtype));
      }
      out.push_back({(prefixed ? "rwkv." : "") + spec.name, dtype, public_shape(spec),
                     [this, spec, data, dtype, turned] {
                       return converted(data, dtype, spec.name, turned).reshaped(public_shape(spec));
                     }});
    }
    return out;
  }

  std::vector<TensorToWrite> gguf_tensors() {
    std::vector<TensorToWrite> out;
    for (const TensorSpec& spec : tensor_list(config())) {
      const ConstView data = find(spec);
      const auto block = dialects::split_index(spec.name, "blocks.");
      if (block && block->tail.starts_with("att.x_")) {
        if (block->tail == "att.x_r") out.push_back(fused_mix(spec, block->index));
        continue;
      }
      const DType dtype = is_matrix(spec.role) ? type_of(spec) : DType::f32;
      out.push_back({dialects::gguf_name(spec.name), dtype, spec.shape, [this, data, dtype, spec] {
                       return converted(data, dtype, spec.name, false).reshaped(spec.shape);
                     }});
      if (config().sparse_blocks == 0) add_unused_value_residual(spec, out);
    }
    return out;
  }

  Metadata gguf_metadata() const {
    const ModelConfig& c = config();
    const std::string arch = c.sparse_blocks > 0 ? "rwkvx" : "rwkv7";
    const auto key = [&](const char* tail) { return arch + "." + tail; };
    const auto number = [](int64_t n) { return static_cast<uint64_t>(n); };
    Metadata m{{"general.architecture", arch},
               {"general.type", std::string("model")},
               {"general.name", checkpoint_.path().stem().string()},
               {"general.file_type", file_type()},
               {"general.quantization_version", uint64_t{2}},
               {key("context_length"), uint64_t{1} << 20},
               {key("embedding_length"), number(c.channels)},
               {key("block_count"), number(c.layers)},
               {key("feed_forward_length"), number(c.ffn)},
               {key("attention.head_count"), uint64_t{0}},
               {key("attention.layer_norm_epsilon"), 1e-5},
               {key("wkv.head_size"), uint64_t{64}},
               {key("attention.decay_lora_rank"), number(c.decay_rank)},
               {key("attention.iclr_lora_rank"), number(c.rate_rank)},
               {key("attention.value_residual_mix_lora_rank"), number(c.value_rank)},
               {key("attention.gate_lora_rank"), number(c.gate_rank)}};
    if (c.sparse_blocks > 0) {
      m.emplace_back(kChunkSizeKey, number(c.chunk_size));
      m.emplace_back(kTopKKey, number(c.top_k));
      m.emplace_back(key("sparse_block_count"), number(c.sparse_blocks));
      if (!c.sparse_after.empty()) m.emplace_back(kSparseAfterKey, sparse_places(c));
    }
    std::vector<std::string> tokens;
    std::vector<int64_t> types;
    if (options_.vocabulary) {
      tokens = options_.vocabulary->tokens;
      types.assign(options_.vocabulary->types.begin(), options_.vocabulary->types.end());
    }
    types.resize(tokens.size(), 1);  // normal
    for (auto i = static_cast<int64_t>(tokens.size()); i < c.vocab; ++i) {
      tokens.push_back(fmt::format("[PAD{}]", i));
      types.push_back(5);  // unused
    }
    m.emplace_back("tokenizer.ggml.model",
                   options_.vocabulary ? options_.vocabulary->model : std::string("rwkv"));
    m.emplace_back("tokenizer.ggml.tokens", std::move(tokens));
    m.emplace_back("tokenizer.ggml.token_type", std::move(types));
    m.emplace_back("tokenizer.ggml.bos_token_id", uint64_t{0});
    m.emplace_back("tokenizer.ggml.eos_token_id", uint64_t{0});
    return m;
  }

 private:
  const ModelConfig& config() const { return checkpoint_.config; }
  DType type_of(const TensorSpec& spec) const {
    const DType found = find(spec).dtype();
    if (options_.matrix_type && is_matrix(spec.role)) return options_.matrix_type(spec, found);
    return options_.dtype.value_or(found);
  }

  ConstView find(const TensorSpec& spec) const { return checkpoint_.catalog.find(spec.name)->data; }

  ConstView converted(ConstView data, DType dtype, const std::string& name, bool turned) {
    if (data.dtype() != dtype) {
      Buffer next(dtype, data.shape());
      convert_rows(data, next);
      if (count_not_finite(next) > count_not_finite(data)) {
        fail("{}: tensor {} has values that {} cannot hold; use {}", checkpoint_.path().string(),
             checkpoint_.file_name_of(name), rwkvx::name(dtype),
             is_quantised(dtype) ? fmt::format("--keep {}", checkpoint_.file_name_of(name))
                                 : "--dtype bf16 or f32");
      }
      current_ = std::move(next);
      data = current_;
    }
    if (turned) {
      Buffer next(dtype, {data.dim(1), data.dim(0)});
      transpose(data, next);
      current_ = std::move(next);
      data = current_;
    }
    return data;
  }

  TensorToWrite fused_mix(const TensorSpec& first, int64_t block) {
    return {dialects::gguf_name(first.name), DType::f32, {kMixRows, 1, 1, config().channels}, [this, block] {
              Buffer fused(DType::f32, {kMixRows, config().channels});
              for (size_t i = 0; i < kMixRows; ++i) {
                const std::string name = fmt::format("blocks.{}.att.{}", block, dialects::kMixNames[i]);
                convert(find({name, {config().channels}, Role::mix}),
                        fused.view().rows(static_cast<int64_t>(i), 1));
              }
              current_ = std::move(fused);
              return current_.view().reshaped({kMixRows, 1, 1, config().channels});
            }};
  }

  /// llama.cpp wants value-residual tensors in block 0 too and, as its converter does, of the rate's rank.
  void add_unused_value_residual(const TensorSpec& spec, std::vector<TensorToWrite>& out) {
    const auto block = dialects::split_index(spec.name, "blocks.");
    if (!block || block->index != 0 ||
        (block->tail != "att.a0" && block->tail != "att.a1" && block->tail != "att.a2")) {
      return;
    }
    TensorToWrite copy = out.back();
    copy.name = fmt::format("blk.0.time_mix_v{}.weight", block->tail.back());
    out.push_back(std::move(copy));
  }

  uint64_t file_type() const {
    const ModelConfig& c = config();
    // Numbers of llama.h's llama_ftype; for the K types the mixed ones, whose name ends in M.
    switch (type_of({"blocks.0.ffn.key.weight", {c.ffn, c.channels}, Role::projection})) {
      case DType::f16:
        return 1;
      case DType::q4_0:
        return 2;
      case DType::q8_0:
        return 7;
      case DType::q4_k:
        return 15;
      case DType::q5_k:
        return 17;
      case DType::q6_k:
        return 18;
      case DType::bf16:
        return 32;
      default:
        return 0;
    }
  }

  const Checkpoint& checkpoint_;
  const WriteOptions& options_;
  Buffer current_;
};

}  // namespace

void write_checkpoint(const Checkpoint& checkpoint, const Path& path, const WriteOptions& options,
                      const Progress& progress) {
  check_tensors(checkpoint);
  for (const TensorSpec& spec : tensor_list(checkpoint.config)) {
    const DType dtype = checkpoint.catalog.find(spec.name)->data.dtype();
    if (!is_float(dtype) && !is_computable(dtype)) {
      fail("{}: tensor {} is of type {}, which can neither be written nor converted",
           checkpoint.path().string(), checkpoint.file_name_of(spec.name), name(dtype));
    }
  }
  Exporter exporter(checkpoint, options);
  const ModelConfig& c = checkpoint.config;
  switch (options.format) {
    case FileFormat::gguf:
      return write_gguf(path, exporter.gguf_tensors(), exporter.gguf_metadata(), progress);
    case FileFormat::pth:
      if (!c.sparse_after.empty()) {
        fail(
            "{}: .pth cannot say where the sparse blocks of this model are (after {} RWKV-7 blocks); write "
            ".safetensors or .gguf",
            path.string(), sparse_places(c));
      }
      return write_pth(path, exporter.public_tensors(), progress);
    case FileFormat::safetensors: {
      Metadata metadata{{"format", std::string("pt")}};
      if (c.sparse_blocks > 0) {
        metadata.emplace_back(kChunkSizeKey, std::to_string(c.chunk_size));
        metadata.emplace_back(kTopKKey, std::to_string(c.top_k));
        if (!c.sparse_after.empty()) metadata.emplace_back(kSparseAfterKey, sparse_places(c));
      }
      return write_safetensors(path, exporter.public_tensors(), metadata, progress);
    }
  }
}

}  // namespace rwkvx
