// Whole runs of tiny models: learning, exact resume, what trains, what stops a run.
#include "training/trainer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "error_of.h"
#include "model/support.h"
#include "model/tensor_file.h"
#include "training/token_file.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    // A text that repeats: every byte follows from the one before.
    std::vector<TokenId> tokens;
    for (TokenId i = 0; i < 3000; ++i) tokens.push_back('a' + i * 7 % 26);
    for (const char* name : {"data", "held"}) {
      TokenFileWriter writer(folder_ / name, TokenType::u16);
      writer.append(tokens);
      writer.commit();
    }
  }
  TrainConfig config() const {
    TrainConfig c;
    c.data = (folder_ / "data").string();
    c.layers = 1;
    c.channels = 64;
    c.ffn = 64;
    c.vocab_size = 128;
    c.context = 16;
    c.batch = 2;
    c.steps = 8;
    c.lr = 1e-2;
    c.warmup = 2;
    c.precision = "f32";
    c.threads = 1;
    c.save_every = 3;
    return c;
  }
  Path run() const { return folder_ / "run"; }
  std::vector<StepReport> train(const Path& path, const TrainConfig& c, bool resume = false,
                                int64_t stop_behind = -1) const {
    std::vector<StepReport> reports;
    const auto trainer = resume ? Trainer::resume(path, c) : Trainer::start(path, c);
    trainer->run([&](const StepReport& r) { reports.push_back(r); },
                 [&] { return !reports.empty() && reports.back().progress.step == stop_behind; });
    return reports;
  }
  /// All files of a checkpoint, one after another.
  static std::string bytes(const Path& path, int64_t step) {
    std::string all;
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "progress.json"})
      all += read_file(RunFolder(path).checkpoint(step) / file);
    return all;
  }
  static std::vector<nlohmann::json> metrics(const Path& path) {
    std::vector<nlohmann::json> lines;
    const std::string text = read_file(RunFolder(path).metrics_file());
    for (size_t at = 0, end = 0; (end = text.find('\n', at)) != text.npos; at = end + 1)
      lines.push_back(nlohmann::json::parse(text.substr(at, end - at)));
    return lines;
  }
  const test::TemporaryFolder folder_;
};

TEST_F(TrainerTest, Learns) {
  TrainConfig c = config();
  c.held_out = (folder_ / "held").string();
  c.steps = 40;
  c.eval_every = 15;
  c.eval_windows = 3;
  c.save_every = 39;
  const auto reports = train(run(), c);
  ASSERT_EQ(reports.size(), 40u);
  EXPECT_NEAR(reports.front().loss, std::log(128), 1.5);
  EXPECT_LT(reports.back().loss, 0.5);
  EXPECT_LT(reports.back().held_out.value(), 0.5);
  for (const StepReport& r : reports)
    EXPECT_EQ(r.held_out.has_value(), r.progress.step % 15 == 0 || r.progress.step == 40);
  EXPECT_EQ(reports.back().progress.tokens, 40u * 32);
  const auto lines = metrics(run());
  ASSERT_EQ(lines.size(), 40u);
  EXPECT_EQ(lines[39].at("step"), 40);
  EXPECT_EQ(lines[39].at("loss"), reports.back().loss);
  EXPECT_EQ(lines[39].at("held_out_loss"), *reports.back().held_out);
  EXPECT_EQ(RunFolder(run()).checkpoints(), (std::vector<int64_t>{39, 40})) << "the last two are kept";
  // The checkpoint is a model like any other.
  const auto model = open_checkpoint(RunFolder(run()).checkpoint(40) / "model.safetensors");
  EXPECT_EQ(model->config.vocab, 128);
  EXPECT_NO_THROW(check_tensors(*model));
}

TEST_F(TrainerTest, ResumesBitForBit) {
  TrainConfig c = config();
  c.layers = 2;
  c.sparse_blocks = 1;
  c.chunk_size = 8;
  c.chunk_top_k = 2;
  c.gate_loss = 0.3;
  c.gate_rows = 5;
  c.accumulate = 2;
  c.longce = "8/4/5";
  c.precision = "bf16";
  train(folder_ / "whole", c);
  struct Crash {};
  const auto trainer = Trainer::start(run(), c);
  EXPECT_THROW(trainer->run(
                   [](const StepReport& r) {
                     if (r.progress.step == 5) throw Crash();
                   },
                   {}),
               Crash);
  EXPECT_EQ(RunFolder(run()).checkpoints(), std::vector<int64_t>{3});
  train(run(), RunFolder(run()).config(), true);
  EXPECT_EQ(bytes(run(), 6), bytes(folder_ / "whole", 6));
  EXPECT_EQ(bytes(run(), 8), bytes(folder_ / "whole", 8));
  const auto whole = metrics(folder_ / "whole"), resumed = metrics(run());
  ASSERT_EQ(resumed.size(), 8u);
  for (size_t i = 0; i < 8; ++i) {
    for (const char* key : {"step", "tokens", "loss", "gradient_norm", "gate_loss", "smoothed_loss"})
      EXPECT_EQ(resumed[i].at(key), whole[i].at(key)) << i << " " << key;
  }
}

TEST_F(TrainerTest, AStoppedRunSavesItsSteps) {
  EXPECT_EQ(train(run(), config(), false, 4).size(), 4u);
  EXPECT_EQ(RunFolder(run()).checkpoints(), (std::vector<int64_t>{3, 4}));
  train(run(), config(), true);
  train(folder_ / "whole", config());
  EXPECT_EQ(bytes(run(), 8), bytes(folder_ / "whole", 8));
}

TEST_F(TrainerTest, AccumulatedBatchesAreOneBatch) {
  TrainConfig c = config();
  c.batch = 4;
  const auto together = train(folder_ / "together", c);
  c.batch = 1;
  c.accumulate = 4;
  const auto apart = train(folder_ / "apart", c);
  // float32 sums in another order; the first step is the same up to that, later ones carry it on.
  EXPECT_NEAR(apart[0].loss, together[0].loss, 1e-5);
  EXPECT_NEAR(apart[0].gradient_norm / together[0].gradient_norm, 1, 1e-4);
  EXPECT_EQ(apart[7].progress.samples, together[7].progress.samples);
}

/// A curriculum of copying: contexts, learning rates, weights, resets.
class MixtureRunTest : public TrainerTest {
 protected:
  MixtureRunTest() {
    std::ofstream(folder_ / "mix.json") << R"({
      "sources": [{"kind": "copy", "share": 1, "symbols": "abcd", "lengths": [3, 5]}, {"kind": "tokens", "share": 1}],
      "resets": {"share": 0.7, "every": [3, 9], "places": 1},
      "weights": {"answer": 1, "text": 0.25, "random": 0},
      "phases": [{"steps": 4, "context": 12, "lr": 2e-2, "shares": {"copy": 1}}, {"context": 32}]})";
  }
  TrainConfig mixed() const {
    TrainConfig c = config();
    c.mixture = (folder_ / "mix.json").string();
    c.vocab = "byte";
    c.vocab_size = 256;
    c.context = 48;
    c.layers = 2;
    c.sparse_blocks = 1;
    c.chunk_size = 8;
    c.chunk_top_k = 2;
    c.gate_loss = 0.3;
    c.longce = "8/4/5";
    return c;
  }
};

TEST_F(MixtureRunTest, ResumesBitForBitAcrossPhases) {
  const TrainConfig c = mixed();
  const auto reports = train(folder_ / "whole", c);
  // 2 x 48 tokens: 8 sequences of 12, then 3 of 32.
  EXPECT_EQ(reports[3].progress.samples, 32u);
  EXPECT_EQ(reports[4].progress.samples, 35u);
  EXPECT_EQ(reports[7].progress.tokens, 8u * 96);
  EXPECT_EQ(reports[3].context, 12);
  EXPECT_EQ(reports[4].context, 32);
  for (const StepReport& r : reports) EXPECT_TRUE(r.answers.has_value() || r.context == 32);
  // The schedule goes on; phases only scale it.
  EXPECT_NEAR(reports[3].rate / reports[4].rate, 2, 0.7);
  EXPECT_TRUE(reports.back().held_out_answers.has_value());
  EXPECT_TRUE(reports.back().answers_after_reset.has_value());
  EXPECT_EQ(metrics(folder_ / "whole").back().count("held_out_answers/copy"), 1u);

  EXPECT_EQ(train(run(), c, false, 3).size(), 3u);
  // What becomes of the file does not matter to the run.
  std::ofstream(folder_ / "mix.json") << "{}";
  train(run(), RunFolder(run()).config(), true);
  EXPECT_EQ(bytes(run(), 6), bytes(folder_ / "whole", 6));
  EXPECT_EQ(bytes(run(), 8), bytes(folder_ / "whole", 8));
}

TEST_F(MixtureRunTest, AccumulatedBatchesAreOneBatch) {
  TrainConfig c = mixed();
  std::ofstream(folder_ / "mix.json") << R"({
    "sources": [{"kind": "copy", "share": 1, "symbols": "abcd", "lengths": [3, 5]}, {"kind": "tokens", "share": 1}],
    "weights": {"answer": 1, "text": 0.25, "random": 0}})";
  c.gate_loss = 0;  // samples other queries
  c.batch = 4;
  c.l2wrap = 0.01;
  const auto together = train(folder_ / "together", c);
  c.batch = 1;
  c.accumulate = 4;
  const auto apart = train(folder_ / "apart", c);
  EXPECT_NEAR(apart[0].loss / together[0].loss, 1, 1e-5);
  EXPECT_NEAR(apart[0].cross_entropy / together[0].cross_entropy, 1, 1e-5);
  EXPECT_NEAR(apart[0].gradient_norm / together[0].gradient_norm, 1, 1e-4);
}

TEST_F(MixtureRunTest, WeightsAreRelative) {
  // Twice the weight everywhere is the same loss and the same step.
  TrainConfig c = mixed();
  const auto weighted = [&](const char* name, double factor) {
    std::ofstream(folder_ / "mix.json") << fmt::format(
        R"({{"sources": [{{"kind": "copy", "share": 1, "lengths": 5, "symbols": 100, "weight": {}}}]}})",
        factor);
    return train(folder_ / name, c);
  };
  const auto one = weighted("one", 1), four = weighted("four", 4);
  for (size_t i = 0; i < one.size(); ++i) {
    EXPECT_EQ(four[i].loss, one[i].loss);
    EXPECT_EQ(four[i].gradient_norm, one[i].gradient_norm);
  }
}

TEST_F(MixtureRunTest, MistakesAreFoundBeforeTheRunBegins) {
  const auto error = [&](auto change) {
    TrainConfig c = mixed();
    change(c);
    return error_of([&] { train(run(), c); });
  };
  EXPECT_THAT(error([](TrainConfig& c) { c.data = ""; }), HasSubstr("--data"));
  EXPECT_THAT(error([](TrainConfig& c) {
                c.vocab = "";
                c.vocab_size = 300;
              }),
              HasSubstr("--vocab"));
  EXPECT_THAT(error([](TrainConfig& c) { c.mixture = "nowhere.json"; }), HasSubstr("nowhere.json"));
  EXPECT_THAT(error([](TrainConfig& c) { c.curriculum = "12:3,24"; }), HasSubstr("phases"));
  EXPECT_THAT(error([](TrainConfig& c) { c.vocab_size = 64; }), HasSubstr("--vocab-size"));
  EXPECT_THAT(error([](TrainConfig& c) { c.chat = "chat.jsonl"; }), HasSubstr("--chat"));
  EXPECT_FALSE(std::filesystem::exists(run()));
}

TEST_F(TrainerTest, ACurriculumOfTokenFiles) {
  TrainConfig c = config();
  c.context = 48;
  c.curriculum = "12:3,24:2,96";
  const auto reports = train(run(), c);
  const uint64_t samples[] = {8, 16, 24, 28, 32, 33, 34, 35};
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(reports[i].progress.samples, samples[i]) << i;
    EXPECT_EQ(reports[i].progress.tokens, 96 * (i + 1));
  }
}

TEST_F(TrainerTest, AlignTrainsSparseBlocksOnly) {
  TrainConfig c = config();
  c.layers = 2;
  c.sparse_blocks = 1;
  c.chunk_size = 8;
  train(run(), c);
  TrainConfig align = c;
  const Path before = RunFolder(run()).checkpoint(8) / "model.safetensors";
  align.load = before.string();
  align.stage = "align";
  train(folder_ / "aligned", align);
  const auto old = open_checkpoint(before);
  const auto trained = open_checkpoint(RunFolder(folder_ / "aligned").checkpoint(8) / "model.safetensors");
  EXPECT_EQ(trained->config, old->config) << "chunk settings are recorded";
  for (const CatalogTensor& tensor : old->catalog.tensors()) {
    const auto a = tensor.data.raw(), b = trained->catalog.find(tensor.name)->data.raw();
    EXPECT_EQ(std::equal(a.begin(), a.end(), b.begin(), b.end()), !tensor.name.starts_with("moba."))
        << tensor.name;
  }
  align.load = "";
  EXPECT_THROW(resolved(align), UsageError);
  c.sparse_blocks = 0;
  train(folder_ / "plain", c);
  align.load = (RunFolder(folder_ / "plain").checkpoint(8) / "model.safetensors").string();
  EXPECT_THAT(error_of([&] { train(folder_ / "none", align); }), HasSubstr("rwkvx expand"));
}

TEST_F(TrainerTest, SparseBlocksWhereTheyAreSaidToBe) {
  TrainConfig c = config();
  c.layers = 3;
  c.sparse_blocks = 2;
  c.sparse_after = "1,3";
  c.chunk_size = 8;
  train(run(), c);
  TrainConfig next = c;
  next.load = (RunFolder(run()).checkpoint(8) / "model.safetensors").string();
  next.sparse_after = "";
  train(folder_ / "next", next);
  const auto model = open_checkpoint(RunFolder(folder_ / "next").checkpoint(8) / "model.safetensors");
  EXPECT_EQ(sparse_places(model->config), "1,3") << "the file that is loaded says it";
  c.sparse_after = "2,3";
  EXPECT_THAT(error_of([&] { train(run(), c, true); }), HasSubstr("--sparse-after 2,3"));
  c.sparse_after = "2";
  EXPECT_THROW(resolved(c), UsageError);
}

TEST_F(TrainerTest, FineTunesOnAnswersOnly) {
  std::ofstream(folder_ / "chat.jsonl")
      << R"({"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]})"
      << '\n';
  TrainConfig c = config();
  c.data = "";
  c.chat = (folder_ / "chat.jsonl").string();
  c.vocab = "byte";
  c.context = 100;
  c.batch = 1;
  c.steps = 30;
  const auto reports = train(run(), c);
  EXPECT_LT(reports.back().loss, 0.5);
}

TEST_F(TrainerTest, NotANumberStopsTheRunAndKeepsTheCheckpoint) {
  // Finite weights whose logits are not: products with the head overflow.
  const auto spoil = [](std::byte* values, size_t bytes) {
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
      const float huge = i % 8 == 0 ? 3e38f : -3e38f;
      std::memcpy(values + i, &huge, 4);
    }
  };
  TrainConfig c = config();
  test::TensorFile model = test::small_model(1, 0);
  auto& head = model.at("head.weight").bytes;
  spoil(reinterpret_cast<std::byte*>(head.data()), head.size());
  model.write(folder_ / "model");
  c.load = (folder_ / "model").string();
  EXPECT_THAT(error_of([&] { train(folder_ / "new", c); }),
              AllOf(HasSubstr("step 1:"), HasSubstr("not finite"), HasSubstr("no checkpoint yet")));
  EXPECT_TRUE(RunFolder(folder_ / "new").checkpoints().empty());

  // The same behind step 8, in the checkpoint's own file.
  c = config();
  train(run(), c);
  const Path file = RunFolder(run()).checkpoint(8) / "model.safetensors";
  std::string bytes = read_file(file);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const auto offsets = nlohmann::json::parse(bytes.substr(8, length)).at("head.weight").at("data_offsets");
  spoil(reinterpret_cast<std::byte*>(bytes.data()) + 8 + length + offsets[0].get<size_t>(),
        offsets[1].get<size_t>() - offsets[0].get<size_t>());
  std::ofstream(file, std::ios::binary) << bytes;
  c.steps = 20;
  c.save_every = 1;
  EXPECT_THAT(error_of([&] { train(run(), c, true); }),
              AllOf(HasSubstr("step 9:"), HasSubstr("not finite"), HasSubstr("step-00000008"),
                    HasSubstr("--resume"), HasSubstr("--lr 0.005")));
  EXPECT_EQ(RunFolder(run()).checkpoints().back(), 8);
  EXPECT_EQ(read_file(file), bytes);
}

TEST_F(TrainerTest, FoldersThatHoldARunOrNone) {
  train(run(), config());
  EXPECT_THAT(error_of([&] { train(run(), config()); }), AllOf(HasSubstr("run"), HasSubstr("--resume")));
  EXPECT_THAT(error_of([&] { train(folder_ / "other", config(), true); }), HasSubstr("no checkpoint"));
  EXPECT_THAT(error_of([&] { RunFolder(folder_ / "other").config(); }), HasSubstr("config.json"));
}

TEST_F(TrainerTest, ResumedRunsKeepTheirModelAndMayChooseOtherChunks) {
  TrainConfig c = config();
  c.sparse_blocks = 1;
  c.chunk_size = 4;
  c.chunk_top_k = 2;
  train(run(), c);
  c.steps = 9;
  TrainConfig other = c;
  other.channels = 128;
  EXPECT_THAT(error_of([&] { train(run(), other, true); }),
              AllOf(HasSubstr("--channels 128"), HasSubstr("64"), HasSubstr("--out")));
  c.chunk_top_k = 3;
  train(run(), c, true);
  const ModelConfig model = RunFolder(run()).model_config(9);
  EXPECT_EQ(model.chunk_size, 4);
  EXPECT_EQ(model.top_k, 3);
}

TEST_F(TrainerTest, DamagedCheckpointsAreNamed) {
  train(run(), config());
  const Path checkpoint = RunFolder(run()).checkpoint(8);
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "progress.json"}) {
    const std::string good = read_file(checkpoint / name);
    for (const size_t size : {size_t{0}, good.size() / 3, good.size() - 3}) {
      std::ofstream(checkpoint / name, std::ios::binary) << good.substr(0, size);
      EXPECT_THAT(error_of([&] { train(run(), config(), true); }), HasSubstr(name)) << size;
    }
    std::filesystem::remove(checkpoint / name);
    EXPECT_THAT(error_of([&] { train(run(), config(), true); }), HasSubstr(name));
    std::ofstream(checkpoint / name, std::ios::binary) << good;
  }
  EXPECT_EQ(error_of([&] { train(run(), config(), true); }), "");
  // What a crash left half-written is no checkpoint.
  std::filesystem::create_directories(run() / "checkpoints" / "step-00000099.part");
  EXPECT_EQ(RunFolder(run()).checkpoints().back(), 8);
}

TEST_F(TrainerTest, DataOfAnotherVocabulary) {
  TrainConfig c = config();
  c.vocab_size = 100;
  EXPECT_THAT(error_of([&] { train(run(), c); }),
              AllOf(HasSubstr("data.bin"), HasSubstr("vocabulary of 100")));
}

}  // namespace
}  // namespace rwkvx
