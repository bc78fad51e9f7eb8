// Models and the tokenizers that belong to them.
#include "runtime/model_loader.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

class ModelLoaderTest : public testing::Test {
 protected:
  ModelLoaderTest() { ::unsetenv("RWKVX_VOCAB"); }
  ~ModelLoaderTest() override { ::unsetenv("RWKVX_VOCAB"); }

  /// A model whose only oddity is the size of its vocabulary.
  std::shared_ptr<const Checkpoint> model_of(int64_t vocabulary, const std::string& name = "model") {
    test::TensorFile file = test::small_model(1, 0);
    for (const char* tensor : {"emb.weight", "head.weight"}) {
      auto& t = file.at(tensor);
      t.shape = {vocabulary, 64};
      t.bytes.resize(static_cast<size_t>(vocabulary) * 64 * 4);
    }
    file.write(folder_ / name);
    return open_checkpoint(folder_ / name);
  }
  /// All single bytes, and words: `size` tokens in all, id 0 without text.
  Path world_vocabulary(const std::string& name, int size) {
    std::ofstream out(folder_ / name);
    for (int i = 1; i <= 256; ++i) out << i << " b'\\x" << fmt::format("{:02x}", i - 1) << "' 1\n";
    for (int i = 257; i < size; ++i) {
      const std::string word = fmt::format("word{}", i);
      out << i << " '" << word << "' " << word.size() << "\n";
    }
    return folder_ / name;
  }

  const test::TemporaryFolder folder_;
};

TEST_F(ModelLoaderTest, LoadsOnTheBackendThatIsAskedFor) {
  test::small_model(2, 1).write(folder_ / "model");
  for (const char* backend : {"cpu", "reference"}) {
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      ModelOptions options;
      options.path = folder_ / "model";
      options.backend = backend;
      options.precision = precision;
      options.threads = 1;
      options.chunk_size = 8;
      options.top_k = 2;
      const auto model = load_model(options);
      EXPECT_EQ(model->ops().name(), backend);
      EXPECT_EQ(model->ops().precision(), precision);
      EXPECT_EQ(model->config().chunk_size, 8);
      EXPECT_EQ(model->config().top_k, 2);
    }
  }
  ModelOptions options;
  options.path = folder_ / "model";
  options.backend = "abacus";
  EXPECT_THAT([&] { load_model(options); }, ThrowsMessage<Error>(HasSubstr("abacus")));
  options.path = folder_ / "none";
  EXPECT_THAT([&] { load_model(options); }, ThrowsMessage<Error>(HasSubstr((folder_ / "none").string())));
}

TEST_F(ModelLoaderTest, BytesForAVocabularyOf256) {
  const auto tokenizer = load_tokenizer(*model_of(256), std::nullopt);
  EXPECT_EQ(tokenizer->name(), "byte");
  EXPECT_EQ(tokenizer->encode("\xffz"), (std::vector<TokenId>{255, 'z'}));
}

TEST_F(ModelLoaderTest, NoneForOtherSizes) {
  const auto checkpoint = model_of(300);
  EXPECT_EQ(find_tokenizer(*checkpoint, std::nullopt), nullptr);
  EXPECT_THAT([&] { load_tokenizer(*checkpoint, std::nullopt); },
              ThrowsMessage<Error>(AllOf(HasSubstr((folder_ / "model").string()), HasSubstr("--vocab"),
                                         HasSubstr("300"), Not(HasSubstr("\n")))));
}

TEST_F(ModelLoaderTest, AGivenVocabularyComesFirst) {
  const auto vocabulary = world_vocabulary("words", 300);
  const auto tokenizer = load_tokenizer(*model_of(300), vocabulary);
  EXPECT_EQ(tokenizer->name(), "world");
  EXPECT_EQ(tokenizer->encode("word299!"), (std::vector<TokenId>{299, 1 + '!'}));
  EXPECT_EQ(load_tokenizer(*model_of(300), Path("byte"))->name(), "byte");
  EXPECT_EQ(load_vocabulary("byte")->name(), "byte");
  EXPECT_EQ(load_vocabulary(vocabulary)->name(), "world");
}

TEST_F(ModelLoaderTest, VocabulariesThatDoNotFit) {
  const auto vocabulary = world_vocabulary("words", 301);
  EXPECT_THAT([&] { load_tokenizer(*model_of(300), vocabulary); },
              ThrowsMessage<Error>(AllOf(HasSubstr(vocabulary.string()), HasSubstr("301"), HasSubstr("300"),
                                         HasSubstr((folder_ / "model").string()))));
  EXPECT_NO_THROW(load_tokenizer(*model_of(301), vocabulary));
  EXPECT_NO_THROW(load_tokenizer(*model_of(320), vocabulary)) << "models may have rows to spare";
  EXPECT_THAT([&] { load_tokenizer(*model_of(128), Path("byte")); }, ThrowsMessage<Error>(HasSubstr("256")));
  EXPECT_THAT([&] { load_tokenizer(*model_of(300), folder_ / "none"); },
              ThrowsMessage<Error>(HasSubstr((folder_ / "none").string())));
}

TEST_F(ModelLoaderTest, WorldVocabularyBesideTheModelOrInTheEnvironment) {
  const auto checkpoint = model_of(65536);
  EXPECT_EQ(find_tokenizer(*checkpoint, std::nullopt), nullptr);
  ::setenv("RWKVX_VOCAB", world_vocabulary("elsewhere", 400).c_str(), 1);
  EXPECT_EQ(load_tokenizer(*checkpoint, std::nullopt)->vocab_size(), 400);
  world_vocabulary("rwkv_vocab_v20230424.txt", 500);
  EXPECT_EQ(load_tokenizer(*checkpoint, std::nullopt)->vocab_size(), 500)
      << "the one beside the model comes first";
  const auto small = model_of(300, "small");
  EXPECT_EQ(find_tokenizer(*small, std::nullopt), nullptr) << "World vocabularies are for World models";
}

TEST_F(ModelLoaderTest, GgufCarriesItsVocabulary) {
  const auto source = model_of(300);
  const auto world = load_vocabulary(world_vocabulary("words", 290));
  write_checkpoint(*source, folder_ / "model.gguf", {FileFormat::gguf, {}, embedded_vocabulary(*world, 300)});
  const auto carried = load_tokenizer(*open_checkpoint(folder_ / "model.gguf"), std::nullopt);
  for (const std::string text : {"word289word28", "\x80\xff ä\n\t'\"\\", ""}) {
    EXPECT_EQ(carried->encode(text), world->encode(text));
    EXPECT_EQ(carried->decode(carried->encode(text)), text);
  }
  // Without a vocabulary all tokens are marked unused, and there is no tokenizer.
  write_checkpoint(*source, folder_ / "bare.gguf", {});
  EXPECT_EQ(find_tokenizer(*open_checkpoint(folder_ / "bare.gguf"), std::nullopt), nullptr);
}

TEST_F(ModelLoaderTest, VocabulariesOfOtherKinds) {
  write_checkpoint(*model_of(300), folder_ / "model.gguf",
                   {FileFormat::gguf, {}, EmbeddedVocabulary{"gpt2", {"a", "b"}, {1, 1}}});
  const auto checkpoint = open_checkpoint(folder_ / "model.gguf");
  EXPECT_THAT(
      [&] { find_tokenizer(*checkpoint, std::nullopt); },
      ThrowsMessage<Error>(AllOf(HasSubstr("model.gguf"), HasSubstr("'gpt2'"), HasSubstr("--vocab"))));
  EXPECT_EQ(load_tokenizer(*checkpoint, Path("byte"))->name(), "byte");
}

TEST_F(ModelLoaderTest, DamagedVocabularies) {
  write_checkpoint(*model_of(300), folder_ / "model.gguf",
                   {FileFormat::gguf, {}, EmbeddedVocabulary{"rwkv", {"\\x0", "b"}, {1, 1}}});
  EXPECT_THAT([&] { load_tokenizer(*open_checkpoint(folder_ / "model.gguf"), std::nullopt); },
              ThrowsMessage<Error>(AllOf(HasSubstr("model.gguf"), Not(HasSubstr("\n")))));
  std::ofstream(folder_ / "words") << "1 'a' 1\nnot a line\n";
  EXPECT_THAT([&] { load_tokenizer(*model_of(300), folder_ / "words"); },
              ThrowsMessage<Error>(AllOf(HasSubstr((folder_ / "words").string()), HasSubstr("2"))));
}

}  // namespace
}  // namespace rwkvx
