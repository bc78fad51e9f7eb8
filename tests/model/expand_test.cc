// Block expansion: a model with untrained sparse blocks that computes what it came from.
#include "model/expand.h"

#include <gmock/gmock.h>

#include "base/error.h"
#include "model/checkpoint_writer.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx {
namespace {

using test::distance;

class ExpandTest : public testing::TestWithParam<std::tuple<const char*, Precision, int64_t>> {};

TEST_P(ExpandTest, LogitsStayTheSame) {
  const auto& [backend, precision, sparse_blocks] = GetParam();
  const test::TemporaryFolder folder;
  test::small_model(3, 0, DType::bf16).write(folder / "plain.safetensors");
  const auto source = open_checkpoint(folder / "plain.safetensors");
  WriteOptions write;
  write.format = FileFormat::pth;
  write_checkpoint(expand(*source, {sparse_blocks, {16, 2}}), folder / "expanded.pth", write);

  const auto plain = test::open_model(folder / "plain.safetensors", backend, precision);
  const auto expanded = test::open_model(folder / "expanded.pth", backend, precision, {16, 2});
  EXPECT_EQ(expanded->config().sparse_blocks, sparse_blocks);
  const auto tokens = test::random_tokens(70, plain->config().vocab, 1);
  State a = plain->new_state(), b = expanded->new_state();
  EXPECT_TRUE(distance(test::run(*expanded, b, tokens), test::run(*plain, a, tokens)).bitwise);
}

INSTANTIATE_TEST_SUITE_P(All, ExpandTest,
                         testing::Combine(testing::Values("reference", "cpu"),
                                          testing::Values(Precision::f32, Precision::bf16),
                                          testing::Values(1, 2, 3)));

/// What the new blocks hold, by the definition.
TEST(Expand, CopiesAndZeroes) {
  const auto source = open_checkpoint(test::data("goldens/rwkv7/model.safetensors"));
  const Checkpoint expanded = expand(*source, {2, {64, 4}});
  EXPECT_EQ(expanded.config.chunk_size, 64);
  EXPECT_EQ(expanded.config.top_k, 4);
  const auto bytes = [&](const std::string& name) {
    const auto raw = expanded.catalog.find(name)->data.raw();
    return std::vector<std::byte>(raw.begin(), raw.end());
  };
  for (const std::string block : {"0", "1"}) {
    for (const char* tail : {"ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias", "att.receptance.weight",
                             "att.key.weight", "att.value.weight", "ffn.x_k", "ffn.key.weight"}) {
      EXPECT_EQ(bytes("moba." + block + "." + tail), bytes("blocks." + block + "." + tail)) << tail;
    }
    for (const char* tail : {"att.output.weight", "ffn.value.weight"}) {
      const auto zero = bytes("moba." + block + "." + tail);
      EXPECT_EQ(zero.size(), bytes("blocks." + block + "." + tail).size());
      EXPECT_THAT(zero, testing::Each(std::byte{0})) << tail;
    }
  }
}

TEST(Expand, WhereAskedTo) {
  const test::TemporaryFolder folder;
  test::small_model(3, 0).write(folder / "plain.safetensors");
  const auto source = open_checkpoint(folder / "plain.safetensors");
  const auto bytes = [](const Checkpoint& model, const std::string& name) {
    const auto raw = model.catalog.find(name)->data.raw();
    return std::vector<std::byte>(raw.begin(), raw.end());
  };
  const auto plain = test::open_model(folder / "plain.safetensors", "cpu", Precision::f32);
  const auto tokens = test::random_tokens(70, plain->config().vocab, 1);
  State a = plain->new_state();
  const auto logits = test::run(*plain, a, tokens);
  for (const FileFormat format : {FileFormat::safetensors, FileFormat::gguf}) {
    const Expansion expansion{.sparse_blocks = 2, .chunks = {16, 2}, .sparse_after = "2,2"};
    WriteOptions write;
    write.format = format;
    write_checkpoint(expand(*source, expansion), folder / "out", write);
    const auto out = open_checkpoint(folder / "out");
    EXPECT_EQ(sparse_places(out->config), "2,2");
    for (const char* block : {"moba.0.", "moba.1."})
      EXPECT_EQ(bytes(*out, std::string(block) + "ffn.key.weight"),
                bytes(*source, "blocks.1.ffn.key.weight"));
    const auto expanded = test::open_model(folder / "out", "cpu", Precision::f32);
    State b = expanded->new_state();
    EXPECT_TRUE(distance(test::run(*expanded, b, tokens), logits).bitwise);
  }
}

TEST(Expand, RefusesWhatCannotBe) {
  const auto plain = open_checkpoint(test::data("goldens/rwkv7/model.safetensors"));
  for (const int64_t blocks : {0, -1, 3}) {
    EXPECT_THAT([&] { expand(*plain, {blocks}); },
                testing::ThrowsMessage<Error>(testing::HasSubstr("--sparse-blocks")));
  }
  const auto hybrid = open_checkpoint(test::data("goldens/rwkvx/model.safetensors"), {16, 3});
  EXPECT_THAT([&] { expand(*hybrid, {1}); }, testing::ThrowsMessage<Error>(testing::HasSubstr("already")));
}

}  // namespace
}  // namespace rwkvx
