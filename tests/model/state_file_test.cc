// State files: damaged and foreign ones are refused with the right words, and leave the state as it was.
#include "model/state_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "model/support.h"
#include "model/tensor_file.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

constexpr CheckpointOptions kChunks{4, 2};
constexpr size_t kTokens = 10;  // two chunks and a half

class StateFileTest : public testing::Test {
 protected:
  StateFileTest() {
    test::small_model(2, 1).write(folder_ / "model");
    model_ = test::open_model(folder_ / "model", "cpu", Precision::f32, kChunks);
    State state = model_->new_state();
    test::run(*model_, state, test::random_tokens(kTokens, 256, 1));
    saved_ = test::contents(state);
    fingerprint_ = model_->fingerprint();
    save_state(path(), state, fingerprint_, R"({"any": "text"})");
    file_ = read_file(path());
    other_.emplace(model_->new_state());
    test::run(*model_, *other_, std::vector<int32_t>{1, 2, 3, 4, 5, 6});
    before_ = test::contents(*other_);
  }

  Path path() const { return folder_ / "state"; }
  void write(std::string_view bytes) const {
    std::ofstream out(path(), std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }

  /// The file cannot be loaded, the message names it and says `part`, and the state stays as it is.
  template <typename Matcher>
  void expect_refused(std::string_view bytes, const Matcher& message) {
    write(bytes);
    EXPECT_THAT([&] { load_state(path(), *other_, fingerprint_); },
                ThrowsMessage<Error>(AllOf(HasSubstr(path().string()), Not(HasSubstr("\n")), message)));
    EXPECT_EQ(other_->position(), 6);
    EXPECT_TRUE(test::distance(test::contents(*other_), before_).bitwise);
  }

  nlohmann::json header() const {
    uint64_t size = 0;
    std::memcpy(&size, file_.data() + 8, 8);
    return nlohmann::json::parse(file_.substr(16, size));
  }
  /// The saved file with another header, whose checksum is right.
  std::string with_header(const std::string& text) const {
    uint64_t size = 0;
    std::memcpy(&size, file_.data() + 8, 8);
    const std::string payload = file_.substr(16 + size, file_.size() - 24 - size);
    return sealed(file_.substr(0, 8) + bytes_of_number(text.size()) + text + payload);
  }
  static std::string bytes_of_number(uint64_t n) { return {reinterpret_cast<const char*>(&n), 8}; }
  static std::string sealed(const std::string& bytes) {
    return bytes + bytes_of_number(hash64(std::as_bytes(std::span(bytes))));
  }

  const test::TemporaryFolder folder_;
  std::shared_ptr<const Model> model_;
  uint64_t fingerprint_ = 0;
  std::vector<float> saved_;    // contents of the saved state
  std::string file_;            // the saved file
  std::optional<State> other_;  // another sequence's state, and its contents
  std::vector<float> before_;
};

TEST_F(StateFileTest, LoadsWhatWasSaved) {
  State state = model_->new_state();
  EXPECT_EQ(load_state(path(), state, fingerprint_), R"({"any": "text"})");
  EXPECT_EQ(state.position(), static_cast<int64_t>(kTokens));
  EXPECT_TRUE(test::distance(test::contents(state), saved_).bitwise);
}

TEST_F(StateFileTest, EmptyStates) {
  const State empty = model_->new_state();
  save_state(path(), empty, fingerprint_, "");
  State state = model_->new_state();
  test::run(*model_, state, std::vector<int32_t>{1, 2, 3});
  EXPECT_EQ(load_state(path(), state, fingerprint_), "");
  EXPECT_EQ(state.position(), 0);
  EXPECT_TRUE(test::distance(test::contents(state), test::contents(empty)).bitwise);
}

TEST_F(StateFileTest, TruncatedAnywhere) {
  for (size_t size = 0; size < file_.size(); size += size < 600 ? 1 : 997) {
    SCOPED_TRACE(size);
    expect_refused(std::string_view(file_).substr(0, size),
                   size < 24 ? HasSubstr("is not a state file") : HasSubstr("checksum"));
  }
  expect_refused(std::string_view(file_).substr(0, file_.size() - 1), HasSubstr("checksum"));
}

TEST_F(StateFileTest, AnyFlippedBit) {
  for (size_t at = 0; at < file_.size(); at += at < 600 || at + 20 > file_.size() ? 1 : 613) {
    SCOPED_TRACE(at);
    std::string damaged = file_;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
    expect_refused(damaged, at < 8 ? HasSubstr("is not a state file") : HasSubstr("checksum"));
  }
}

TEST_F(StateFileTest, LongerFiles) {
  expect_refused(file_ + "x", HasSubstr("checksum"));
  expect_refused(sealed(file_.substr(0, file_.size() - 8) + std::string(4, '\0')), HasSubstr("longer"));
}

TEST_F(StateFileTest, ShorterPayload) {
  expect_refused(sealed(file_.substr(0, file_.size() - 12)), HasSubstr("shorter"));
  uint64_t size = 0;
  std::memcpy(&size, file_.data() + 8, 8);
  expect_refused(sealed(file_.substr(0, 16 + size)), HasSubstr("shorter"));
}

TEST_F(StateFileTest, HeaderLengthBeyondTheFile) {
  for (const uint64_t size : {file_.size(), uint64_t{1} << 40, ~uint64_t{0}, ~uint64_t{15}}) {
    expect_refused(sealed(file_.substr(0, 8) + bytes_of_number(size) + file_.substr(16, file_.size() - 24)),
                   HasSubstr("header"));
  }
}

TEST_F(StateFileTest, HeadersThatAreNotWhatTheyShouldBe) {
  for (const char* text : {"", "null", "[]", "3", "{}", "{", "\"text\"", "\xff\xfe"}) {
    SCOPED_TRACE(text);
    expect_refused(with_header(text), HasSubstr("header"));
  }
  expect_refused(with_header(std::string(100000, '[')), HasSubstr("header"));
  const nlohmann::json original = header();
  for (const auto& [key, value] : original.items()) {
    SCOPED_TRACE(key);
    nlohmann::json missing = original, other = original;
    missing.erase(key);
    expect_refused(with_header(missing.dump()), HasSubstr("header"));
    other[key] = nlohmann::json::array({1});
    expect_refused(with_header(other.dump()), HasSubstr("header"));
  }
  const auto changed = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json json = header();
    json[key] = value;
    return with_header(json.dump());
  };
  expect_refused(changed("format", 3), HasSubstr("newer"));
  expect_refused(changed("format", 1), HasSubstr("format 1"));
  for (const char* key : {"stored", "waiting"}) {
    for (const nlohmann::json& value : {nlohmann::json{}, nlohmann::json{1, 2}, nlohmann::json{-1},
                                        nlohmann::json{int64_t{1} << 61}, nlohmann::json{"10"}}) {
      expect_refused(changed(key, value), HasSubstr("header"));
    }
  }
  for (const char* key : {"real", "kv"}) {
    for (const char* type : {"i64", "q8_0", "float", ""})
      expect_refused(changed(key, type), HasSubstr("type"));
  }
  expect_refused(changed("model", "no number"), HasSubstr("header"));
  expect_refused(changed("model", "123456789012345678901234567890"), HasSubstr("header"));
  for (const char* key : {"layers", "sparse_blocks", "channels"}) {
    for (const int64_t value : {int64_t{-1}, int64_t{0}, int64_t{1} << 60}) {
      expect_refused(changed(key, value), HasSubstr("another model"));
    }
  }
  expect_refused(changed("chunk_size", 0), HasSubstr("--chunk-size"));
  // Numbers that are no token counts.
  for (const nlohmann::json& value :
       {nlohmann::json(-1), nlohmann::json(1e300), nlohmann::json(2.5), nlohmann::json(~uint64_t{0})}) {
    SCOPED_TRACE(value.dump());
    expect_refused(changed("position", value), HasSubstr("header"));
  }
  for (const int64_t position :
       {int64_t{11}, int64_t{9}, int64_t{20000}, int64_t{1} << 40, std::numeric_limits<int64_t>::max()}) {
    SCOPED_TRACE(position);
    expect_refused(changed("position", position),
                   AnyOf(HasSubstr("shorter"), HasSubstr("longer"), HasSubstr("header")));
  }
}

TEST_F(StateFileTest, OtherFiles) {
  expect_refused("", HasSubstr("is not a state file"));
  expect_refused(std::string(5000, 'x'), HasSubstr("is not a state file"));
  expect_refused(read_file(folder_ / "model"), HasSubstr("is not a state file"));
  State state = model_->new_state();
  EXPECT_THAT([&] { load_state(folder_ / "none", state, 0); }, ThrowsMessage<Error>(HasSubstr("none")));
}

TEST_F(StateFileTest, AnotherModel) {
  const auto expect_foreign = [&](const test::TensorFile& file, const CheckpointOptions& options,
                                  const std::string& part) {
    file.write(folder_ / "other");
    const auto other = test::open_model(folder_ / "other", "cpu", Precision::f32, options);
    State state = other->new_state();
    test::run(*other, state, std::vector<int32_t>{1, 2, 3});
    const std::vector<float> before = test::contents(state);
    EXPECT_THAT([&] { load_state(path(), state, other->fingerprint()); },
                ThrowsMessage<Error>(AllOf(HasSubstr(path().string()), HasSubstr(part))));
    EXPECT_EQ(state.position(), 3);
    EXPECT_TRUE(test::distance(test::contents(state), before).bitwise);
  };
  test::TensorFile same_sizes = test::small_model(2, 1);
  same_sizes.at("rwkv.head.weight").bytes[0] ^= std::byte{1};
  expect_foreign(same_sizes, kChunks, "fingerprint");
  expect_foreign(test::small_model(2, 1), {8, 2}, "--chunk-size");
  expect_foreign(test::small_model(2, 1), {4, 3}, "another model");
  expect_foreign(test::small_model(3, 1), kChunks, "2+1 blocks of 64 channels, this model has 3+1");
  expect_foreign(test::small_model(2, 0), {}, "2+1 blocks of 64 channels, this model has 2+0");
}

TEST_F(StateFileTest, AnotherBackendOrPrecisionConverts) {
  struct Setting {
    const char* backend;
    Precision precision;
  };
  for (const Setting from : {Setting{"reference", Precision::f64},
                             {"reference", Precision::f32},
                             {"reference", Precision::bf16},
                             {"cpu", Precision::f32},
                             {"cpu", Precision::bf16}}) {
    const auto source = test::open_model(folder_ / "model", from.backend, from.precision, kChunks);
    State state = source->new_state();
    {
      Arena arena(source->ops().allocator());
      const auto tokens = test::random_tokens(kTokens, 256, 1);
      const SequenceInput input{tokens, &state};
      source->forward(std::span(&input, 1), LogitsOf::none, View(), arena);
    }
    save_state(path(), state, source->fingerprint(), "x");
    for (const Setting to : {Setting{"reference", Precision::f32},
                             {"reference", Precision::bf16},
                             {"cpu", Precision::f32},
                             {"cpu", Precision::bf16}}) {
      SCOPED_TRACE(
          fmt::format("{} {} to {} {}", from.backend, name(from.precision), to.backend, name(to.precision)));
      const auto target = test::open_model(folder_ / "model", to.backend, to.precision, kChunks);
      State loaded = target->new_state();
      EXPECT_EQ(load_state(path(), loaded, target->fingerprint()), "x");
      EXPECT_EQ(loaded.position(), static_cast<int64_t>(kTokens));
      const DType kv = loaded.kv(0).dtype();
      EXPECT_EQ(kv, target->new_state().kv(0).dtype());

      Buffer recurrent(DType::f32, state.recurrent().shape());
      convert(state.recurrent(), recurrent);
      EXPECT_EQ(std::memcmp(recurrent.view().data(), loaded.recurrent().data(), recurrent.view().bytes()), 0);
      // Keys and values pass through the target's type.
      const KvChunks before = state.kv(0).chunks(), after = loaded.kv(0).chunks();
      ASSERT_EQ(after.length, before.length);
      const int64_t page = 2 * 4 * kHeadSize;  // keys and values of one head, four tokens
      for (size_t i = 0; i + 1 < before.keys.size(); ++i) {
        Buffer expected(kv, {page});
        convert(ConstView(before.keys[i], before.dtype, {page}), expected);
        EXPECT_EQ(std::memcmp(expected.view().data(), after.keys[i], expected.view().bytes()), 0);
      }
      const auto more = test::random_tokens(9, 256, 2);
      EXPECT_EQ(test::run(*target, loaded, more).size(), 9u * 256);
    }
  }
}

TEST_F(StateFileTest, FailedSavesLeaveNothingBehind) {
  const State state = model_->new_state();
  EXPECT_THAT([&] { save_state(folder_ / "no/folder", state, 1, ""); },
              ThrowsMessage<Error>(HasSubstr((folder_ / "no/folder").string())));
  std::filesystem::create_directory(folder_ / "folder");
  EXPECT_THROW(save_state(folder_ / "folder", state, 1, ""), Error);
  EXPECT_THAT(folder_.files(), testing::ElementsAre("folder", "model", "state"));
  EXPECT_EQ(read_file(path()), file_);
}

}  // namespace
}  // namespace rwkvx
