// Which tokens a sample holds, and in which order samples come.
#include "training/training_data.h"

#include <gmock/gmock.h>

#include <numeric>
#include <set>

#include "error_of.h"
#include "model/support.h"
#include "training/magic_prime.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

TEST(ShuffledIndex, IsAPermutation) {
  for (const uint64_t count : {1u, 2u, 3u, 4u, 5u, 16u, 17u, 1000u}) {
    for (const uint64_t key : {0u, 1u, 77u}) {
      std::set<uint64_t> seen;
      for (uint64_t i = 0; i < count; ++i) seen.insert(shuffled_index(i, count, key));
      EXPECT_EQ(seen.size(), count);
      EXPECT_EQ(*seen.rbegin(), count - 1);
    }
  }
}

TEST(ShuffledIndex, KeysGiveOtherOrders) {
  int same = 0, neighbours = 0;
  for (uint64_t i = 0; i + 1 < 1000; ++i) {
    same += shuffled_index(i, 1000, 1) == shuffled_index(i, 1000, 2);
    neighbours += shuffled_index(i, 1000, 1) + 1 == shuffled_index(i + 1, 1000, 1);
  }
  // One of 1000 is expected by chance; 11 or more in one case of 10^8.
  EXPECT_LE(same, 10);
  EXPECT_LE(neighbours, 10);
}

class TrainingDataTest : public ::testing::Test {
 protected:
  /// Documents of these lengths, of the tokens 0, 1, 2, ….
  TokenFile file(const std::vector<size_t>& sizes) const {
    TokenFileWriter writer(folder_ / "data", TokenType::u16);
    TokenId next = 0;
    for (const size_t size : sizes) {
      std::vector<TokenId> tokens(size);
      std::iota(tokens.begin(), tokens.end(), next);
      next += static_cast<TokenId>(size);
      writer.append(tokens);
      writer.end_document();
    }
    writer.commit();
    return TokenFile::open(folder_ / "data");
  }
  const test::TemporaryFolder folder_;
};

TEST_F(TrainingDataTest, TargetsAreTheNextTokens) {
  const auto data = make_token_windows(file({21}), {.context = 4, .order = Order::sequential, .vocab = 100});
  EXPECT_EQ(data->epoch(), 5u);
  TrainBatch batch;
  data->add(0, batch);
  data->add(4, batch);
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{0, 1, 2, 3, 16, 17, 18, 19}));
  EXPECT_EQ(batch.targets, (std::vector<int32_t>{1, 2, 3, 4, 17, 18, 19, 20}));
  EXPECT_EQ(batch.offsets, (std::vector<int64_t>{0, 4, 8}));
  EXPECT_EQ(batch.counted(), 8);
  EXPECT_TRUE(batch.weights.empty() && batch.resets.empty());
  batch.clear();
  data->add(5, batch);
  EXPECT_EQ(batch.tokens.front(), 0) << "a second epoch";
}

TEST_F(TrainingDataTest, EveryWindowOnceInEachEpoch) {
  const auto data = make_token_windows(file({50, 51}), {.context = 2, .seed = 5, .vocab = 101});
  std::vector<int32_t> orders[2];
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    TrainBatch batch;
    for (uint64_t i = 0; i < 50; ++i) data->add(50 * epoch + i, batch);
    orders[epoch] = batch.tokens;
    std::sort(batch.tokens.begin(), batch.tokens.end());
    for (int32_t i = 0; i < 100; ++i) EXPECT_EQ(batch.tokens[static_cast<size_t>(i)], i);
  }
  EXPECT_NE(orders[0], orders[1]);
}

TEST_F(TrainingDataTest, MagicOrder) {
  const auto data = make_token_windows(file({100}), {.context = 4, .order = Order::magic, .vocab = 100});
  EXPECT_EQ(data->epoch(), 23u);  // below 100 / 4 - 1 = 24
  for (uint64_t i = 0; i < 30; ++i) {
    TrainBatch batch;
    data->add(i, batch);
    EXPECT_EQ(batch.tokens[0], static_cast<int32_t>(4 * magic_window(23, i)));
  }
}

TEST_F(TrainingDataTest, ResetsWhereDocumentsBegin) {
  // Documents begin at 0, 4, 5, 11.
  const auto data = make_token_windows(
      file({4, 1, 6, 9}), {.context = 4, .order = Order::sequential, .vocab = 100, .document_resets = true});
  TrainBatch batch;
  for (uint64_t i = 0; i < 4; ++i) data->add(i, batch);
  EXPECT_EQ(batch.resets, (std::vector<uint8_t>{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}));
}

TEST_F(TrainingDataTest, WeightsAndResetsOfTheFile) {
  std::vector<TokenId> tokens(13);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::vector<TokenMark> marks(13);
  for (size_t i = 0; i < 13; ++i) marks[i] = {static_cast<float>(i % 4), i == 5 || i == 9};
  TokenFileWriter writer(folder_ / "data", TokenType::u16);
  writer.append(tokens, marks);
  writer.commit();
  const auto marked = TokenFile::open(folder_ / "data");
  const auto data = make_token_windows(marked, {.context = 6, .order = Order::sequential, .vocab = 100});
  const auto plain = make_token_windows(file({9}), {.context = 4, .order = Order::sequential, .vocab = 100});
  TrainBatch batch;
  plain->add(0, batch);  // without weights, before and behind
  data->add(0, batch);
  data->add(1, batch);
  plain->add(0, batch);
  // A row's weight is that of the token behind it; a token that does not count is no target.
  EXPECT_EQ(batch.weights, (std::vector<float>{1, 1, 1, 1, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 1, 1, 1}));
  EXPECT_EQ(batch.targets,
            (std::vector<int32_t>{1, 2, 3, 4, 1, 2, 3, -1, 5, 6, 7, -1, 9, 10, 11, -1, 1, 2, 3, 4}));
  EXPECT_EQ(batch.resets, (std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(batch.weight(), 4 + 9 + 9 + 4);
  const auto both = make_token_windows(
      marked, {.context = 6, .order = Order::sequential, .vocab = 100, .document_resets = true});
  batch.clear();
  both->add(0, batch);
  EXPECT_EQ(batch.resets, (std::vector<uint8_t>{0, 0, 0, 0, 0, 1}));
}

TEST_F(TrainingDataTest, DataThatDoNotFit) {
  EXPECT_THAT(error_of([&] { make_token_windows(file({4}), {.context = 4, .vocab = 100}); }),
              HasSubstr("--context"));
  EXPECT_THAT(
      error_of([&] { make_token_windows(file({8}), {.context = 4, .order = Order::magic, .vocab = 100}); }),
      HasSubstr("--order shuffled"));
  const auto data = make_token_windows(file({9}), {.context = 8, .vocab = 8});
  TrainBatch batch;
  EXPECT_THAT(error_of([&] { data->add(0, batch); }), HasSubstr("vocabulary of 8"));
}

}  // namespace
}  // namespace rwkvx
