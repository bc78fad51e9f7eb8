// Conversations to fine-tune on: what counts, and files that are wrong.
#include "training/chat_data.h"

#include <gmock/gmock.h>

#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

class ChatDataTest : public ::testing::Test {
 protected:
  std::unique_ptr<TrainingData> read(const std::string& lines, int64_t context = 1000) const {
    AtomicFile file(folder_ / "chat.jsonl");
    file.write(lines);
    file.commit();
    return read_chat_data(folder_ / "chat.jsonl", *tokenizer_, {.context = context, .vocab = 256});
  }
  /// The text of the rows, and that of the targets that count.
  std::pair<std::string, std::string> texts(const TrainingData& data, uint64_t index) const {
    TrainBatch batch;
    data.add(index, batch);
    std::string counted;
    for (const int32_t target : batch.targets)
      if (target >= 0) counted += static_cast<char>(target);
    return {tokenizer_->decode(batch.tokens), counted};
  }
  const test::TemporaryFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_ = make_byte_tokenizer();
};

TEST_F(ChatDataTest, OnlyAnswersCount) {
  const auto data = read(R"({"messages": [{"role": "system", "content": "Be kind."},)"
                         R"( {"role": "user", "content": "Hi\n\nyou "},)"
                         R"( {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"},)"
                         R"( {"role": "assistant", "content": "So long."}]})");
  const auto [text, counted] = texts(*data, 0);
  EXPECT_EQ(text,
            "System: Be kind.\n\nUser: Hi\nyou\n\nAssistant: Hello!\n\nUser: Bye\n\nAssistant: So long.\n");
  EXPECT_EQ(counted, " Hello!\n\n So long.\n\n");
}

TEST_F(ChatDataTest, ShareGptAndOrder) {
  std::string lines;
  for (char c = 'a'; c < 'k'; ++c) {
    lines += std::string(
                 "{\"conversations\": [{\"from\": \"human\", \"value\": \"x\"}, {\"from\": \"gpt\", "
                 "\"value\": \"") +
             c + "\"}]}\n\n";
  }
  const auto data = read(lines);
  EXPECT_EQ(data->epoch(), 10u);
  std::string answers;
  for (uint64_t i = 0; i < 10; ++i) answers += texts(*data, i).second[1];
  EXPECT_NE(answers, "abcdefghij");
  std::sort(answers.begin(), answers.end());
  EXPECT_EQ(answers, "abcdefghij");
}

TEST_F(ChatDataTest, LongOnesAreCut) {
  const std::string line =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": "
      "\"abcdefgh\"}]}";
  const auto data = read(line, 22);  // "User: x\n\nAssistant:" has 19
  EXPECT_EQ(texts(*data, 0).second, " abc");
  EXPECT_THAT(error_of([&] { read(line, 18); }), AllOf(HasSubstr("line 1"), HasSubstr("--context")));
}

TEST_F(ChatDataTest, WrongLinesAreNamed) {
  const std::pair<const char*, const char*> bad[] = {
      {"nonsense", "no JSON object"},
      {"{}", "messages"},
      {R"({"messages": 3})", "messages"},
      {R"({"messages": [{"role": "user"}]})", "turn 1"},
      {R"({"messages": [{"role": "robot", "content": "x"}]})", "robot"},
      {R"({"messages": [{"role": "user", "content": "x"}]})", "says nothing"}};
  for (const auto& [line, message] : bad) {
    EXPECT_THAT(error_of([&] { read(std::string("\n") + line + "\n"); }),
                AllOf(HasSubstr("chat.jsonl, line 2: "), HasSubstr(message)));
  }
  EXPECT_THAT(error_of([&] { read(" \n"); }), HasSubstr("no conversations"));
}

}  // namespace
}  // namespace rwkvx
