// chat, its commands typed in by a pipe: answers go to stdout, notes to stderr.
#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

const std::string kCycle = ":Hey!";  // what comes after "Assistant:"

class ChatTest : public test::ProgramTest {
 protected:
  ChatTest() { test::successor_model(kCycle).write(folder_ / "model"); }

  Result chat(const std::string& typed, std::vector<std::string> arguments = {}) const {
    arguments.insert(arguments.begin(), {"chat", file("model"), "--temperature", "0", "--max-tokens", "4"});
    return run_program(arguments, {.input = typed});
  }
  /// Of the trained model, sampled.
  Result talk(const std::string& typed, std::vector<std::string> arguments = {}) const {
    arguments.insert(arguments.begin(),
                     {"chat", proto_, "--max-tokens", "12", "--seed", "4", "--top-p", "1"});
    return run_program(arguments, {.input = typed});
  }
};

TEST_F(ChatTest, AnswersEachMessage) {
  const Result result = chat("Hello\nAnd now?\n");
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, "Hey!\nHey!\n");
  EXPECT_THAT(result.err, HasSubstr("--max-tokens"));
}

TEST_F(ChatTest, EndsWithTheInputOrQuit) {
  EXPECT_EQ(chat("").code, 0);
  EXPECT_EQ(chat("").out, "");
  EXPECT_EQ(chat("\n  \n").out, "") << "blank lines say nothing";
  EXPECT_EQ(chat("Hi\n/quit\nHi\n").out, "Hey!\n");
  EXPECT_EQ(chat("Hi").out, "Hey!\n") << "a last line without an end";
}

TEST_F(ChatTest, MessagesOfAnyBytes) {
  const Result result = chat("\xff\xfe\xc3 \x01\n");
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "Hey!\n");
}

TEST_F(ChatTest, ResetBeginsAnew) {
  const std::vector<std::string> greedy{"--temperature", "0"};
  const std::string message = "Once upon a time\n", once = talk(message, greedy).out;
  EXPECT_EQ(talk(message + "/reset\n" + message, greedy).out, once + once);
  EXPECT_NE(talk(message + message, greedy).out, once + once) << "or the test shows nothing";
}

TEST_F(ChatTest, UndoTakesBackATurn) {
  const std::vector<std::string> greedy{"--temperature", "0"};
  const std::string a = "The quick brown fox\n", b = "A completely different thing\n", c = "And what then?\n";
  const std::string without = talk(a + c, greedy).out;
  const std::string with_undo = talk(a + b + "/undo\n" + c, greedy).out;
  const std::string first = talk(a, greedy).out, first_two = talk(a + b, greedy).out;
  EXPECT_EQ(with_undo, first_two + without.substr(first.size()));
  expect_error(chat("/undo\n"), 1, {"no turn"});
  const Result twice = chat("Hi\n/undo\n/undo\n");
  EXPECT_EQ(twice.code, 1);
  EXPECT_THAT(twice.err, HasSubstr("no turn"));
}

TEST_F(ChatTest, RegenAnswersAgain) {
  EXPECT_EQ(chat("Hi\n/regen\n").out, "Hey!\nHey!\n");
  // Greedily the answer is the same again, also to what follows.
  const std::vector<std::string> greedy{"--temperature", "0"};
  const std::string one = talk("The quick brown fox\n", greedy).out;
  EXPECT_EQ(talk("The quick brown fox\n/regen\n", greedy).out, one + one);
  const std::string two = talk("The quick brown fox\nAnd then?\n", greedy).out;
  EXPECT_EQ(talk("The quick brown fox\n/regen\nAnd then?\n", greedy).out, one + two);
  expect_error(chat("/regen\n"), 1, {"no turn"});
}

TEST_F(ChatTest, SaveAndLoadGoOn) {
  const std::string a = "The quick brown fox\n", b = "jumps over\n";
  const std::string whole = talk(a + b).out;
  const std::string saved = talk(a + "/save " + file("talk") + "\n").out;
  const Result loaded = talk("/load " + file("talk") + "\n" + b);
  EXPECT_EQ(loaded.code, 0) << loaded.err;
  EXPECT_EQ(saved + loaded.out, whole);
  EXPECT_THAT(loaded.err, HasSubstr("The quick brown fox")) << "shows what was said";
  const Result flag = talk(b, {"--load", file("talk")});
  EXPECT_EQ(saved + flag.out, whole);
}

TEST_F(ChatTest, FilesThatCannotBeLoaded) {
  expect_error(chat("/load " + file("none") + "\n"), 1, {file("none")});
  expect_error(chat("/load\n"), 1, {"/load", "file"});
  expect_error(chat("/save\n"), 1, {"/save", "file"});
  expect_error(chat("/save " + file("no/folder/talk") + "\n"), 1, {file("no/folder/talk")});
  expect_error(chat("", {"--load", file("none")}), 1, {file("none")});
  ASSERT_EQ(chat("Hi\n/save " + file("talk") + "\n").code, 0);
  expect_error(talk("/load " + file("talk") + "\n"), 1, {file("talk"), "another model"});
  // A state of generate holds no conversation.
  ASSERT_EQ(run_program({"generate", file("model"), "--prompt", "x", "--max-tokens", "1", "--state-out",
                         file("state")})
                .code,
            0);
  expect_error(chat("/load " + file("state") + "\n"), 1, {file("state"), "generate"});
  EXPECT_THAT(folder_.files(), testing::ElementsAre("model", "state", "talk"));
}

TEST_F(ChatTest, UnknownCommands) {
  expect_error(chat("/dance\n"), 1, {"/dance", "/help"});
  const Result help = chat("/help\n");
  EXPECT_EQ(help.code, 0);
  for (const char* command : {"/reset", "/undo", "/regen", "/save", "/load"})
    EXPECT_THAT(help.err, HasSubstr(command));
}

TEST_F(ChatTest, AtATerminal) {
  test::Terminal terminal({"chat", file("model"), "--temperature", "0", "--max-tokens", "4"});
  ASSERT_TRUE(terminal.shows("/help")) << terminal.shown();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("Hello\n");
  ASSERT_TRUE(terminal.shows("Hey!")) << terminal.shown();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("/dance\n");  // an error, and the conversation goes on
  ASSERT_TRUE(terminal.shows("unknown command")) << terminal.shown();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("\x10\x10\n");  // two lines up in the history
  ASSERT_TRUE(terminal.shows("Hello")) << terminal.shown();
  ASSERT_TRUE(terminal.shows("Hey!")) << terminal.shown();
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("/undo\n");
  ASSERT_TRUE(terminal.shows("1 turns left")) << terminal.shown();
  // Before the prompt the terminal still edits lines itself and would keep Ctrl-D from the program.
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("\x04");
  EXPECT_EQ(terminal.wait(), 0) << terminal.shown();
}

TEST_F(ChatTest, ControlCStopsTheAnswerAndNotTheChat) {
  test::Terminal terminal({"chat", file("model"), "--temperature", "0", "--max-tokens", "1000000000"});
  ASSERT_TRUE(terminal.shows("> ")) << terminal.shown();
  terminal.type("Hello\n");
  ASSERT_TRUE(terminal.shows("Hey!:Hey!:Hey!")) << terminal.shown();
  terminal.type("\x03");
  ASSERT_TRUE(terminal.shows("\n> ")) << terminal.shown();
  terminal.type("/undo\n");
  ASSERT_TRUE(terminal.shows("0 turns left")) << "the part that was said is a turn";
  terminal.type("/quit\n");
  EXPECT_EQ(terminal.wait(), 0) << terminal.shown();
}

}  // namespace
}  // namespace rwkvx
