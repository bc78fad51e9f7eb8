// What write_checkpoint writes is the same model, bit for bit where the type allows it; failures leave
// nothing behind.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "model/checkpoint_writer.h"
#include "model/support.h"
#include "model/tensor_file.h"
#include "model/weights.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

using test::TensorFile;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

const char* ending(FileFormat format) {
  switch (format) {
    case FileFormat::gguf:
      return "gguf";
    case FileFormat::pth:
      return "pth";
    case FileFormat::safetensors:
      return "safetensors";
  }
  return "";
}
constexpr FileFormat kFormats[] = {FileFormat::gguf, FileFormat::pth, FileFormat::safetensors};
constexpr CheckpointOptions kChunks{8, 3};

std::string read_bytes(const Path& path) { return read_file(path); }

/// Every canonical tensor of `got` is that of `source` converted to `dtype`, and has the wanted type.
void expect_converted(const Checkpoint& got, const Checkpoint& source, std::optional<DType> dtype) {
  ASSERT_EQ(got.config, source.config);
  for (const TensorSpec& spec : tensor_list(source.config)) {
    SCOPED_TRACE(spec.name);
    const CatalogTensor* before = source.catalog.find(spec.name);
    const CatalogTensor* after = got.catalog.find(spec.name);
    ASSERT_NE(after, nullptr);
    const bool vector_of_gguf = got.dialect == Dialect::gguf && !is_matrix(spec.role);
    const DType wanted = vector_of_gguf ? DType::f32 : dtype.value_or(before->data.dtype());
    EXPECT_EQ(after->data.dtype(), wanted);
    Buffer expected(wanted, before->data.shape());
    convert(before->data, expected);
    ASSERT_EQ(after->data.bytes(), expected.view().bytes());
    EXPECT_EQ(std::memcmp(after->data.data(), expected.view().data(), after->data.bytes()), 0);
  }
}

struct Case {
  int64_t sparse_blocks;
  DType source;
  std::optional<DType> dtype;
};

std::string case_name(const testing::TestParamInfo<Case>& test) {
  const Case& c = test.param;
  return fmt::format("{}_{}_to_{}", c.sparse_blocks > 0 ? "hybrid" : "plain", name(c.source),
                     c.dtype ? name(*c.dtype) : "same");
}

class WriterTest : public testing::TestWithParam<Case> {
 protected:
  const test::TemporaryFolder folder_;
};

TEST_P(WriterTest, EveryFormat) {
  const Case c = GetParam();
  test::small_model(2, c.sparse_blocks, c.source).write(folder_ / "source");
  const auto source = open_checkpoint(folder_ / "source", kChunks);
  for (const FileFormat format : kFormats) {
    SCOPED_TRACE(ending(format));
    const Path path = folder_ / (std::string("out.") + ending(format));
    write_checkpoint(*source, path, {format, c.dtype, {}});
    // .pth has no place for chunk settings.
    const auto options = format == FileFormat::pth ? kChunks : CheckpointOptions{};
    const auto out = open_checkpoint(path, options);
    EXPECT_EQ(out->catalog.format, format);
    if (c.sparse_blocks > 0) {
      EXPECT_EQ(out->chunk_settings_recorded, format != FileFormat::pth);
    }
    const bool plain = c.sparse_blocks == 0;
    if (plain) {
      ModelConfig config = out->config;  // plain models have no use for chunk settings
      config.chunk_size = source->config.chunk_size;
      config.top_k = source->config.top_k;
      ASSERT_EQ(config, source->config);
      auto same = std::make_shared<Checkpoint>(*out);
      same->config = config;
      expect_converted(*same, *source, c.dtype);
    } else {
      expect_converted(*out, *source, c.dtype);
    }
    test::open_model(path, "cpu", Precision::f32, options);  // and it loads
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int64_t sparse : {0, 1}) {
    for (const DType source : {DType::f32, DType::bf16, DType::f16}) {
      all.push_back({sparse, source, std::nullopt});
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) all.push_back({sparse, source, dtype});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Types, WriterTest, testing::ValuesIn(cases()), case_name);

class RoundTripTest : public WriterTest {};

TEST_P(RoundTripTest, ThroughEveryFormatIsTheSourceAgain) {
  const Case c = GetParam();
  // Back to the source's type: GGUF has made the vectors float32.
  const WriteOptions to_gguf{FileFormat::gguf, c.dtype, {}}, to_pth{FileFormat::pth, c.dtype, {}},
      back{FileFormat::safetensors, c.source, {}};
  test::small_model(2, c.sparse_blocks, c.source).write(folder_ / "source");
  write_checkpoint(*open_checkpoint(folder_ / "source", kChunks), folder_ / "1.gguf", to_gguf);
  write_checkpoint(*open_checkpoint(folder_ / "1.gguf"), folder_ / "2.pth", to_pth);
  write_checkpoint(*open_checkpoint(folder_ / "2.pth", kChunks), folder_ / "3.safetensors", back);
  const Catalog source = open_catalog(folder_ / "source"), result = open_catalog(folder_ / "3.safetensors");
  ASSERT_EQ(result.tensors().size(), source.tensors().size());
  for (const CatalogTensor& tensor : source.tensors()) {
    SCOPED_TRACE(tensor.name);
    const CatalogTensor* again = result.find(tensor.name);
    ASSERT_NE(again, nullptr);
    EXPECT_EQ(again->data.dtype(), tensor.data.dtype());
    ASSERT_EQ(again->data.shape(), tensor.data.shape());
    EXPECT_EQ(std::memcmp(again->data.data(), tensor.data.data(), tensor.data.bytes()), 0);
  }
  // A second time gives the same bytes.
  write_checkpoint(*open_checkpoint(folder_ / "2.pth", kChunks), folder_ / "4.safetensors", back);
  EXPECT_EQ(read_bytes(folder_ / "4.safetensors"), read_bytes(folder_ / "3.safetensors"));
}

/// As it is, and through a type that holds every value of the source.
INSTANTIATE_TEST_SUITE_P(Types, RoundTripTest,
                         testing::Values(Case{0, DType::bf16, {}}, Case{1, DType::bf16, {}},
                                         Case{0, DType::f32, {}}, Case{1, DType::f16, {}},
                                         Case{0, DType::bf16, DType::f32}, Case{1, DType::bf16, DType::f32},
                                         Case{1, DType::f16, DType::f32}),
                         case_name);

class WriterFilesTest : public testing::Test {
 protected:
  std::shared_ptr<const Checkpoint> checkpoint(const TensorFile& file) {
    file.write(folder_ / "source");
    return open_checkpoint(folder_ / "source", kChunks);
  }
  const test::TemporaryFolder folder_;
};

TEST_F(WriterFilesTest, GgufOfAHybridSaysWhatItIs) {
  write_checkpoint(*checkpoint(test::small_model(2, 1)), folder_ / "out.gguf", {});
  const Catalog file = open_catalog(folder_ / "out.gguf");
  EXPECT_EQ(*file.text("general.architecture"), "rwkvx");
  EXPECT_EQ(*file.number("rwkvx.chunk_size"), 8u);
  EXPECT_EQ(*file.number("rwkvx.top_k"), 3u);
  EXPECT_EQ(*file.number("rwkvx.sparse_block_count"), 1u);
  EXPECT_EQ(*file.number("rwkvx.block_count"), 2u);
  EXPECT_EQ(*file.number("rwkvx.embedding_length"), 64u);
  EXPECT_EQ(*file.number("rwkvx.feed_forward_length"), 96u);
  EXPECT_NE(file.find("sparse.0.attn_q.weight"), nullptr);
  EXPECT_EQ(file.find("blk.0.time_mix_v1.weight"), nullptr);
}

TEST_F(WriterFilesTest, PlacesOfSparseBlocks) {
  Checkpoint placed = *checkpoint(test::small_model(3, 2));
  const auto spread = std::make_shared<Checkpoint>(placed);
  place_sparse_blocks(placed.config, "1,3");
  std::vector<uint64_t> fingerprints;
  for (const FileFormat format : {FileFormat::gguf, FileFormat::safetensors}) {
    const Path path = folder_ / "out";
    write_checkpoint(placed, path, {format, {}, {}});
    const auto out = open_checkpoint(path);
    EXPECT_EQ(out->config, placed.config);
    EXPECT_TRUE(open_catalog(path).metadata.contains("rwkvx.sparse_after"));
    // The places are part of what the model computes.
    write_checkpoint(*spread, folder_ / "spread", {format, {}, {}});
    EXPECT_FALSE(open_catalog(folder_ / "spread").metadata.contains("rwkvx.sparse_after"));
    const auto a = test::open_model(path, "cpu", Precision::f32),
               b = test::open_model(folder_ / "spread", "cpu", Precision::f32);
    State of_a = a->new_state(), of_b = b->new_state();
    const auto tokens = test::random_tokens(40, a->config().vocab, 3);
    EXPECT_GT(test::distance(test::run(*a, of_a, tokens), test::run(*b, of_b, tokens)).rms, 1e-3);
    EXPECT_NE(a->fingerprint(), b->fingerprint()) << "a state of the one is none of the other";
  }
  EXPECT_THAT(
      [&] {
        write_checkpoint(placed, folder_ / "out.pth", {FileFormat::pth, {}, {}});
      },
      ThrowsMessage<Error>(AllOf(HasSubstr("out.pth"), HasSubstr("after 1,3"))));
}

TEST_F(WriterFilesTest, GgufOfPlainModelsHasWhatLlamaCppAsksFor) {
  write_checkpoint(*checkpoint(test::small_model(2, 0)), folder_ / "out.gguf", {});
  const Catalog file = open_catalog(folder_ / "out.gguf");
  EXPECT_EQ(*file.text("general.architecture"), "rwkv7");
  EXPECT_EQ(*file.number("rwkv7.wkv.head_size"), 64u);
  EXPECT_EQ(*file.number("rwkv7.attention.decay_lora_rank"), 4u);
  EXPECT_EQ(*file.number("rwkv7.attention.iclr_lora_rank"), 6u);
  EXPECT_EQ(*file.number("rwkv7.attention.value_residual_mix_lora_rank"), 3u);
  EXPECT_EQ(*file.number("rwkv7.attention.gate_lora_rank"), 10u);
  for (const char* name :
       {"blk.0.time_mix_v0.weight", "blk.0.time_mix_v1.weight", "blk.0.time_mix_v2.weight"}) {
    EXPECT_NE(file.find(name), nullptr) << name;
  }
  const CatalogTensor* mix = file.find("blk.1.time_mix_lerp_fused.weight");
  ASSERT_NE(mix, nullptr);
  EXPECT_EQ(mix->data.shape(), (Shape{6, 1, 1, 64}));
  EXPECT_EQ(file.find("blk.1.time_mix_w1.weight")->data.shape(), (Shape{4, 64}));
}

TEST_F(WriterFilesTest, VocabularyOfGguf) {
  EmbeddedVocabulary vocabulary{"rwkv", {}, {}};
  for (int i = 0; i < 200; ++i) {
    vocabulary.tokens.push_back(fmt::format("\\x{:02x}", i));
    vocabulary.types.push_back(i == 0 ? 3 : 1);
  }
  const auto source = checkpoint(test::small_model(1, 0));
  write_checkpoint(*source, folder_ / "out.gguf", {FileFormat::gguf, {}, vocabulary});
  const auto out = open_checkpoint(folder_ / "out.gguf");
  ASSERT_TRUE(out->vocabulary.has_value());
  EXPECT_EQ(out->vocabulary->model, "rwkv");
  ASSERT_EQ(out->vocabulary->tokens.size(), 256u) << "as many as the model has";
  ASSERT_EQ(out->vocabulary->types.size(), 256u);
  for (size_t i = 0; i < 200; ++i) {
    EXPECT_EQ(out->vocabulary->tokens[i], vocabulary.tokens[i]);
    EXPECT_EQ(out->vocabulary->types[i], vocabulary.types[i]);
  }
  EXPECT_EQ(out->vocabulary->tokens[255], "[PAD255]");
  EXPECT_EQ(out->vocabulary->types[255], 5);
  // A copy keeps it.
  write_checkpoint(*out, folder_ / "copy.gguf", {FileFormat::gguf, {}, out->vocabulary});
  EXPECT_EQ(open_checkpoint(folder_ / "copy.gguf")->vocabulary->tokens, out->vocabulary->tokens);
}

TEST_F(WriterFilesTest, ValuesBeyondFloat16AreRefusedByName) {
  for (const char* name : {"blocks.1.att.w2", "blocks.0.ffn.value.weight", "head.weight"}) {
    TensorFile file = test::small_model(2, 0);
    const float large = 70000;
    std::memcpy(file.at(name).bytes.data() + 4, &large, sizeof large);
    const auto source = checkpoint(file);
    std::ofstream(folder_ / "old") << "keep me";
    for (const FileFormat format : kFormats) {
      EXPECT_THAT(
          [&] {
            write_checkpoint(*source, folder_ / "old", {format, DType::f16, {}});
          },
          ThrowsMessage<Error>(AllOf(HasSubstr((folder_ / "source").string()), HasSubstr(name),
                                     HasSubstr("f16"), HasSubstr("--dtype bf16"))));
      EXPECT_EQ(read_bytes(folder_ / "old"), "keep me");
      EXPECT_THAT(folder_.files(), ElementsAre("old", "source"));
    }
    write_checkpoint(*source, folder_ / "old",
                     {FileFormat::safetensors, DType::bf16, {}});  // which holds them
    EXPECT_THAT(folder_.files(), ElementsAre("old", "source"));
    std::filesystem::remove(folder_ / "old");
  }
}

TEST_F(WriterFilesTest, WeightsThatAreNotFiniteAreKept) {
  TensorFile file = test::small_model(1, 0);
  const float bad = std::numeric_limits<float>::infinity();
  std::memcpy(file.at("head.weight").bytes.data(), &bad, sizeof bad);
  const auto source = checkpoint(file);
  write_checkpoint(*source, folder_ / "out.gguf", {FileFormat::gguf, DType::f16, {}});
  EXPECT_EQ(count_not_finite(open_checkpoint(folder_ / "out.gguf")->catalog.find("head.weight")->data), 1);
}

TEST_F(WriterFilesTest, StoppedWorkLeavesNothingBehind) {
  struct Stop {};
  const auto source = checkpoint(test::small_model(2, 1));
  std::ofstream(folder_ / "old") << "keep me";
  for (const FileFormat format : kFormats) {
    for (const int after : {0, 3}) {
      int calls = 0;
      const auto stop = [&](uint64_t done, uint64_t total) {
        EXPECT_LE(done, total);
        if (calls++ == after) throw Stop();
      };
      EXPECT_THROW(write_checkpoint(*source, folder_ / "old", {format, {}, {}}, stop), Stop);
      EXPECT_EQ(read_bytes(folder_ / "old"), "keep me");
      EXPECT_THAT(folder_.files(), ElementsAre("old", "source"));
    }
  }
}

TEST_F(WriterFilesTest, ProgressEndsComplete) {
  const auto source = checkpoint(test::small_model(2, 1));
  for (const FileFormat format : kFormats) {
    uint64_t last = 0, all = 1;
    write_checkpoint(*source, folder_ / "out", {format, {}, {}}, [&](uint64_t done, uint64_t total) {
      EXPECT_GE(done, last);
      last = done;
      all = total;
    });
    EXPECT_EQ(last, all);
  }
}

TEST_F(WriterFilesTest, PlacesThatCannotBeWrittenTo) {
  const auto source = checkpoint(test::small_model(1, 0));
  for (const FileFormat format : kFormats) {
    EXPECT_THAT(
        [&] {
          write_checkpoint(*source, folder_ / "no/such/folder/out", {format, {}, {}});
        },
        ThrowsMessage<Error>(HasSubstr((folder_ / "no/such/folder/out").string())));
    std::filesystem::create_directory(folder_ / "folder");
    EXPECT_THAT(
        [&] {
          write_checkpoint(*source, folder_ / "folder", {format, {}, {}});
        },
        ThrowsMessage<Error>(HasSubstr((folder_ / "folder").string())));
    EXPECT_THAT(folder_.files(), ElementsAre("folder", "source"));
  }
}

TEST_F(WriterFilesTest, MissingTensorsAreNamed) {
  TensorFile file = test::small_model(2, 1);
  file.erase("rwkv.blocks.1.att.k_k");
  const auto source = checkpoint(file);
  for (const FileFormat format : kFormats) {
    EXPECT_THAT(
        [&] {
          write_checkpoint(*source, folder_ / "out", {format, {}, {}});
        },
        ThrowsMessage<Error>(HasSubstr("rwkv.blocks.1.att.k_k")));
    EXPECT_THAT(folder_.files(), ElementsAre("source"));
  }
}

TEST_F(WriterFilesTest, MisshapedTensorsOfEqualSizeAreNamed) {
  TensorFile file = test::small_model(2, 1);
  file.at("rwkv.blocks.1.ffn.key.weight").shape = {64, 96};  // [F, C] and [C, F] hold as many elements
  const auto source = checkpoint(file);
  for (const FileFormat format : kFormats) {
    EXPECT_THAT(
        [&] {
          write_checkpoint(*source, folder_ / "out", {format, {}, {}});
        },
        ThrowsMessage<Error>(HasSubstr("rwkv.blocks.1.ffn.key.weight")));
    EXPECT_THAT(folder_.files(), ElementsAre("source"));
  }
}

TEST_F(WriterFilesTest, ExtraTensorsAreNotDroppedSilently) {
  TensorFile file = test::small_model(2, 0);
  file.add("blocks.1.att.surprise", {3}, 1);
  const auto source = checkpoint(file);
  EXPECT_THAT([&] { write_checkpoint(*source, folder_ / "out.gguf", {}); },
              ThrowsMessage<Error>(HasSubstr("blocks.1.att.surprise")));
  EXPECT_THAT(folder_.files(), ElementsAre("source"));
}

TEST_F(WriterFilesTest, WholeNumbersAreRefused) {
  TensorFile file = test::small_model(1, 0);
  file.at("blocks.0.ffn.key.weight").dtype = DType::i32;
  const auto source = checkpoint(file);
  for (const FileFormat format : kFormats) {
    EXPECT_THAT(
        [&] {
          write_checkpoint(*source, folder_ / "out", {format, DType::bf16, {}});
        },
        ThrowsMessage<Error>(AllOf(HasSubstr("blocks.0.ffn.key.weight"), HasSubstr("i32"))));
    EXPECT_THAT(folder_.files(), ElementsAre("source"));
  }
}

}  // namespace
}  // namespace rwkvx
