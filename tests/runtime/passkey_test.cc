// The committed hybrid answers its passkey prompts of 1K to 64K bytes by taking the most likely token.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "model/support.h"
#include "runtime/model_loader.h"
#include "runtime/session.h"

namespace rwkvx {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#elif defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

struct Passkey {
  int64_t length = 0;
  std::string prompt, answer;
};

std::vector<Passkey> passkeys(int64_t length) {
  std::vector<Passkey> all;
  std::ifstream file(test::data("rwkvx-proto-1.3m/passkeys.jsonl"));
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    Passkey p{json.at("length"), json.at("prompt"), json.at("answer")};
    if (p.length == length) all.push_back(std::move(p));
  }
  return all;
}

class PasskeyTest : public testing::TestWithParam<std::tuple<int64_t, Precision>> {};

TEST_P(PasskeyTest, AllAreAnswered) {
  const auto [length, precision] = GetParam();
  if (kSanitized && length > 4096) {
    GTEST_SKIP() << "prompts of " << length << " bytes are left to builds without sanitizers";
  }
  const auto prompts = passkeys(length);
  ASSERT_EQ(prompts.size(), 6u);
  const auto model = test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", precision);
  const auto tokenizer = load_tokenizer(model->checkpoint(), std::nullopt);
  for (const Passkey& p : prompts) {
    ASSERT_EQ(static_cast<int64_t>(p.prompt.size()), length);
    Session session(model);
    session.append(tokenizer->encode(p.prompt));
    std::vector<TokenId> answer;
    while (answer.size() < p.answer.size()) {
      const auto logits = session.logits();
      answer.push_back(static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      session.append(answer.back());
    }
    EXPECT_EQ(tokenizer->decode(answer), p.answer);
  }
}

INSTANTIATE_TEST_SUITE_P(Lengths, PasskeyTest,
                         testing::Combine(testing::Values(1024, 4096, 16384, 65536),
                                          testing::Values(Precision::bf16)),
                         [](const auto& test) {
                           return fmt::format("{}_{}", std::get<0>(test.param),
                                              name(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace rwkvx
