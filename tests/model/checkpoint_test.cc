// Checkpoints of every dialect load as one model; wrong ones are refused by name.
#include "model/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <limits>

#include "base/error.h"
#include "model/checkpoint_writer.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx {
namespace {

using test::TensorFile;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

constexpr size_t kTokens = 24;

class CheckpointTest : public testing::Test {
 protected:
  Path path(const std::string& name = "model.safetensors") const { return folder_ / name; }

  /// Logits of a few tokens on the reference backend.
  static std::vector<float> logits(const Path& path, const CheckpointOptions& options = {}) {
    const auto model = test::open_model(path, "reference", Precision::f32, options);
    State state = model->new_state();
    return test::run(*model, state, test::random_tokens(kTokens, model->config().vocab, 5));
  }
  static uint64_t fingerprint(const Path& path, const CheckpointOptions& options = {}) {
    return test::open_model(path, "reference", Precision::f32, options)->fingerprint();
  }
  static void load(const Path& path) { test::open_model(path, "reference", Precision::f32); }

  /// Loading the changed file fails with a message that says all of this in one line.
  template <typename... Parts>
  void expect_refused(const TensorFile& file, const Parts&... parts) const {
    file.write(path());
    EXPECT_THAT(
        [&] { load(path()); },
        ThrowsMessage<Error>(AllOf(HasSubstr(path().string()), Not(HasSubstr("\n")), HasSubstr(parts)...)));
  }

  const test::TemporaryFolder folder_;
};

// ---- One model, many files
// ------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, EveryDialectOfAGoldenIsTheSameModel) {
  const Path golden = test::data("goldens/rwkv7/model.safetensors");
  const TensorFile rwkv = TensorFile::read(golden);
  const std::vector<float> expected = logits(golden);
  const uint64_t expected_fingerprint = fingerprint(golden);
  const auto expect_equal = [&](const Path& file, Dialect dialect) {
    SCOPED_TRACE(file.filename());
    const auto checkpoint = open_checkpoint(file);
    EXPECT_EQ(checkpoint->dialect, dialect);
    EXPECT_EQ(checkpoint->config, open_checkpoint(golden)->config);
    EXPECT_TRUE(test::distance(logits(file), expected).bitwise);
    EXPECT_EQ(fingerprint(file), expected_fingerprint);
  };
  rwkv.write(path("rwkv.pth"), FileFormat::pth);
  expect_equal(path("rwkv.pth"), Dialect::rwkv);
  test::as_fla(rwkv, false).write(path("fla-2.safetensors"));
  expect_equal(path("fla-2.safetensors"), Dialect::fla);
  test::as_fla(rwkv, true).write(path("fla-1.safetensors"));
  expect_equal(path("fla-1.safetensors"), Dialect::fla);
  write_checkpoint(*open_checkpoint(golden), path("rwkv.gguf"), {});
  expect_equal(path("rwkv.gguf"), Dialect::gguf);
}

TEST_F(CheckpointTest, EveryFormatOfAHybridIsTheSameModel) {
  const CheckpointOptions chunks{8, 2};
  const Path golden = test::data("goldens/rwkvx/model.safetensors");
  const std::vector<float> expected = logits(golden, chunks);
  EXPECT_TRUE(test::distance(logits(test::data("goldens/rwkvx/model.pth"), chunks), expected).bitwise);
  write_checkpoint(*open_checkpoint(golden, chunks), path("model.gguf"), {});
  EXPECT_TRUE(test::distance(logits(path("model.gguf")), expected).bitwise);  // it records the chunk settings
  EXPECT_EQ(fingerprint(path("model.gguf")), fingerprint(golden, chunks));
  EXPECT_FALSE(
      test::distance(logits(path("model.gguf"), {4, 2}), expected).bitwise);  // and they can be overridden
}

TEST_F(CheckpointTest, FingerprintTellsModelsApart) {
  TensorFile file = test::small_model(2, 1);
  file.write(path());
  const uint64_t original = fingerprint(path());
  EXPECT_EQ(fingerprint(path()), original);
  EXPECT_NE(fingerprint(path(), {64, 3}), original) << "another chunk size";
  EXPECT_NE(fingerprint(path(), {2048, 4}), original) << "another top-k";
  for (const char* name :
       {"rwkv.head.weight", "rwkv.blocks.1.att.w1", "moba.0.ln2.bias", "rwkv.blocks.0.ffn.x_k"}) {
    TensorFile changed = file;
    changed.at(name).bytes.back() ^= std::byte{1};
    changed.write(path());
    EXPECT_NE(fingerprint(path()), original) << name;
  }
}

TEST_F(CheckpointTest, PrefixIsOptional) {
  TensorFile hybrid = test::small_model(2, 1);
  hybrid.write(path("with"));
  for (auto& tensor : hybrid.tensors) {
    if (tensor.name.starts_with("rwkv.")) tensor.name.erase(0, 5);
  }
  hybrid.write(path("without"));
  EXPECT_TRUE(test::distance(logits(path("without")), logits(path("with"))).bitwise);

  TensorFile plain = test::small_model(2, 0);
  plain.write(path("without"));
  for (auto& tensor : plain.tensors) tensor.name = "rwkv." + tensor.name;
  plain.write(path("with"));
  EXPECT_TRUE(test::distance(logits(path("without")), logits(path("with"))).bitwise);
}

TEST_F(CheckpointTest, UnusedValueResidualOfTheFirstBlockIsIgnored) {
  TensorFile file = test::small_model(2, 0);
  file.write(path());
  const std::vector<float> expected = logits(path());
  TensorFile with_dummies = file;
  with_dummies.add("blocks.0.att.v0", {1, 1, 64}, 3);
  with_dummies.add("blocks.0.att.v1", {64, 7}, 3);  // of any rank
  with_dummies.add("blocks.0.att.v2", {7, 64}, 3);
  with_dummies.write(path());
  EXPECT_TRUE(test::distance(logits(path()), expected).bitwise);

  TensorFile fla = test::as_fla(file, false);
  fla.add("model.layers.0.attn.v_lora.lora.0.weight", {3, 64}, 3);
  fla.add("model.layers.0.attn.v_lora.lora.2.weight", {64, 3}, 3);
  fla.add("model.layers.0.attn.v_lora.lora.2.bias", {64}, 3);
  fla.write(path());
  EXPECT_TRUE(test::distance(logits(path()), expected).bitwise);
}

TEST_F(CheckpointTest, VectorsMayHaveLeadingOnes) {
  TensorFile file = test::small_model(2, 0);
  file.write(path());
  const std::vector<float> expected = logits(path());
  file.at("blocks.0.att.x_r").shape = {64};
  file.at("blocks.1.att.w0").shape = {1, 64};
  file.at("blocks.1.ffn.x_k").shape = {64};
  file.at("blocks.0.att.r_k").shape = {64};
  file.at("blocks.0.ln1.weight").shape = {1, 1, 64};
  file.write(path());
  EXPECT_TRUE(test::distance(logits(path()), expected).bitwise);
}

TEST_F(CheckpointTest, OneLayerHasNoValueResidual) {
  test::small_model(1, 0).write(path());
  EXPECT_EQ(open_checkpoint(path())->config.value_rank, 0);
  EXPECT_EQ(logits(path()).size(), kTokens * 256);
}

TEST_F(CheckpointTest, TypesMayBeMixed) {
  TensorFile file = test::small_model(2, 1, DType::bf16);
  file.write(path());
  const std::vector<float> expected = logits(path());
  for (const char* name : {"rwkv.emb.weight", "rwkv.blocks.1.att.x_r", "rwkv.blocks.0.ffn.key.weight"}) {
    file.convert(name, DType::f32);
  }
  file.convert("moba.0.ln1.weight", DType::f16);  // gains around 1 in bf16 fit into f16
  file.write(path());
  EXPECT_TRUE(test::distance(logits(path()), expected).bitwise);
}

// ---- Chunk settings
// ---------------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, ChunkSettingsNotRecordedAreAssumedWithAWarning) {
  TensorFile file = test::small_model(2, 1);
  file.metadata.clear();
  file.write(path());
  testing::internal::CaptureStderr();
  const auto checkpoint = open_checkpoint(path());
  const std::string warning = testing::internal::GetCapturedStderr();
  EXPECT_EQ(checkpoint->config.chunk_size, 2048);
  EXPECT_EQ(checkpoint->config.top_k, 3);
  EXPECT_FALSE(checkpoint->chunk_settings_recorded);
  EXPECT_THAT(warning, AllOf(HasSubstr(path().string()), HasSubstr("2048"), HasSubstr("--chunk-size")));
}

TEST_F(CheckpointTest, ChunkSettingsAreRecordedAndCanBeOverridden) {
  TensorFile file = test::small_model(2, 1);
  file.metadata = {{"rwkvx.chunk_size", std::string("32")}, {"rwkvx.top_k", std::string("5")}};
  file.write(path());
  testing::internal::CaptureStderr();
  const auto recorded = open_checkpoint(path());
  const auto overridden = open_checkpoint(path(), {16, 2});
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_TRUE(recorded->chunk_settings_recorded);
  EXPECT_EQ(recorded->config.chunk_size, 32);
  EXPECT_EQ(recorded->config.top_k, 5);
  EXPECT_EQ(overridden->config.chunk_size, 16);
  EXPECT_EQ(overridden->config.top_k, 2);
}

TEST_F(CheckpointTest, PlainModelsNeedNoChunkSettings) {
  test::small_model(2, 0).write(path());
  testing::internal::CaptureStderr();
  open_checkpoint(path());
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(CheckpointTest, ImpossibleChunkSettings) {
  TensorFile file = test::small_model(2, 1);
  for (const char* bad : {"0", "-3", "99999999999", "many", "16x", ""}) {
    SCOPED_TRACE(bad);
    file.metadata = {{"rwkvx.chunk_size", std::string(bad)}, {"rwkvx.top_k", std::string("3")}};
    expect_refused(file, "chunk");
    file.metadata = {{"rwkvx.chunk_size", std::string("16")}, {"rwkvx.top_k", std::string(bad)}};
    expect_refused(file, "--chunk-top-k");
  }
  file.metadata.clear();
  file.write(path());
  for (const int64_t bad : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_THAT([&] { open_checkpoint(path(), {bad, 3}); }, ThrowsMessage<Error>(HasSubstr("--chunk-size")));
    EXPECT_THAT(
        [&] {
          open_checkpoint(path(), {16, bad});
        },
        ThrowsMessage<Error>(HasSubstr("--chunk-top-k")));
  }
}

TEST_F(CheckpointTest, ImpossiblePlacesOfSparseBlocks) {
  TensorFile file = test::small_model(3, 2);
  file.metadata.emplace_back("rwkvx.sparse_after", std::string());
  for (const char* bad : {"2,1", "3", "0,1", "1,4", "1,2,3", "here"}) {
    SCOPED_TRACE(bad);
    file.metadata.back().second = std::string(bad);
    expect_refused(file, "rwkvx.sparse_after");
  }
  file.metadata.back().second = std::string("1,3");
  file.write(path());
  EXPECT_EQ(open_checkpoint(path())->config.sparse_after, (std::vector<int64_t>{1, 3}));
}

// ---- Tensors that are missing, too many or misshaped
// ----------------------------------------------------------------------

TEST_F(CheckpointTest, EveryMissingTensorIsNamed) {
  const TensorFile file = test::small_model(2, 1);
  for (const auto& tensor : file.tensors) {
    SCOPED_TRACE(tensor.name);
    TensorFile changed = file;
    changed.erase(tensor.name);
    // Without the embedding the prefix is not known either.
    expect_refused(changed, tensor.name == "rwkv.emb.weight" ? "emb.weight" : tensor.name);
  }
}

TEST_F(CheckpointTest, EveryMissingTensorOfFlaIsNamed) {
  const TensorFile file = test::as_fla(test::small_model(2, 0), false);
  for (const auto& tensor : file.tensors) {
    if (tensor.name == "model.embeddings.weight") continue;  // what tells the dialect
    SCOPED_TRACE(tensor.name);
    TensorFile changed = file;
    changed.erase(tensor.name);
    expect_refused(changed, tensor.name);
  }
}

TEST_F(CheckpointTest, EveryMissingTensorOfGgufIsNamed) {
  test::small_model(2, 1).write(path("source"));
  write_checkpoint(*open_checkpoint(path("source"), {16, 3}), path("model.gguf"), {});
  TensorFile file = TensorFile::read(path("model.gguf"));
  file.metadata = {{"general.architecture", std::string("rwkvx")},
                   {"rwkvx.chunk_size", uint64_t{16}},
                   {"rwkvx.top_k", uint64_t{3}}};
  for (const auto& tensor : file.tensors) {
    SCOPED_TRACE(tensor.name);
    TensorFile changed = file;
    changed.erase(tensor.name);
    changed.write(path("changed.gguf"), FileFormat::gguf);
    EXPECT_THAT([&] { load(path("changed.gguf")); },
                ThrowsMessage<Error>(AllOf(HasSubstr("changed.gguf"), HasSubstr(tensor.name))));
  }
}

TEST_F(CheckpointTest, ExtraTensorsAreNamed) {
  const TensorFile file = test::small_model(2, 1);
  for (const char* name : {"rwkv.blocks.1.att.surprise", "extra", "moba.0.att.gate",
                           "rwkv.blocks.1.ln0.weight", "optimizer.state.0", "rwkv.blocks.x.ln1.weight"}) {
    SCOPED_TRACE(name);
    TensorFile changed = file;
    changed.add(name, {5, 7}, 1);
    expect_refused(changed, name, "[5, 7]");
  }
}

TEST_F(CheckpointTest, EveryMisshapedTensorIsNamedWithBothShapes) {
  const TensorFile file = test::small_model(2, 1);
  for (const auto& tensor : file.tensors) {
    // The sizes of a model are read from some tensors, so that another one is then the odd one.
    const bool gives_sizes =
        tensor.name == "rwkv.emb.weight" || tensor.name.ends_with("blocks.0.att.w1") ||
        tensor.name.ends_with("blocks.0.att.a1") || tensor.name.ends_with("blocks.0.att.g1") ||
        tensor.name.ends_with("blocks.1.att.v1") || tensor.name.ends_with("blocks.0.ffn.key.weight");
    SCOPED_TRACE(tensor.name);
    TensorFile changed = file;
    TensorFile::Tensor& odd = changed.at(tensor.name);
    std::vector<int64_t> dims(odd.shape.dims().begin(), odd.shape.dims().end());
    dims.back() += 1;
    const Shape wrong{std::span<const int64_t>(dims)};
    const std::string right = odd.shape.str();
    odd.bytes.resize(bytes_of(odd.dtype, wrong.elements()));
    odd.shape = wrong;
    if (gives_sizes) {
      expect_refused(changed, std::to_string(dims.back()));
    } else {
      expect_refused(changed, tensor.name, wrong.str(), right);
    }
  }
}

TEST_F(CheckpointTest, TurnedMatricesAreMisshaped) {
  TensorFile file = test::small_model(2, 0);
  file.transpose("blocks.1.att.w2");
  expect_refused(file, "blocks.1.att.w2", "[64, 4]", "[4, 64]");
  file = test::as_fla(test::small_model(2, 0), false);
  file.transpose("model.layers.1.attn.g_lora.lora.2.weight");
  expect_refused(file, "model.layers.1.attn.g_lora.lora.2.weight", "[10, 64]", "[64, 10]");
}

TEST_F(CheckpointTest, ScalarsAndHighRanks) {
  for (const char* name :
       {"rwkv.emb.weight", "rwkv.blocks.0.att.w1", "rwkv.blocks.1.ln1.bias", "rwkv.head.weight"}) {
    SCOPED_TRACE(name);
    TensorFile file = test::small_model(2, 1);
    TensorFile::Tensor& odd = file.at(name);
    odd.bytes.resize(4);
    odd.shape = {};
    expect_refused(file, name);
    odd.shape = {1, 1, 1, 1};
    expect_refused(file, name);
  }
}

TEST_F(CheckpointTest, EmptyTensors) {
  for (const char* name :
       {"emb.weight", "blocks.0.att.w1", "blocks.0.ffn.key.weight", "head.weight", "ln_out.bias"}) {
    SCOPED_TRACE(name);
    TensorFile file = test::small_model(2, 0);
    TensorFile::Tensor& empty = file.at(name);
    std::vector<int64_t> dims(empty.shape.dims().begin(), empty.shape.dims().end());
    dims[0] = 0;
    empty.bytes.clear();
    empty.shape = Shape(std::span<const int64_t>(dims));
    file.write(path());
    EXPECT_THAT([&] { load(path()); }, ThrowsMessage<Error>(HasSubstr(path().string())));
  }
}

TEST_F(CheckpointTest, TensorsOfWholeNumbers) {
  for (const char* name : {"blocks.1.ln1.weight", "head.weight", "emb.weight", "blocks.0.att.w1"}) {
    SCOPED_TRACE(name);
    TensorFile file = test::small_model(2, 0);
    file.at(name).dtype = DType::i32;
    for (const char* backend : {"reference", "cpu"}) {
      file.write(path());
      EXPECT_THAT([&] { test::open_model(path(), backend, Precision::f32); },
                  ThrowsMessage<Error>(AllOf(HasSubstr(path().string()), HasSubstr(name), HasSubstr("i32"))));
    }
  }
}

// ---- Files that are no RWKV-7
// -------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, ImpossibleBlockNumbers) {
  TensorFile file = test::small_model(2, 0);
  file.add("blocks.4000000000.ln1.weight", {64}, 1);
  expect_refused(file, "4000000000");
  file = test::small_model(2, 0);
  file.add("blocks.99999999999999999999999.ln1.weight", {64}, 1);  // beyond 64 bits
  expect_refused(file, "blocks.99999999999999999999999.ln1.weight");
  file = test::small_model(2, 1);
  file.add("moba.9223372036854775807.ln1.weight", {64}, 1);
  expect_refused(file, "9223372036854775807");
  file = test::small_model(1, 1);
  file.add("moba.1.ln1.weight", {64}, 1);
  expect_refused(file, "2 sparse blocks among 1");
}

TEST_F(CheckpointTest, ChannelsThatAreNoMultipleOfTheHeadSize) {
  TensorFile file = test::small_model(1, 0);
  file.at("emb.weight").shape = {512, 32};
  expect_refused(file, "32 channels", "multiple of 64");
}

TEST_F(CheckpointTest, OtherModelsAreRecognised) {
  TensorFile rwkv6;
  rwkv6.add("emb.weight", {256, 64}, 0);
  rwkv6.add("blocks.0.att.time_maa_x", {1, 1, 64}, 0);
  rwkv6.add("blocks.0.att.time_decay", {1, 1, 64}, 0);
  expect_refused(rwkv6, "RWKV-6");

  TensorFile rwkv5;
  rwkv5.add("emb.weight", {256, 64}, 0);
  rwkv5.add("blocks.0.att.time_mix_k", {1, 1, 64}, 0);
  expect_refused(rwkv5, "RWKV-5");

  TensorFile llama;
  llama.add("model.embed_tokens.weight", {256, 64}, 0);
  llama.add("model.layers.0.self_attn.q_proj.weight", {64, 64}, 0);
  expect_refused(llama, "transformer");

  TensorFile lora;
  lora.add("base_model.lora_A", {4, 64}, 0);
  expect_refused(lora, "base_model.lora_A");

  TensorFile other;
  other.add("tokens", {2, 2}, 0);
  expect_refused(other, "'tokens'");
}

TEST_F(CheckpointTest, GgufOfOtherArchitectures) {
  TensorFile file;
  file.add("token_embd.weight", {256, 64}, 0);
  const auto expect_refused_gguf = [&](const std::string& part) {
    file.write(path("other.gguf"), FileFormat::gguf);
    EXPECT_THAT([&] { load(path("other.gguf")); },
                ThrowsMessage<Error>(AllOf(HasSubstr("other.gguf"), HasSubstr(part), HasSubstr("'rwkv7'"))));
  };
  file.metadata = {{"general.architecture", std::string("llama")}};
  expect_refused_gguf("'llama'");
  file.metadata = {{"general.architecture", std::string("rwkv6\n\x1b[31m")}};
  expect_refused_gguf("'rwkv6\\x0a\\x1b[31m'");
  file.metadata = {};
  expect_refused_gguf("(none)");
  file.metadata = {{"general.architecture", uint64_t{7}}};
  file.write(path("other.gguf"), FileFormat::gguf);
  EXPECT_THAT([&] { load(path("other.gguf")); }, ThrowsMessage<Error>(HasSubstr("general.architecture")));
}

TEST_F(CheckpointTest, VocabularyOfTheWrongType) {
  test::small_model(1, 0).write(path("source"));
  write_checkpoint(*open_checkpoint(path("source")), path("model.gguf"), {});
  TensorFile file = TensorFile::read(path("model.gguf"));
  file.metadata = {{"general.architecture", std::string("rwkv7")},
                   {"tokenizer.ggml.model", std::string("rwkv")},
                   {"tokenizer.ggml.tokens", std::vector<int64_t>{1, 2, 3}}};
  file.write(path("changed.gguf"), FileFormat::gguf);
  EXPECT_THAT([&] { load(path("changed.gguf")); },
              ThrowsMessage<Error>(AllOf(HasSubstr("changed.gguf"), HasSubstr("tokenizer"))));
}

// ---- Weights that are not finite
// ----------------------------------------------------------------------------------------

TEST_F(CheckpointTest, NotFiniteWeightsWarnByName) {
  for (const char* name : {"blocks.1.att.w1", "blocks.0.ffn.x_k", "head.weight", "emb.weight"}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      TensorFile file = test::small_model(2, 0);
      std::memcpy(file.at(name).bytes.data() + 8, &bad, sizeof bad);
      file.write(path());
      testing::internal::CaptureStderr();
      load(path());
      EXPECT_THAT(testing::internal::GetCapturedStderr(),
                  AllOf(HasSubstr(path().string()), HasSubstr(name), HasSubstr(" 1 NaN or infinite")));
    }
  }
  test::small_model(2, 0).write(path());
  testing::internal::CaptureStderr();
  load(path());
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

// ---- Tokens
// ---------------------------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, TokensOutsideTheVocabularyLeaveTheStateAlone) {
  test::small_model(2, 1).write(path());
  for (const char* backend : {"reference", "cpu"}) {
    const auto model = test::open_model(path(), backend, Precision::f32, {4, 2});
    State state = model->new_state();
    const std::vector<int32_t> fine{1, 2, 3, 4, 5};
    test::run(*model, state, fine);
    const std::vector<float> before = test::contents(state);
    for (const int32_t bad :
         {-1, 256, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
      const std::vector<int32_t> tokens{7, 8, bad, 9};
      EXPECT_THAT([&] { test::run(*model, state, tokens); },
                  ThrowsMessage<Error>(
                      AllOf(HasSubstr(std::to_string(bad)), HasSubstr("position 7"), HasSubstr("256"))));
      EXPECT_EQ(state.position(), 5);
      EXPECT_TRUE(test::distance(test::contents(state), before).bitwise);
    }
  }
}

}  // namespace
}  // namespace rwkvx
