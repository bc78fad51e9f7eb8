// What KV stores keep, and what happens when there is no room.
#include "model/kv_store.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "base/error.h"
#include "model/state_file.h"
#include "model/support.h"
#include "ops/forwarding_ops.h"
#include "tensor/file_size_limit.h"
#include "tensor/host_pages.h"

namespace rwkvx {
namespace {

using test::distance;
using testing::HasSubstr;
using testing::ThrowsMessage;

KvOptions bounded(int64_t max, int64_t window, int64_t min) {
  KvOptions options;
  options.policy = KvPolicy::bounded;
  options.max = max;
  options.window = window;
  options.min = min;
  return options;
}

/// The first `count` of `tokens` when they are sorted by the largest score nearby.
std::vector<int32_t> first_of(std::vector<int32_t> tokens, const std::vector<float>& scores, int64_t count,
                              int64_t neighbours) {
  const auto n = static_cast<int64_t>(scores.size());
  const auto most = [&](int32_t i) {
    return *std::max_element(scores.begin() + std::max<int64_t>(0, i - neighbours),
                             scores.begin() + std::min(n, i + neighbours + 1));
  };
  std::sort(tokens.begin(), tokens.end(),
            [&](int32_t a, int32_t b) { return std::pair(most(a), a) > std::pair(most(b), b); });
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

TEST(Staying, IsWhatSortingGives) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const size_t n = 1 + random() % 60;
    std::vector<float> votes, distinctness;
    for (size_t i = 0; i < n; ++i) {  // many are equal
      votes.push_back(static_cast<float>(random() % 8));
      distinctness.push_back(static_cast<float>(random() % 8) / 4 - 1);
    }
    const auto count = static_cast<int64_t>(random() % (n + 1)),
               neighbours = static_cast<int64_t>(random() % 4);
    std::vector<int32_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    std::vector<int32_t> by_votes = first_of(all, votes, count, neighbours);
    std::vector<int32_t> by_keys = first_of(all, distinctness, count, neighbours);
    std::vector<int32_t> by_both = first_of(all, votes, count / 2, neighbours);
    std::vector<int32_t> others;
    for (const int32_t i : all) {
      if (std::find(by_both.begin(), by_both.end(), i) == by_both.end()) others.push_back(i);
    }
    others = first_of(others, distinctness, count - count / 2, neighbours);
    by_both.insert(by_both.end(), others.begin(), others.end());
    for (auto* tokens : {&by_votes, &by_keys, &by_both}) std::sort(tokens->begin(), tokens->end());
    EXPECT_EQ(staying(votes, {}, count, neighbours), by_votes);
    EXPECT_EQ(staying({}, distinctness, count, neighbours), by_keys);
    EXPECT_EQ(staying(votes, distinctness, count, neighbours), by_both);
  }
}

TEST(Staying, NumbersThatAreNone) {
  const std::vector<float> votes(50, NAN), distinctness(50, NAN);
  EXPECT_THAT(staying(votes, distinctness, 20, 3), testing::SizeIs(20));
  std::vector<float> some = votes;
  some[7] = 1;
  EXPECT_THAT(staying(some, distinctness, 2, 0), testing::Contains(7));
}

/// Keys are random but for one run of tokens, which every query looks for. Those of another point where no
/// other does, which no query cares about.
class BoundedStoreTest : public testing::Test {
 protected:
  static constexpr int64_t kHeads = 2, C = kHeads * kHeadSize, kChunk = 8, kRun = 3;

  void append(KvStore& store, int64_t tokens) {
    for (int64_t t = 0; t < tokens; ++t) {
      Buffer q(DType::f32, {1, C}), k(DType::f32, {1, C}), v(DType::f32, {1, C});
      for (int64_t c = 0; c < C; ++c) {
        q.as<float>()[c] = c % 2 == 0 ? 1 : -1;
        const float wanted = q.as<float>()[c] * 0.5f,
                    noise = static_cast<float>(random_() % 1000) / 1000 - 0.5f;
        const auto in_run = [&](int64_t first) { return next_ >= first && next_ < first + kRun; };
        k.as<float>()[c] = (in_run(wanted_) ? wanted : noise) + (in_run(distinct_) ? -2.0f : 2.0f);
        v.as<float>()[c] = static_cast<float>(next_);
      }
      ++next_;
      store.extend(1);
      const KvChunks kv = store.chunks();
      ops_->kv_append(k, v, std::array<int64_t, 2>{0, 1}, std::span(&kv, 1));
      store.observe(q);
    }
  }
  /// Which tokens a head holds: their values are their numbers.
  std::vector<int64_t> held(const KvStore& store, int64_t head) const {
    const KvChunks kv = store.chunks();
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < kv.length; ++t) {
      const auto* page = static_cast<const float*>(kv.values[static_cast<size_t>(t / kChunk)]);
      tokens.push_back(static_cast<int64_t>(page[(head * kChunk + t % kChunk) * kHeadSize]));
    }
    return tokens;
  }

  /// All of a run.
  static bool holds(const std::vector<int64_t>& tokens, int64_t run) {
    int64_t found = 0;
    for (int64_t t = run; t < run + kRun; ++t) found += std::binary_search(tokens.begin(), tokens.end(), t);
    return found == kRun;
  }

  const std::unique_ptr<Ops> ops_ = make_ops({"cpu", Precision::f32, 1});
  std::mt19937 random_{7};
  int64_t next_ = 0, wanted_ = 10, distinct_ = 20;
};

TEST_F(BoundedStoreTest, KeepsTheWindowAndWhatItLooksAtInOrder) {
  const KvOptions options = bounded(60, 10, 40);
  KvStore store(kHeads, kChunk, 0, options, std::make_shared<KvMemory>(options, *ops_), *ops_);
  append(store, 59);
  EXPECT_EQ(store.length(), 59);
  append(store, 1);
  EXPECT_EQ(store.length(), 40);
  const uint64_t bytes = store.bytes();
  append(store, 5000);
  EXPECT_EQ(store.bytes(), bytes) << "memory does not grow";
  EXPECT_LT(store.length(), 60);
  for (int64_t head = 0; head < kHeads; ++head) {
    const std::vector<int64_t> tokens = held(store, head);
    EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end()));
    EXPECT_TRUE(std::adjacent_find(tokens.begin(), tokens.end()) == tokens.end()) << "each once";
    EXPECT_TRUE(holds(tokens, wanted_)) << "head " << head;
    for (int64_t t = next_ - 10; t < next_; ++t) {
      EXPECT_TRUE(std::binary_search(tokens.begin(), tokens.end(), t)) << "token " << t << " of the window";
    }
  }
}

TEST_F(BoundedStoreTest, RulesKeepWhatTheySay) {
  for (const KvRule rule : {KvRule::both, KvRule::votes, KvRule::keys}) {
    SCOPED_TRACE(name(rule));
    KvOptions options = bounded(60, 10, 40);
    options.rule = rule;
    KvStore store(kHeads, kChunk, 0, options, std::make_shared<KvMemory>(options, *ops_), *ops_);
    next_ = 0;
    append(store, 2000);
    for (int64_t head = 0; head < kHeads; ++head) {
      const std::vector<int64_t> tokens = held(store, head);
      EXPECT_EQ(holds(tokens, distinct_), rule != KvRule::votes);
      if (rule != KvRule::keys) {
        EXPECT_TRUE(holds(tokens, wanted_));
      }
    }
  }
}

/// Notes whose queries vote; a query's first value is its token's number.
class CountingOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  void kv_vote(const KvVote& call) override {
    EXPECT_LE(call.seen(), call.kv.length);
    EXPECT_LE(call.votes.dim(1), call.first);
    for (int64_t i = 0; i < call.q.dim(0); ++i) {
      voters.push_back(call.first + i * call.step);
      EXPECT_EQ(static_cast<int64_t>(call.q.as<float>()[i * call.q.dim(1)]), voters.back());
    }
  }
  std::vector<int64_t> voters;
};

TEST(KvBound, ASampleOfALongWindowVotesHoweverTheTextIsSplit) {
  std::mt19937 random(5);
  for (const auto& [max, window, step, block] :
       {std::array<int64_t, 4>{900, 300, 1, 0}, {2400, 1100, 4, 0}, {2400, 1100, 4, 3}, {3000, 2000, 7, 0}}) {
    const KvOptions options = bounded(max, window, window + 200);
    for (const int64_t piece : {1, 31, 700, 5000}) {
      CountingOps ops(make_ops({"reference", Precision::f32, 1}));
      KvBound bound(options, 1, block, ops);
      EXPECT_EQ(bound.step(), step);
      KvChunks kv;
      std::vector<int64_t> expected;
      for (int64_t t = bound.max() - 1; t >= bound.candidates(); t -= step)
        expected.insert(expected.begin(), t);
      while (kv.length < bound.max()) {
        const int64_t rows = std::min(bound.max() - kv.length, 1 + static_cast<int64_t>(random()) % piece);
        Buffer q(DType::f32, {rows, kHeadSize});
        for (int64_t i = 0; i < rows; ++i) q.as<float>()[i * kHeadSize] = static_cast<float>(kv.length + i);
        kv.length += rows;
        bound.vote(q, kv);
        const auto cast = static_cast<int64_t>(ops.voters.size());
        ASSERT_EQ(cast + bound.waiting_count(), bound.voters(kv.length)) << kv.length;
      }
      EXPECT_EQ(ops.voters, expected);
      EXPECT_EQ(bound.waiting_count(), 0);
    }
  }
}

/// As files from before steps have it: all queries of the window wait, and there are too many.
TEST(KvBound, WaitingQueriesThatCannotBeAreDropped) {
  CountingOps ops(make_ops({"reference", Precision::f32, 1}));
  KvBound bound(bounded(3000, 2000, 2200), 1, 0, ops);
  bound.set_waiting_count(10, bound.candidates() + 10);
  EXPECT_EQ(bound.waiting_count(), 0);
  bound.set_waiting_count(10, bound.candidates() + 70);
  EXPECT_EQ(bound.waiting_count(), 10);
  bound.set_waiting_count(1, bound.candidates());
  EXPECT_EQ(bound.waiting_count(), 0);
}

TEST_F(BoundedStoreTest, CopiesGoTheirOwnWays) {
  const KvOptions options = bounded(60, 10, 40);
  KvStore store(kHeads, kChunk, 0, options, std::make_shared<KvMemory>(options, *ops_), *ops_);
  append(store, 55);
  KvStore copy = store;
  const std::vector<int64_t> before = held(copy, 0);
  append(store, 30);  // drops tokens from pages that are shared
  EXPECT_EQ(held(copy, 0), before);
  next_ = 55;
  append(copy, 3);
  EXPECT_EQ(copy.length(), 58);
}

/// What attention keeps beside a store follows it: through growth, copies, dropped tokens and a new
/// beginning.
TEST(KvStore, AttentionKeepsNothingThatIsNoLongerTrue) {
  constexpr int64_t kHeads = 2, C = kHeads * kHeadSize, kChunk = 2;
  const std::unique_ptr<Ops> ops = make_ops({"cpu", Precision::f32, 2});
  const KvOptions options = bounded(1300, 50, 900);
  KvStore store(kHeads, kChunk, 0, options, std::make_shared<KvMemory>(options, *ops), *ops);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  int64_t compared = 0;
  const auto append = [&](KvStore& to, int64_t tokens) {
    for (int64_t done = 0; done < tokens;) {
      const int64_t rows =
          std::min({tokens - done, int64_t{1} + static_cast<int64_t>(random() % 90), to.room()});
      Buffer q(DType::f32, {rows, C}), k(DType::f32, {rows, C}), v(DType::f32, {rows, C});
      for (Buffer* x : {&q, &k, &v}) {
        for (int64_t i = 0; i < rows * C; ++i) x->as<float>()[i] = normal(random);
      }
      to.extend(rows);
      KvChunks kv = to.chunks();
      const std::array<int64_t, 2> offsets{0, rows};
      ops->kv_append(k, v, offsets, std::span(&kv, 1));
      Buffer with(DType::f32, {rows, C}), without(DType::f32, {rows, C});
      ops->chunk_attention({q, offsets, std::span(&kv, 1), 4, with});
      kv.derived = nullptr;
      ops->chunk_attention({q, offsets, std::span(&kv, 1), 4, without});
      ASSERT_EQ(std::memcmp(with.view().data(), without.view().data(), with.view().bytes()), 0)
          << "behind " << kv.length << " tokens";
      if (kv.length > 600) ++compared;
      to.observe(q);
      done += rows;
    }
  };
  append(store, 800);
  KvStore copy = store;
  append(store, 2000);  // drops tokens
  append(copy, 400);
  copy = store;
  append(copy, 700);
  KvStore moved = std::move(store);
  append(moved, 300);
  moved.clear();
  append(moved, 1200);
  EXPECT_GT(compared, 50);
}

TEST_F(BoundedStoreTest, BlocksDoTheirWorkAtDifferentTokens) {
  const KvOptions options = bounded(600, 100, 400);
  std::vector<int64_t> max;
  for (int64_t block = 0; block < 4; ++block) {
    const KvStore store(kHeads, kChunk, block, options, std::make_shared<KvMemory>(options, *ops_), *ops_);
    max.push_back(store.room());
    EXPECT_LE(store.room(), 600);
  }
  std::sort(max.begin(), max.end());
  EXPECT_TRUE(std::adjacent_find(max.begin(), max.end()) == max.end());
}

TEST(KvOptionsTest, PoliciesAreReadAsTheyAreWritten) {
  for (const char* text : {"full", "disk:/tmp", "host:2", "host:0", "host:0.5", "bounded:100,20,50",
                           "bounded:100,20,50,votes", "bounded:100,20,50,keys"}) {
    KvOptions options;
    parse_kv_policy(text, options);
    EXPECT_EQ(options.policy_text(), text);
  }
  KvOptions options;
  parse_kv_policy("bounded:100,20,50,both", options);
  EXPECT_EQ(options.policy_text(), "bounded:100,20,50");
  options = {};
  parse_kv_policy("host", options);
  EXPECT_EQ(options.policy_text(), "host:2");
}

TEST(KvOptionsTest, BoundsThatLeaveNoRoom) {
  const auto expect_refused = [](const char* text, const char* part) {
    KvOptions options;
    EXPECT_THAT([&] { parse_kv_policy(text, options); }, ThrowsMessage<Error>(HasSubstr(part))) << text;
  };
  expect_refused("bounded:100,20,20", "larger than the window");
  expect_refused("bounded:100,20,90", "at least MIN + WINDOW");
  expect_refused("bounded:100,0,50", "at least 1 token");
  expect_refused("bounded:100000000,10,50", "at most");
  for (const char* text : {"",
                           "fuller",
                           "full:",
                           "host:",
                           "host:x",
                           "host:-1",
                           "host:1e9",
                           "host:nan",
                           "host:2x",
                           "disk:",
                           "bounded:",
                           "bounded:1",
                           "bounded:1,2",
                           "bounded:1,2,3,4",
                           "bounded:a,b,c",
                           "bounded:100,20,50x",
                           "bounded:100,20,50,",
                           "bounded:100,20,50,vote",
                           "bounded:100,20,50,votes,",
                           "bounded:99999999999999999999,1,2"}) {
    expect_refused(text, "expected full, host[:GB], disk[:FOLDER] or bounded[:MAX,WINDOW,MIN[,RULE]]");
  }
  for (const char* text : {"", "max:", "max:0", "max:-1", "max:x", "maximum", "ma"}) {
    KvOptions options;
    EXPECT_THAT([&] { parse_selection(text, options); }, ThrowsMessage<Error>(HasSubstr("expected mean")))
        << text;
  }
}

/// Memory that says what it holds.
class KnownMemory final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    void* const block = host_allocator().allocate(bytes);
    blocks_.emplace(static_cast<std::byte*>(block), bytes);
    return block;
  }
  void release(void* block, size_t bytes) noexcept override {
    blocks_.erase(static_cast<std::byte*>(block));
    host_allocator().release(block, bytes);
  }
  bool holds(const void* p) const {
    const auto next = blocks_.upper_bound(static_cast<const std::byte*>(p));
    if (next == blocks_.begin()) return false;
    const auto [block, bytes] = *std::prev(next);
    return p < block + bytes;
  }
  size_t blocks() const { return blocks_.size(); }

 private:
  std::map<const std::byte*, size_t> blocks_;
};

class FarOps final : public ForwardingOps {
 public:
  explicit FarOps(KnownMemory& far) : ForwardingOps(make_ops({"cpu", Precision::f32, 1})), far_(far) {}
  Allocator& host_memory() override { return far_; }

 private:
  KnownMemory& far_;
};

TEST(KvHostTest, FullPagesMoveAndKeepWhatTheyHold) {
  KnownMemory far;
  FarOps ops(far);
  KvOptions options;
  parse_kv_policy("host:1e-6", options);
  {
    KvStore store(2, 4, 0, options, std::make_shared<KvMemory>(options, ops, 2), ops);
    int64_t next = 0;
    const auto append = [&](KvStore& to, int64_t tokens) {
      Buffer rows(DType::f32, {tokens, 2 * kHeadSize});
      for (int64_t i = 0; i < rows.view().elements(); ++i) {
        const int64_t token = next + i / (2 * kHeadSize);
        rows.as<float>()[i] = static_cast<float>(token);
      }
      to.extend(tokens);
      const KvChunks kv = to.chunks();
      ops.kv_append(rows, rows, std::array<int64_t, 2>{0, tokens}, std::span(&kv, 1));
    };
    /// The tokens that a store holds, by its keys and values, and where its pages are.
    const auto expect_tokens = [&](const KvStore& of, const std::vector<float>& tokens, int64_t pages_far) {
      const KvChunks kv = of.chunks();
      EXPECT_EQ(kv.far, pages_far);
      EXPECT_EQ(kv.near_bytes, 500u);
      ASSERT_EQ(kv.length, static_cast<int64_t>(tokens.size()));
      for (size_t t = 0; t < tokens.size(); ++t) {
        for (const auto& pages : {kv.keys, kv.values}) {
          EXPECT_EQ(static_cast<const float*>(pages[t / 4])[t % 4 * kHeadSize], tokens[t]);
          EXPECT_EQ(far.holds(pages[t / 4]), static_cast<int64_t>(t / 4) < pages_far) << "token " << t;
        }
      }
    };
    append(store, 10);
    expect_tokens(store, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0);
    next = 10;
    append(store, 1);  // what is full moves first
    expect_tokens(store, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 2);
    next = 11;
    append(store, 1);
    KvStore fork = store;  // shares its third page, full now
    next = 12;
    append(store, 1);
    next = 20;
    append(fork, 2);
    expect_tokens(store, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 3);
    expect_tokens(fork, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 21}, 3);
    EXPECT_EQ(far.blocks(), 4u);  // two are shared
    store.clear();
    EXPECT_EQ(store.chunks().far, 0);
    next = 0;
    append(store, 3);
    expect_tokens(store, {0, 1, 2}, 0);
  }
  EXPECT_EQ(far.blocks(), 0u);
}

/// A chunk of 2 MiB or more in the host's memory: a short conversation's stays in small pages until it is
/// full.
TEST(KvHugePagesTest, FullChunksMoveThereOnce) {
  constexpr int64_t kHeads = 2, kChunk = 2048;
  const auto ops = make_ops({"cpu", Precision::f32, 1});
  const KvOptions options;
  const auto store_of = [&](const std::vector<int64_t>& parts) {
    KvStore store(kHeads, kChunk, 0, options, std::make_shared<KvMemory>(options, *ops, 1), *ops);
    for (const int64_t tokens : parts) {
      const int64_t first = store.length();
      Buffer rows(DType::f32, {tokens, kHeads * kHeadSize});
      for (int64_t i = 0; i < rows.view().elements(); ++i) {
        rows.as<float>()[i] = static_cast<float>(first + i / (kHeads * kHeadSize));
      }
      store.extend(tokens);
      const KvChunks kv = store.chunks();
      ops->kv_append(rows, rows, std::array<int64_t, 2>{0, tokens}, std::span(&kv, 1));
    }
    return store;
  };
  const auto expect_tokens = [&](const KvStore& store) {
    const KvChunks kv = store.chunks();
    EXPECT_EQ(kv.far, 0);
    for (int64_t t = 0; t < kv.length; ++t) {
      for (const auto& pages : {kv.keys, kv.values}) {
        for (int64_t head = 0; head < kHeads; ++head) {
          const auto* page = static_cast<const float*>(pages[static_cast<size_t>(t / kChunk)]);
          ASSERT_EQ(page[(head * kChunk + t % kChunk) * kHeadSize], static_cast<float>(t));
        }
      }
    }
  };
  const auto in_huge_page = [](const KvStore& store, size_t chunk) {
    return reinterpret_cast<uintptr_t>(store.chunks().keys[chunk]) % kHugePage == 0;
  };
  KvStore slow = store_of({10, 2037, 1});
  const void* const before = slow.chunks().keys[0];
  expect_tokens(slow);
  KvStore fork = slow;
  slow.extend(1);
  EXPECT_NE(slow.chunks().keys[0], before);
  EXPECT_TRUE(in_huge_page(slow, 0));
  EXPECT_EQ(fork.chunks().keys[0], before);
  fork.extend(1);
  const void* const after = slow.chunks().keys[0];
  slow.extend(3000);
  EXPECT_EQ(slow.chunks().keys[0], after);

  KvStore prompt = store_of({3000, 1096, 5});
  expect_tokens(prompt);
  EXPECT_TRUE(in_huge_page(prompt, 0));
  EXPECT_TRUE(in_huge_page(prompt, 1));
}

/// Copies of a state share its file, and each takes pages of its own when it goes on.
TEST(KvDiskTest, AFullDiskLosesNothing) {
  KvOptions options;
  options.policy = KvPolicy::disk;
  const auto model =
      test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", Precision::f32, {{4096}, {3}}, options);
  const auto first = test::random_tokens(10, 256, 1), more = test::random_tokens(5, 256, 2);
  State state = model->new_state();
  test::run(*model, state, first);
  std::vector<State> copies;
  std::vector<float> last;
  for (int i = 0; i < 100; ++i) copies.push_back(state.fork());
  size_t full = 0;
  {
    const test::FileSizeLimit limit(state.kv(0).file_bytes());
    for (; full < copies.size(); ++full) {
      try {
        last = test::run(*model, copies[full], more);
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("no room"));
        break;
      }
    }
    ASSERT_GT(full, 0u);
    ASSERT_LT(full, copies.size()) << "the file must not grow";
    EXPECT_EQ(copies[full].position(), 10);
    EXPECT_TRUE(distance(test::contents(copies[full]), test::contents(state)).bitwise);
    const test::TemporaryFolder folder;
    save_state(folder / "state", copies[full], model->fingerprint(), "{}");
    EXPECT_FALSE(folder.files().empty());
  }
  const auto now = test::run(*model, copies[full], more);  // with room again
  EXPECT_TRUE(distance(now, last).bitwise);
}

TEST(KvDiskTest, FoldersThatAreNotThere) {
  KvOptions options;
  parse_kv_policy("disk:/no/such/folder", options);
  const auto open = [&] {
    test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", Precision::f32, {}, options);
  };
  EXPECT_THAT(open, ThrowsMessage<Error>(HasSubstr("/no/such/folder")));
}

}  // namespace
}  // namespace rwkvx
