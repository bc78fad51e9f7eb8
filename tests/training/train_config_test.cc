#include "training/train_config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

TrainConfig good() {
  TrainConfig config;
  config.data = "tokens";
  return config;
}

TEST(TrainConfig, StagesFillInWhatIsNotSaid) {
  TrainConfig config = resolved(good());
  EXPECT_EQ(config.context, 1024);
  EXPECT_EQ(config.lr, 6e-4);
  EXPECT_DOUBLE_EQ(config.lr_final, 6e-5);
  EXPECT_FALSE(parse_longce(config.longce));
  config = good();
  config.stage = "long";
  config.load = "model";
  config.lr_final = 0;
  config = resolved(config);
  EXPECT_EQ(config.context, 65536);
  EXPECT_EQ(config.lr, 1e-5);
  EXPECT_EQ(config.lr_final, 0);
  EXPECT_EQ(parse_longce(config.longce)->window, 4096);
  // Resolving twice changes nothing.
  EXPECT_EQ(to_json(resolved(config)), to_json(config));
}

TEST(TrainConfig, ThereAndBackAsJson) {
  TrainConfig config = resolved(good());
  config.lr = 0.1234567890123456;
  config.document_resets = true;
  config.stage = "al\"ign";
  config.seed = INT64_MAX;
  TrainConfig read;
  read_json(to_json(config), "config.json", read);
  EXPECT_EQ(to_json(read), to_json(config));
  EXPECT_EQ(read.lr, config.lr);
  EXPECT_EQ(read.seed, config.seed);
}

TEST(TrainConfig, FilesThatAreWrong) {
  const auto error = [](const std::string& text) {
    TrainConfig config;
    return error_of([&] { read_json(text, "run.json", config); });
  };
  EXPECT_EQ(error("{}"), "");
  EXPECT_EQ(error("{\"lr\": 1}"), "");
  for (const char* text : {"", "[]", "3", "{\"lr\": 1", "\xff"})
    EXPECT_THAT(error(text), HasSubstr("run.json"));
  EXPECT_THAT(error("{\"lrr\": 1}"), AllOf(HasSubstr("run.json"), HasSubstr("\"lrr\"")));
  EXPECT_THAT(error("{\"lr\": \"1\"}"), HasSubstr("\"lr\""));
  EXPECT_THAT(error("{\"steps\": 1.5}"), HasSubstr("\"steps\""));
  EXPECT_THAT(error("{\"data\": null}"), HasSubstr("\"data\""));
  EXPECT_THAT(error("{\"document-resets\": 1}"), HasSubstr("\"document-resets\""));
}

TEST(TrainConfig, EveryNumberIsChecked) {
  // A value that no number of a run can have: the message names the flag.
  TrainConfig base = resolved(good());
  TrainConfig::for_each_setting(base, [&](const char* name, auto& member, const char*, const char*) {
    using Value = std::decay_t<decltype(member)>;
    if constexpr (std::is_arithmetic_v<Value> && !std::is_same_v<Value, bool>) {
      const Value before = member;
      member = static_cast<Value>(-5);
      const std::string flag = std::string("--") + name + " ";
      if (std::string(name) != "lr-final") {
        EXPECT_THAT(error_of([&] { resolved(base); }), HasSubstr(flag));
      }
      member = before;
    }
  });
  for (std::string TrainConfig::*choice :
       {&TrainConfig::stage, &TrainConfig::order, &TrainConfig::schedule, &TrainConfig::precision,
        &TrainConfig::device, &TrainConfig::recompute, &TrainConfig::longce}) {
    TrainConfig config = good();
    config.*choice = "abacus";
    EXPECT_THAT(error_of([&] { resolved(config); }), HasSubstr("abacus"));
  }
  TrainConfig pointing = good();
  pointing.mixture.clear();
  pointing.pointing_loss = 0.3;
  EXPECT_THAT(error_of([&] { resolved(pointing); }), HasSubstr("--pointing-loss is for --mixture"));
  EXPECT_THROW(resolved(TrainConfig()), UsageError) << "neither --data nor --chat";
}

/// Runs from before GPUs have "backend" in their config.json.
TEST(TrainConfig, ReadsTheDeviceByItsFormerName) {
  TrainConfig config;
  read_json(R"({"backend": "reference"})", "config.json", config);
  EXPECT_EQ(config.device, "reference");
}

TEST(TrainConfig, LongCe) {
  const LongCe s = parse_longce("16/8/2.5").value();
  EXPECT_EQ(s.window, 16);
  EXPECT_EQ(s.stride, 8);
  EXPECT_EQ(s.gamma, 2.5);
  EXPECT_EQ(parse_longce("rwkvx")->gamma, 10);
  for (const char* text : {"", "on", "16/8", "16/8/2.5x", "0/8/2", "16/0/2", "16/8/0", "16/8/nan", "16/8/inf",
                           "99999999999/1/1", "-3/1/1"}) {
    EXPECT_THAT(error_of([&] { parse_longce(text); }), HasSubstr("--longce")) << text;
  }
}

}  // namespace
}  // namespace rwkvx
