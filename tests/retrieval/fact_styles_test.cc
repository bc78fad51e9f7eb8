#include "retrieval/fact_styles.h"

#include <gmock/gmock.h>

#include <set>

namespace rwkvx {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(FactStylesTest, StatementsHoldKeyAndValueAndQuestionsTheKey) {
  Random random(1);
  std::set<std::string> questions;
  for (int i = 0; i < 500; ++i) {
    const FactStyle style = draw_fact_style(random);
    EXPECT_THAT(style.text.needle, HasSubstr("{key}"));
    EXPECT_THAT(style.text.needle, HasSubstr("{value}"));
    EXPECT_THAT(style.text.question, HasSubstr("{key}"));
    EXPECT_THAT(style.text.question, Not(HasSubstr("{value}")));
    EXPECT_THAT(style.text.needle + style.text.question, Not(HasSubstr("{thing}")));
    questions.insert(style.text.question);
  }
  EXPECT_GT(questions.size(), 80u) << "styles and things vary";
}

TEST(FactStylesTest, KeysAreAsManyAsSaid) {
  Random random(2);
  for (const FactKeys keys : {FactKeys::people, FactKeys::things}) {
    std::set<std::string> drawn;
    for (int i = 0; i < 2000; ++i) drawn.insert(draw_fact_key(keys, random));
    EXPECT_EQ(static_cast<int64_t>(drawn.size()), fact_key_count(keys));
  }
}

TEST(FactStylesTest, PassKeysAmongOtherThings) {
  for (const char* name : {"passkey", "passkey-bare"}) {
    const NeedleText text = needle_task(name).text;
    const FactStyle style = passkey_style(text);
    EXPECT_EQ(fill_in(style.text.needle, kPassKey, "1"), fill_in(text.needle, "", "1"));
    EXPECT_EQ(fill_in(style.text.question, kPassKey, ""), text.question);
    EXPECT_THAT(fill_in(style.text.needle, "door code", "1"), Not(HasSubstr("pass key")));
  }
}

}  // namespace
}  // namespace rwkvx
