// Which matrix gets which type, and that quantised models of every kind load and compute the same on both
// backends.
#include "model/quantise_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "model/checkpoint_writer.h"
#include "model/support.h"
#include "model/tensor_file.h"
#include "model/weights.h"

namespace rwkvx {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TensorSpec spec(const std::string& name, Shape shape, Role role) { return {name, shape, role}; }

TEST(QuantisePlan, TypesByRole) {
  const TensorSpec projection = spec("blocks.1.att.value.weight", {768, 768}, Role::projection);
  const TensorSpec head = spec("head.weight", {65536, 768}, Role::head);
  const TensorSpec embedding = spec("emb.weight", {65536, 768}, Role::embedding);
  const TensorSpec low_rank = spec("blocks.1.att.w2", {768, 64}, Role::low_rank);
  struct Row {
    DType type, projection, fine;
  };
  for (const Row& row :
       {Row{DType::q8_0, DType::q8_0, DType::q8_0}, Row{DType::q4_0, DType::q4_0, DType::q8_0},
        Row{DType::q4_k, DType::q4_k, DType::q6_k}, Row{DType::q5_k, DType::q5_k, DType::q6_k},
        Row{DType::q6_k, DType::q6_k, DType::q8_0}}) {
    const QuantisePlan plan{row.type, {}};
    EXPECT_EQ(plan.type_of(projection, DType::f32), row.projection);
    EXPECT_EQ(plan.type_of(head, DType::f32), row.fine);
    EXPECT_EQ(plan.type_of(embedding, DType::f32), row.fine);
    EXPECT_EQ(plan.type_of(low_rank, DType::f32), DType::bf16);
    EXPECT_EQ(plan.type_of(low_rank, DType::bf16), DType::bf16);
    EXPECT_EQ(plan.type_of(low_rank, DType::f16), DType::f16);
  }
  const QuantisePlan plain{DType::f16, {}};
  EXPECT_EQ(plain.type_of(low_rank, DType::f32), DType::f16);
  EXPECT_EQ(plain.type_of(head, DType::bf16), DType::f16);
}

TEST(QuantisePlan, RowsThatAreNoWholeBlocks) {
  const QuantisePlan plan{DType::q4_k, {}};
  EXPECT_EQ(plan.type_of(spec("a", {64, 320}, Role::projection), DType::f32), DType::q8_0);
  EXPECT_EQ(plan.type_of(spec("a", {64, 80}, Role::projection), DType::f32), DType::bf16);
  EXPECT_EQ(plan.type_of(spec("a", {64, 80}, Role::projection), DType::f16), DType::f16);
}

TEST(QuantisePlan, TheFirstOverrideThatFits) {
  const QuantisePlan plan{
      DType::q4_0,
      {{"blocks.0.*", std::nullopt}, {"blocks.*.ffn.value.weight", DType::q6_k}, {"blocks.*", DType::f16}}};
  const auto type = [&](const std::string& name) {
    return plan.type_of(spec(name, {256, 256}, Role::projection), DType::f32);
  };
  EXPECT_EQ(type("blocks.0.ffn.value.weight"), DType::f32);
  EXPECT_EQ(type("blocks.10.ffn.value.weight"), DType::q6_k);
  EXPECT_EQ(type("blocks.10.ffn.key.weight"), DType::f16);
  EXPECT_EQ(type("moba.0.ffn.key.weight"), DType::q4_0);
}

class QuantisedModelTest : public testing::TestWithParam<DType> {
 protected:
  /// Of 128 channels and 512 in the channel mix: blocks of 256 fit ffn.value only, q8_0 takes the rest.
  Path quantised(const std::string& model) const {
    const auto source = open_checkpoint(test::data("goldens/" + model + "/model.safetensors"), {16, 3});
    const Path path = folder_ / (model + ".gguf");
    test::write_quantised(*source, GetParam(), path);
    return path;
  }
  const test::TemporaryFolder folder_;
};

/// Embedding, blocks, sparse attention and head; the cpu backend in float32 multiplies with the very values
/// of the blocks, so that only the order of sums differs (docs/decisions/0007).
TEST_P(QuantisedModelTest, BackendsAgree) {
  for (const char* name : {"rwkv7", "rwkvx"}) {
    SCOPED_TRACE(name);
    const Path path = quantised(name);
    const auto checkpoint = open_checkpoint(path);
    int64_t quantised_tensors = 0;
    for (const CatalogTensor& t : checkpoint->catalog.tensors())
      quantised_tensors += is_quantised(t.data.dtype());
    EXPECT_GE(quantised_tensors, 2 + 6 * checkpoint->config.layers);
    const auto cpu = test::open_model(path, "cpu", Precision::f32);
    const auto reference = test::open_model(path, "reference", Precision::f32);
    const auto tokens = test::random_tokens(24, checkpoint->config.vocab, 5);
    State a = cpu->new_state(), b = reference->new_state(), c = cpu->new_state();
    const auto want = test::run(*reference, b, tokens);
    EXPECT_LE(test::distance(test::run(*cpu, a, tokens), want).max, 1e-4);
    const std::vector<size_t> ones(tokens.size(), 1);
    EXPECT_LE(test::distance(test::run(*cpu, c, tokens, ones), want).max, 1e-4);
  }
}

/// And back: a float copy of the quantised model is the same model.
TEST_P(QuantisedModelTest, DequantisedCopiesAreTheSameModel) {
  const Path path = quantised("rwkvx");
  const auto checkpoint = open_checkpoint(path);
  EXPECT_THAT(
      [&] {
        write_checkpoint(*checkpoint, folder_ / "x.pth", {FileFormat::pth, {}, {}});
      },
      ThrowsMessage<Error>(HasSubstr("--dtype")));
  EXPECT_THAT(folder_.files(), testing::ElementsAre("rwkvx.gguf"));
  write_checkpoint(*checkpoint, folder_ / "f32.safetensors", {FileFormat::safetensors, DType::f32, {}});
  write_checkpoint(*checkpoint, folder_ / "copy.gguf", {});
  const auto tokens = test::random_tokens(10, checkpoint->config.vocab, 6);
  std::vector<std::vector<float>> logits;
  for (const char* file : {"rwkvx.gguf", "copy.gguf", "f32.safetensors"}) {
    const auto model = test::open_model(folder_ / file, "cpu", Precision::f32);
    State state = model->new_state();
    logits.push_back(test::run(*model, state, tokens));
  }
  EXPECT_TRUE(test::distance(logits[1], logits[0]).bitwise);
  EXPECT_LE(test::distance(logits[2], logits[0]).max, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Types, QuantisedModelTest,
                         testing::Values(DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& one) { return std::string(name(one.param)); });

TEST(QuantisedModel, ScalesThatAreTooLargeAreRefusedByName) {
  test::TensorFile file = test::small_model(1, 0);
  const float large = 1e30f;
  std::memcpy(file.at("blocks.0.ffn.key.weight").bytes.data(), &large, sizeof large);
  const test::TemporaryFolder folder;
  file.write(folder / "source");
  const QuantisePlan plan{DType::q8_0, {}};
  EXPECT_THAT(
      [&] {
        write_checkpoint(*open_checkpoint(folder / "source"), folder / "out.gguf",
                         {FileFormat::gguf, {}, {}, [&](const TensorSpec& s, DType found) {
                            return plan.type_of(s, found);
                          }});
      },
      ThrowsMessage<Error>(HasSubstr("--keep blocks.0.ffn.key.weight")));
  EXPECT_THAT(folder.files(), testing::ElementsAre("source"));
}

}  // namespace
}  // namespace rwkvx
