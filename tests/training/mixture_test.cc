// What generated samples hold: whole sequences, answers that were said before, weights, resets; and what a
// mixture refuses.
#include "training/mixture/mixture.h"

#include <gmock/gmock.h>

#include <map>
#include <regex>
#include <set>

#include "error_of.h"
#include "model/support.h"
#include "retrieval/needle_task.h"
#include "training/run_data.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class MixtureTest : public ::testing::Test {
 protected:
  MixtureTest() {
    // Sentences of random words.
    Random random(3);
    std::string text;
    while (text.size() < 20000) {
      for (int word = 0; word < 6; ++word) {
        for (uint64_t i = 2 + random.next() % 6; i > 0; --i)
          text += static_cast<char>('a' + random.next() % 26);
        text += word < 5 ? ' ' : '.';
      }
      text += ' ';
    }
    TokenFileWriter writer(folder_ / "book", TokenType::u16);
    writer.append(tokenizer_->encode(text));
    writer.commit();
  }
  std::shared_ptr<const Mixture> mixture(const std::string& json, uint64_t seed = 1) const {
    AtomicFile file(folder_ / "mix.json");
    file.write(json);
    file.commit();
    return read_mixture(folder_ / "mix.json", (folder_ / "book").string(), seed, *tokenizer_, 256);
  }
  std::unique_ptr<TrainingData> data(const std::string& json, int64_t context, uint64_t seed = 1) const {
    return make_mixture_data(mixture(json, seed), {context, seed, 256, nullptr, {}});
  }
  /// One source alone.
  std::unique_ptr<TrainingData> source(const std::string& fields, int64_t context, uint64_t seed = 1) const {
    return data(R"({"sources": [{"share": 1, )" + fields + "}]}", context, seed);
  }
  static TrainBatch sample(const TrainingData& data, uint64_t index) {
    TrainBatch batch;
    data.add(index, batch);
    return batch;
  }
  /// Tokens of a batch of one sequence, its last target too.
  std::string text(const TrainBatch& batch) const {
    std::vector<TokenId> tokens(batch.tokens.begin(), batch.tokens.end());
    tokens.push_back(batch.targets.back());
    return tokenizer_->decode(tokens);
  }

  const test::TemporaryFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_ = make_byte_tokenizer();
};

constexpr const char* kKinds[] = {
    R"("kind": "tokens")",
    R"("kind": "copy", "lengths": [4, 40])",
    R"("kind": "copy", "symbols": "01234567", "lengths": 8)",
    R"("kind": "needles", "tasks": ["passkey", "passkey-bare", "niah-1", "multi-value", "facts"])",
    R"("kind": "needles", "haystack": "text", "distractors": [0, 16], "questions": [1, 9], "spread": 1)",
    R"("kind": "pairs")",
    R"("kind": "strings")",
    R"("kind": "strings", "haystack": "noise", "count": 40)",
};

TEST_F(MixtureTest, SamplesFillTheContextAndDependOnTheirNumberOnly) {
  for (const char* kind : kKinds) {
    for (const int64_t context : {300, 1001}) {
      SCOPED_TRACE(kind);
      const auto first = source(kind, context), again = source(kind, context),
                 other = source(kind, context, 2);
      int same = 0;
      TrainBatch together;
      for (uint64_t i = 0; i < 20; ++i) {
        const TrainBatch batch = sample(*first, i), twin = sample(*again, i);
        ASSERT_EQ(batch.rows(), context);
        EXPECT_EQ(batch.offsets, (std::vector<int64_t>{0, context}));
        EXPECT_EQ(batch.weights.size(), batch.tokens.size());
        EXPECT_EQ(batch.resets.size(), batch.tokens.size());
        for (size_t row = 0; row + 1 < batch.tokens.size(); ++row)
          ASSERT_EQ(batch.targets[row], batch.tokens[row + 1]);
        EXPECT_EQ(twin.tokens, batch.tokens);
        EXPECT_EQ(twin.weights, batch.weights);
        same += sample(*other, i).tokens == batch.tokens;
        for (const TrainBatch::Answer& answer : batch.answers) {
          EXPECT_LE(0, answer.begin);
          EXPECT_LT(answer.begin, answer.end);
          EXPECT_LE(answer.end, context);
        }
        first->add(i, together);
        EXPECT_EQ(together.rows(), context * static_cast<int64_t>(i + 1));
        EXPECT_TRUE(std::equal(batch.tokens.begin(), batch.tokens.end(),
                               together.tokens.end() - static_cast<std::ptrdiff_t>(context)));
      }
      EXPECT_LE(same, 2) << "another seed";
    }
  }
}

TEST_F(MixtureTest, AnswersWereSaidBefore) {
  for (const char* kind : kKinds) {
    SCOPED_TRACE(kind);
    const auto data = source(kind, 900);
    size_t answers = 0;
    for (uint64_t i = 0; i < 40; ++i) {
      const TrainBatch batch = sample(*data, i);
      const std::string all = text(batch);
      for (const TrainBatch::Answer& a : batch.answers) {
        ++answers;
        // Row r says token r + 1. Values of a list stand in the text one by one.
        std::string answer =
            all.substr(static_cast<size_t>(a.begin) + 1, static_cast<size_t>(a.end - a.begin));
        const std::string before = all.substr(0, static_cast<size_t>(a.begin) + 1);
        if (std::string(kind).find("needles") == std::string::npos) {
          if (answer.starts_with(' ')) answer.erase(0, 1);
          EXPECT_THAT(before, HasSubstr(answer));
          continue;
        }
        EXPECT_TRUE(answer.ends_with('.')) << answer;
        static const std::regex value("[0-9a-f][0-9a-f-]{4,}");
        for (auto it = std::sregex_iterator(answer.begin(), answer.end(), value);
             it != std::sregex_iterator(); ++it)
          EXPECT_THAT(before, HasSubstr(it->str()));
      }
    }
    EXPECT_EQ(answers > 0, std::string(kind).find("tokens") == std::string::npos) << answers;
  }
}

/// All of an answer but punctuation and spaces stands where its rows' mentions say, character by character,
/// and a chain of mentions ends at the first.
TEST_F(MixtureTest, MentionsLeadToWhatIsAskedFor) {
  for (const char* kind : kKinds) {
    SCOPED_TRACE(kind);
    const auto data = source(kind, 900);
    size_t answered = 0, known = 0, longest = 0;
    TrainBatch batch;
    for (uint64_t i = 0; i < 40; ++i) data->add(i, batch);  // rows are counted from the batch's first
    ASSERT_EQ(batch.earlier.size(), batch.tokens.size());
    for (size_t s = 0; s + 1 < batch.offsets.size(); ++s) {
      for (int64_t row = batch.offsets[s]; row < batch.offsets[s + 1]; ++row) {
        size_t chain = 0;
        for (int64_t at = row; at >= batch.offsets[s] && batch.earlier[static_cast<size_t>(at)] >= 0;) {
          const int64_t mention = batch.earlier[static_cast<size_t>(at)];
          ASSERT_GE(mention, batch.offsets[s]) << "another sequence's";
          ASSERT_LE(mention, at);
          ASSERT_EQ(batch.tokens[static_cast<size_t>(mention)], batch.targets[static_cast<size_t>(row)]);
          at = mention - 1;
          ++chain;
        }
        longest = std::max(longest, chain);
      }
    }
    for (const TrainBatch::Answer& a : batch.answers) {
      for (int64_t row = a.begin; row < a.end; ++row) {
        const auto at = static_cast<size_t>(row);
        if (std::string(kind).find("needles") != std::string::npos && std::isxdigit(batch.targets[at]) == 0)
          continue;  // what stands between values
        ++answered;
        known += batch.earlier[at] >= 0;
        // Characters that follow each other in a value follow each other in its mention.
        if (row > a.begin && batch.earlier[at] >= 0 && batch.earlier[at - 1] >= 0 &&
            batch.targets[at - 1] != ' ') {
          EXPECT_EQ(batch.earlier[at], batch.earlier[at - 1] + 1);
        }
      }
    }
    if (answered == 0) continue;
    EXPECT_GT(static_cast<double>(known), 0.85 * static_cast<double>(answered));
    EXPECT_GE(longest, std::string(kind).find("strings") == std::string::npos ? 2 : 1);
  }
}

TEST_F(MixtureTest, EvaluationsOwnPrompts) {
  const auto data = source(
      R"("kind": "needles", "tasks": ["passkey"], "distractors": 0, "questions": 1, "intro": 1, "spread": 0,
         "between_sentences": 1)",
      800);
  const NeedleText words = needle_task("passkey").text;
  std::set<size_t> places;
  for (uint64_t i = 0; i < 30; ++i) {
    const TrainBatch batch = sample(*data, i);
    const std::string all = text(batch);
    EXPECT_TRUE(all.starts_with(words.intro));
    ASSERT_EQ(batch.answers.size(), 1u);
    EXPECT_EQ(batch.answers[0].end, batch.rows());
    const std::string value = all.substr(all.size() - 6, 5);
    EXPECT_TRUE(all.ends_with(words.question + " " + value + ".")) << all;
    const size_t at = all.find(fill_in(words.needle, "", value));
    ASSERT_NE(at, all.npos);
    EXPECT_TRUE(at == words.intro.size() || all[at - 1] == '.');
    // Without needle and question, it is the noise of the evaluation.
    std::string hay = all.substr(words.intro.size(), at - words.intro.size());
    EXPECT_TRUE(noise_text(" ").starts_with(hay.substr(0, std::min<size_t>(hay.size(), 90))));
    places.insert(at);
  }
  EXPECT_GT(places.size(), 10u);
}

TEST_F(MixtureTest, WeightsByWhatATokenIs) {
  const std::string json =
      R"({"sources": [{"kind": "copy", "share": 1, "lengths": 30, "times": 3, "weight": 2}],
                               "weights": {"random": 0, "answer": 0.5}})";
  const TrainBatch batch = sample(*data(json, 89), 0);  // three times 30 tokens
  for (size_t row = 0; row < 89; ++row) {
    // The string, and the first token of its copy, of which nobody knows that one begins. 256 symbols: one
    // tells the place.
    const bool known = row + 1 >= 31;
    EXPECT_EQ(batch.weights[row], known ? 1.0f : 0.0f) << row;
    EXPECT_EQ(batch.targets[row] >= 0, known) << row;
    if (row + 1 < 89) {
      EXPECT_EQ(batch.tokens[row + 1], batch.tokens[(row + 1) % 30]);
    }
  }
  EXPECT_EQ(batch.counted(), 59);
  EXPECT_DOUBLE_EQ(batch.weight(), 59);
  EXPECT_EQ(batch.answers.size(), 2u);

  // Of a needle: the value at first is random, around it is text, asked for it is an answer.
  const TrainBatch needle = sample(*data(R"({"sources": [{"kind": "needles", "tasks": ["passkey"], "share": 1,
      "distractors": 0, "intro": 0, "spread": 0}], "weights": {"text": 2, "random": 3, "answer": 4}})",
                                         300),
                                   0);
  const std::string all = text(needle);
  const size_t key = all.find("pass key is ") + 12, twice = all.find("Remember it. ") + 13,
               asked = all.size() - 7;
  const auto weight = [&](size_t at) { return needle.weights[at - 1]; };
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(weight(key + i), 3);
    EXPECT_EQ(weight(twice + i), 2);
  }
  for (size_t i = asked; i < all.size(); ++i) EXPECT_EQ(weight(i), 4) << all.substr(i);
  EXPECT_EQ(weight(asked - 1), 2);
}

/// A source's own weights stand in place of the mixture's, field by field.
TEST_F(MixtureTest, WeightsOfOneSource) {
  const auto weights = [&](const char* own) {
    const auto json = fmt::format(
        R"({{"sources": [{{"kind": "copy", "share": 1, "lengths": 30, "times": 3{}}}],
            "weights": {{"random": 3, "answer": 0.5}}}})",
        own);
    return sample(*data(json, 89), 0).weights;
  };
  const std::vector<float> common = weights(""), own = weights(R"(, "weights": {"random": 0.25})");
  for (size_t row = 0; row < 89; ++row) {
    const bool again = row + 1 >= 31;
    EXPECT_EQ(common[row], again ? 0.5f : 3.0f) << row;
    EXPECT_EQ(own[row], again ? 0.5f : 0.25f) << row;
  }
  EXPECT_EQ(weights(R"(, "weights": {"answer": 2}, "weight": 2)")[40], 4.0f);
  EXPECT_THAT(error_of([&] { weights(R"(, "weights": {"word": 1})"); }),
              AllOf(HasSubstr("sources[0].weights"), HasSubstr("word")));
}

/// The first token of what an answer says again counts as "start" says; what follows, as an answer.
TEST_F(MixtureTest, StartsOfAnswers) {
  const auto data = this->data(
      R"({"sources": [{"share": 1, "kind": "needles", "tasks": ["multi-value"], "distractors": 0}],
          "weights": {"text": 0.25, "answer": 1, "start": 5}})",
      900);
  size_t starts = 0, values = 0;
  for (uint64_t i = 0; i < 10; ++i) {
    const TrainBatch batch = sample(*data, i);
    for (const TrainBatch::Answer& a : batch.answers) {
      for (int64_t row = a.begin; row < a.end; ++row) {
        const auto at = static_cast<size_t>(row);
        const bool digit = std::isdigit(batch.targets[at]) != 0;
        const bool first = digit && std::isdigit(batch.tokens[at]) == 0;
        values += first;
        EXPECT_EQ(batch.weights[at], first ? 5.0f : 1.0f);
      }
    }
    starts += static_cast<size_t>(std::count(batch.weights.begin(), batch.weights.end(), 5.0f));
  }
  EXPECT_GE(values, 40) << "four in each answer";
  EXPECT_EQ(starts, values) << "nothing else starts";
}

TEST_F(MixtureTest, FullSamplesAskAgain) {
  const auto with = [&](const char* fields) {
    const auto data =
        source(std::string(R"("kind": "needles", "tasks": ["niah-1"], "distractors": 1, )") + fields, 2000);
    size_t answers = 0;
    for (uint64_t i = 0; i < 20; ++i) answers += sample(*data, i).answers.size();
    return answers;
  };
  EXPECT_EQ(with(R"("questions": 2, "full": 1)"), 40);
  EXPECT_EQ(with(R"("questions": 6, "full": 1)"), 120) << "of two facts";
  EXPECT_EQ(with(R"("questions": 6, "full": 0)"), 20) << "the first fact has its question always";
  EXPECT_GT(with(R"("questions": 100, "full": 0.9)"), with(R"("questions": 100, "full": 0.5)"));
}

/// How many keys of a sample, "adjective-noun", share a word with another.
size_t resembling(const std::string& all, const std::regex& statement) {
  std::set<std::pair<std::string, std::string>> keys;
  for (std::sregex_iterator it(all.begin(), all.end(), statement); it != std::sregex_iterator(); ++it) {
    keys.emplace((*it)[1], (*it)[2]);
  }
  std::map<std::string, int> adjectives, nouns;
  for (const auto& [adjective, noun] : keys) {
    ++adjectives[adjective];
    ++nouns[noun];
  }
  return static_cast<size_t>(std::count_if(keys.begin(), keys.end(), [&](const auto& key) {
    return adjectives[key.first] > 1 || nouns[key.second] > 1;
  }));
}

TEST_F(MixtureTest, KeysThatResembleOthers) {
  const auto with = [&](const char* json, const char* statement, int64_t context) {
    const auto data = source(json, context);
    size_t count = 0;
    for (uint64_t i = 0; i < 40; ++i) count += resembling(text(sample(*data, i)), std::regex(statement));
    return count;
  };
  const char* needle = "numbers for ([a-z]+)-([a-z]+) is: ";
  const auto needles = [&](const char* similar) {
    return with(
        fmt::format(
            R"("kind": "needles", "tasks": ["niah-2"], "distractors": 7, "full": 1, "questions": 1{})",
            similar)
            .c_str(),
        needle, 1500);
  };
  const size_t chance = needles(""), half = needles(R"(, "similar": 0.5)"),
               all = needles(R"(, "similar": 1)");
  EXPECT_EQ(all, 40u * 8u);
  EXPECT_GT(half, 40u * 8u * 5 / 10);
  EXPECT_LT(half, 40u * 8u * 95 / 100);
  EXPECT_LT(chance, 40u * 8u * 4 / 10);
  const char* pair = "([a-z]+)-([a-z]+)(?:: | = | -> |\": \"|,| is )";
  EXPECT_GT(with(R"("kind": "pairs", "similar": 1)", pair, 250), with(R"("kind": "pairs")", pair, 250) * 2);
}

TEST_F(MixtureTest, MarksOfATokenFileComeFirst) {
  std::vector<TokenMark> marks(41, {3, false});
  marks[7] = {0.5f, true};
  marks[9].weight = 0;
  TokenFileWriter writer(folder_ / "marked", TokenType::u16);
  writer.append(std::vector<TokenId>(41, 'x'), marks);
  writer.commit();
  const TrainBatch batch =
      sample(*data(fmt::format(R"({{"sources": [{{"kind": "tokens", "share": 1, "weight": 2, "data": "{}"}}],
                             "weights": {{"text": 0.1}}, "resets": {{"every": 30}}}})",
                               (folder_ / "marked").string()),
                   40),
             0);
  for (size_t row = 0; row < 40; ++row) {
    EXPECT_EQ(batch.weights[row], row == 6 ? 1 : row == 8 ? 0 : 6) << row;
    EXPECT_EQ(batch.targets[row] < 0, row == 8);
    EXPECT_EQ(batch.resets[row], row == 7 || row == 30);
  }
}

TEST_F(MixtureTest, Resets) {
  const auto resets = [&](const std::string& rule, uint64_t index) {
    return sample(*data(R"({"sources": [{"kind": "pairs", "share": 1}], "resets": )" + rule + "}", 700),
                  index);
  };
  int with = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    const TrainBatch every = resets(R"({"every": [10, 20]})", i);
    int64_t last = 0;
    for (int64_t row = 0; row < every.rows(); ++row) {
      if (every.resets[static_cast<size_t>(row)] == 0) continue;
      EXPECT_GE(row - last, 10);
      EXPECT_LE(row - last, 20);
      last = row;
    }
    EXPECT_GE(last, 680);
    const TrainBatch places = resets(R"({"share": 0.5, "places": [2, 3]})", i);
    const auto count = std::count(places.resets.begin(), places.resets.end(), 1);
    with += count > 0;
    EXPECT_LE(count, 3);
  }
  EXPECT_NEAR(with, 50, 20);  // four standard deviations
  const TrainBatch asked = resets(R"({"questions": 1})", 5);
  const auto questions = static_cast<size_t>(std::count(asked.resets.begin(), asked.resets.end(), 1));
  EXPECT_GE(questions, asked.answers.size()) << "one before each question";
  EXPECT_LE(questions, asked.answers.size() + 1) << "the last may be cut before its answer ends";
  for (const TrainBatch::Answer& answer : asked.answers) {
    // Behind a reset there is the key, and no line ends.
    int64_t row = answer.begin;
    while (asked.resets[static_cast<size_t>(row)] == 0) --row;
    EXPECT_LT(answer.begin - row, 60);
  }
  // A source's own rule, and a phase's, come before the mixture's.
  const auto own = mixture(R"({"sources": [{"kind": "pairs", "share": 1, "resets": {"every": 7}},
      {"kind": "copy", "name": "other", "lengths": 9}], "resets": {"every": 5},
      "phases": [{"shares": {"other": 1}, "resets": {"every": 3}}]})");
  const auto first = [&](const MixturePhase* phase) {
    const TrainBatch batch = sample(*make_mixture_data(own, {200, 0, 256, phase, {}}), 0);
    return std::find(batch.resets.begin(), batch.resets.end(), 1) - batch.resets.begin();
  };
  EXPECT_EQ(first(nullptr), 7);
  EXPECT_EQ(first(&own->phases()[0]), 3);
}

TEST_F(MixtureTest, SharesAndPhases) {
  const auto mixed = mixture(R"({"sources": [
      {"name": "a", "kind": "copy", "symbols": "aA", "lengths": 2, "share": 3},
      {"name": "b", "kind": "copy", "symbols": "bB", "lengths": 2, "share": 1},
      {"name": "c", "kind": "copy", "symbols": "cC", "lengths": 2}],
      "phases": [{"steps": 3, "context": 9}, {"shares": {"c": 0.1}}]})");
  const auto counts = [&](const MixturePhase* phase) {
    const auto data = make_mixture_data(mixed, {8, 1, 256, phase, {}});
    std::map<int, int> out;
    for (uint64_t i = 0; i < 400; ++i) ++out[std::tolower(sample(*data, i).tokens[0])];
    return out;
  };
  for (const MixturePhase* phase : {static_cast<const MixturePhase*>(nullptr), &mixed->phases()[0]}) {
    const auto usual = counts(phase);
    EXPECT_NEAR(usual.at('a'), 300, 35);  // four standard deviations
    EXPECT_EQ(usual.count('c'), 0u);
  }
  EXPECT_EQ(counts(&mixed->phases()[1]), (std::map<int, int>{{'c', 400}}));
}

TEST_F(MixtureTest, SplitSamplesAreSequencesOfTheirOwn) {
  const auto data = source(R"("kind": "needles", "tasks": ["passkey"], "split": [3, 3])", 600);
  std::set<int64_t> sizes;
  for (uint64_t i = 0; i < 20; ++i) {
    const TrainBatch batch = sample(*data, i);
    EXPECT_EQ(batch.rows(), 600);
    ASSERT_EQ(batch.sequences(), 3);
    EXPECT_GE(batch.answers.size(), 3u);
    for (size_t s = 0; s < 3; ++s) sizes.insert(batch.offsets[s + 1] - batch.offsets[s]);
  }
  EXPECT_GT(sizes.size(), 20u);
  // As many as there is room for.
  EXPECT_EQ(sample(*source(R"("kind": "needles", "tasks": ["passkey"], "split": 50)", 260), 0).sequences(),
            2);
}

TEST_F(MixtureTest, HeldOutQuestions) {
  const auto mixed = mixture(R"({"sources": [{"kind": "tokens", "share": 99},
      {"kind": "needles", "share": 1, "split": 2, "resets": {"every": 3}}]})");
  MixtureView view{500, 9, 256, nullptr, ResetRule{}};
  const TrainBatch plain = sample(*make_mixture_data(mixed, view), 0);
  EXPECT_FALSE(plain.answers.empty());
  EXPECT_EQ(plain.sequences(), 1);
  EXPECT_EQ(std::count(plain.resets.begin(), plain.resets.end(), 1), 0);
  view.asking->questions = 1;
  const TrainBatch reset = sample(*make_mixture_data(mixed, view), 0);
  EXPECT_EQ(reset.tokens, plain.tokens);
  EXPECT_EQ(std::count(reset.resets.begin(), reset.resets.end(), 1),
            static_cast<int64_t>(reset.answers.size()));
}

TEST_F(MixtureTest, WhatCannotWorkIsRefused) {
  const auto error = [&](const std::string& json, int64_t context = 500) {
    return error_of([&] { data(json, context)->add(0, *std::make_unique<TrainBatch>()); });
  };
  const auto in_source = [&](const std::string& fields) {
    return error(R"({"sources": [{"share": 1, )" + fields + "}]}");
  };
  EXPECT_THAT(error(""), AllOf(HasSubstr("mix.json"), HasSubstr("empty")));
  EXPECT_THAT(error("{"), HasSubstr("not JSON"));
  EXPECT_THAT(error("[]"), HasSubstr("object"));
  EXPECT_THAT(error("{}"), HasSubstr("\"sources\""));
  EXPECT_THAT(error(R"({"sources": []})"), HasSubstr("\"sources\""));
  EXPECT_THAT(error(R"({"sources": [3]})"), AllOf(HasSubstr("sources[0]"), HasSubstr("object")));
  EXPECT_THAT(error(R"({"sources": [{"kind": "copy"}], "weight": {}})"), HasSubstr("\"weight\""));
  EXPECT_THAT(error(R"({"sources": [{"kind": "copy"}]})"), HasSubstr("shares of all sources are 0"));
  EXPECT_THAT(error(R"({"sources": [{"kind": "copy"}, {"kind": "copy"}]})"), HasSubstr("name"));
  EXPECT_THAT(in_source(R"("kind": "copies")"), AllOf(HasSubstr("copies"), HasSubstr("needles")));
  EXPECT_THAT(in_source(R"("kind": "copy", "length": 3)"),
              AllOf(HasSubstr("\"length\""), HasSubstr("lengths")));
  EXPECT_THAT(in_source(R"("kind": "copy", "lengths": [9, 3])"), HasSubstr("\"lengths\""));
  EXPECT_THAT(in_source(R"("kind": "copy", "lengths": 1e300)"), HasSubstr("\"lengths\""));
  EXPECT_THAT(in_source(R"("kind": "copy", "symbols": 257)"), HasSubstr("\"symbols\""));
  EXPECT_THAT(in_source(R"("kind": "copy", "symbols": "x")"), HasSubstr("\"symbols\""));
  EXPECT_THAT(in_source(R"("kind": "copy", "weight": -1)"), HasSubstr("\"weight\""));
  EXPECT_THAT(in_source(R"("kind": "needles", "tasks": ["hay"])"),
              AllOf(HasSubstr("passkey"), HasSubstr("facts")));
  EXPECT_THAT(in_source(R"("kind": "needles", "tasks": "passkey")"), HasSubstr("list"));
  EXPECT_THAT(in_source(R"("kind": "needles", "haystack": "straw")"), HasSubstr("\"haystack\""));
  EXPECT_THAT(in_source(R"("kind": "needles", "data": "x")"), HasSubstr("\"text\""));
  for (const char* share : {"2", "[0.5, 0.2]", "[0.1]", "\"all\"", "-0.1"}) {
    EXPECT_THAT(in_source(std::string(R"("kind": "needles", "full": )") + share), HasSubstr("\"full\""));
  }
  EXPECT_THAT(in_source(R"("kind": "tokens", "data": "missing")"), HasSubstr("missing"));
  EXPECT_THAT(in_source(R"("kind": "copy", "resets": {"every": 0})"), HasSubstr("\"every\""));
  EXPECT_THAT(error(R"({"sources": [{"kind": "needles", "share": 1}]})", 60),
              AllOf(HasSubstr("\"needles\""), HasSubstr("at least"), HasSubstr("60")));
  EXPECT_THAT(error(R"({"sources": [{"kind": "tokens", "share": 1}]})", 30000), HasSubstr("30001"));
  const auto in_phases = [&](const std::string& phases) {
    return error(R"({"sources": [{"kind": "copy", "share": 1}], "phases": )" + phases + "}");
  };
  EXPECT_THAT(in_phases("[]"), HasSubstr("\"phases\""));
  EXPECT_THAT(in_phases("[{}, {}]"), HasSubstr("\"steps\""));
  EXPECT_THAT(in_phases(R"([{"shares": {"passkey": 1}}])"), HasSubstr("\"passkey\""));
  EXPECT_THAT(in_phases(R"([{"steps": [3, 4]}])"), HasSubstr("\"steps\""));
  EXPECT_EQ(error(R"({"sources": [{"kind": "copy", "share": 1}], /* notes */ "phases": [{"steps": 3}]})"),
            "");
}

}  // namespace
}  // namespace rwkvx
