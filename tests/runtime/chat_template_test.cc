#include "tokenizer/chat_template.h"

#include <gtest/gtest.h>

#include "runtime/text_stream.h"

namespace rwkvx {
namespace {

TEST(ChatTemplate, CleansMessages) {
  const std::pair<std::string, std::string> cases[] = {
      {"hi", "hi"},
      {"  hi \n", "hi"},
      {"a\n\nb", "a\nb"},
      {"a\n\n\n\nb", "a\nb"},
      {"a\nb", "a\nb"},
      {"a\r\nb\r\n\r\nc", "a\nb\nc"},
      {"a\rb\r\rc", "a\nb\nc"},
      {"a\n \t \nb", "a\nb"},
      {"a\n\n    indented\n", "a\n    indented"},
      {"\n\n  a  b  \n\n", "a  b"},
      {"", ""},
      {" \r\n\t\n", ""},
      {"User: x\n\nAssistant: y", "User: x\nAssistant: y"},
  };
  for (const auto& [message, cleaned] : cases) EXPECT_EQ(clean_message(message), cleaned);
}

TEST(ChatTemplate, FirstTurn) {
  EXPECT_EQ(ChatTemplate{}.first_turn("hi\n\nthere "), "User: hi\nthere\n\nAssistant:");
  EXPECT_EQ((ChatTemplate{.system = "Be brief.\n\n"}.first_turn("hi")),
            "System: Be brief.\n\nUser: hi\n\nAssistant:");
  EXPECT_EQ((ChatTemplate{.system = " \n"}.first_turn("hi")), "User: hi\n\nAssistant:");
  EXPECT_EQ((ChatTemplate{.thinking = Thinking::think}.first_turn("hi")), "User: hi\n\nAssistant: <think");
  EXPECT_EQ((ChatTemplate{.thinking = Thinking::pretend}.first_turn("hi")),
            "User: hi\n\nAssistant: <think>\n</think");
  EXPECT_EQ(ChatTemplate{}.first_turn(" "), "User:\n\nAssistant:");
}

TEST(ChatTemplate, NextTurnGoesOnWhereTheStateIs) {
  const ChatTemplate chat{.system = "only once"};
  const std::string turn = "\n\nUser: more\n\nAssistant:";
  EXPECT_EQ(chat.next_turn("more", " An answer."), turn);
  EXPECT_EQ(chat.next_turn("more", ""), turn);
  // Whatever part of the separator the state has seen, the conversation reads the same.
  for (size_t seen = 0; seen <= std::string("\n\nUser:").size(); ++seen) {
    const std::string answered = " An answer." + turn.substr(0, seen);
    EXPECT_EQ(answered + chat.next_turn("more", answered), " An answer." + turn);
    EXPECT_EQ(chat.next_turn("more", turn.substr(0, seen)), turn.substr(seen));
  }
  EXPECT_EQ(chat.next_turn("more", "three\n\n\n"), "User: more\n\nAssistant:");
  EXPECT_EQ(chat.next_turn("more", "not it: User"), turn);
  EXPECT_EQ((ChatTemplate{.thinking = Thinking::think}.next_turn("more", "a")), turn + " <think");
}

TEST(ChatTemplate, StopsAtTheNextTurnOfEitherSide) {
  for (const char* next : {"\n\nUser: and", "\n\nAssistant: and"}) {
    TextStream stream(ChatTemplate::stop_strings());
    const TextStream::Piece piece = stream.feed(std::string(" Line.\n\nAnother.\nUser: quoted.") + next);
    EXPECT_EQ(piece.text, " Line.\n\nAnother.\nUser: quoted.");
    EXPECT_TRUE(piece.stopped);
  }
}

}  // namespace
}  // namespace rwkvx
