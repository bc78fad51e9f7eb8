#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tokenizer/gguf_vocabulary.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {
namespace {

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

/// The ids of texts and of raw bytes, as the Python package `rwkv` gives them.
class WorldGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* const path = std::getenv("RWKVX_WORLD_VOCAB");
    if (path == nullptr) GTEST_SKIP() << "set RWKVX_WORLD_VOCAB to rwkv_vocab_v20230424.txt to run this test";
    world_ = read_world_vocabulary(path);
  }

  static nlohmann::json golden(const char* name) {
    return nlohmann::json::parse(read_file(Path(RWKVX_TEST_DATA) / "goldens" / name));
  }

  void expect_both_directions(const std::string& bytes, const std::vector<TokenId>& ids) {
    EXPECT_EQ(world_->encode(bytes), ids);
    EXPECT_EQ(world_->decode(ids), bytes);
  }

  std::shared_ptr<const Tokenizer> world_;
};

TEST_F(WorldGolden, Texts) {
  const nlohmann::json cases = golden("tokenizer_world.json");
  ASSERT_GT(cases.size(), 100u);
  for (const auto& c : cases) expect_both_directions(c.at("text"), c.at("ids"));
}

TEST_F(WorldGolden, RawBytes) {
  const nlohmann::json cases = golden("tokenizer_world_bytes.json");
  ASSERT_GT(cases.size(), 50u);
  for (const auto& c : cases) expect_both_directions(from_hex(c.at("hex")), c.at("ids"));
}

TEST_F(WorldGolden, TheVocabularyItself) {
  EXPECT_EQ(world_->vocab_size(), 65530);
  EXPECT_EQ(world_->end_of_document(), 0);
  EXPECT_EQ(world_->token_bytes(261), "\n\n");
  for (TokenId id = 1; id < world_->vocab_size(); ++id) {
    const std::string bytes(world_->token_bytes(id));
    ASSERT_EQ(world_->encode(bytes), std::vector<TokenId>{id});
  }
}

TEST_F(WorldGolden, SurvivesGguf) {
  const GgufVocabulary vocabulary = to_gguf_vocabulary(*world_, 65536);
  ASSERT_EQ(vocabulary.tokens.size(), 65536u);
  const auto again = from_gguf_vocabulary(vocabulary);
  ASSERT_EQ(again->vocab_size(), world_->vocab_size());
  for (TokenId id = 0; id < world_->vocab_size(); ++id) {
    ASSERT_EQ(again->token_bytes(id), world_->token_bytes(id));
  }
}

}  // namespace
}  // namespace rwkvx
