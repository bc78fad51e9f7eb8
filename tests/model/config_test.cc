// Where sparse blocks are among RWKV-7 blocks.
#include "model/config.h"

#include <gmock/gmock.h>

#include "base/error.h"

namespace rwkvx {
namespace {

ModelConfig sizes(int64_t layers, int64_t sparse_blocks) {
  ModelConfig config;
  config.layers = layers;
  config.sparse_blocks = sparse_blocks;
  return config;
}

std::string order(const ModelConfig& config) {
  std::string text;
  int64_t recurrent = 0, sparse = 0;
  for (const BlockRef& block : block_order(config)) {
    text += block.sparse ? 'S' : 'R';
    EXPECT_EQ(block.index, block.sparse ? sparse++ : recurrent++);
  }
  return text;
}

std::string order(int64_t layers, int64_t sparse_blocks, std::string_view after) {
  ModelConfig config = sizes(layers, sparse_blocks);
  place_sparse_blocks(config, after);
  EXPECT_EQ(sparse_places(config), after);
  return order(config);
}

TEST(BlockOrder, SpreadEvenly) {
  EXPECT_EQ(order(sizes(3, 0)), "RRR");
  EXPECT_EQ(order(sizes(4, 2)), "RRSRRS");
  EXPECT_EQ(order(sizes(5, 2)), "RRSRRSR");
  EXPECT_EQ(order(sizes(3, 3)), "RSRSRS");
  EXPECT_EQ(order(sizes(12, 4)), "RRRSRRRSRRRSRRRS");
}

TEST(BlockOrder, WhereTheyAreSaidToBe) {
  EXPECT_EQ(order(4, 2, "1,2"), "RSRSRR");
  EXPECT_EQ(order(4, 2, "4,4"), "RRRRSS");
  EXPECT_EQ(order(4, 3, "1,1,3"), "RSSRRSR");
  EXPECT_EQ(order(4, 1, "3"), "RRRSR");
}

TEST(BlockOrder, TheEvenSpreadIsTheSameHoweverItIsSaid) {
  ModelConfig config = sizes(5, 2);
  place_sparse_blocks(config, "2,4");
  EXPECT_EQ(config, sizes(5, 2));
  place_sparse_blocks(config, "1,5");
  EXPECT_NE(config, sizes(5, 2));
  place_sparse_blocks(config, "");
  EXPECT_EQ(config, sizes(5, 2));
}

TEST(BlockOrder, PlacesThatCannotBe) {
  for (const char* text : {"2", "2,4,4", "0,2", "2,5", "4,2", "-1,2", "2,", ",2", "2;4", "2, 4", "a,b",
                           "2,4 ", ",", "99999999999999999999,2", "+2,4"}) {
    SCOPED_TRACE(text);
    ModelConfig config = sizes(4, 2);
    EXPECT_THAT([&] { place_sparse_blocks(config, text); },
                testing::ThrowsMessage<Error>(testing::HasSubstr("--sparse-after")));
  }
  ModelConfig plain = sizes(4, 0);
  EXPECT_THROW(place_sparse_blocks(plain, "2"), Error);
}

}  // namespace
}  // namespace rwkvx
