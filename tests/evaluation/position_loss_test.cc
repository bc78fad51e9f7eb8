#include "evaluation/position_loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numbers>

#include "error_of.h"
#include "evaluation/loss_report.h"
#include "evaluation/tokenizers.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(BucketsTest, EveryPositionIsInItsBucket) {
  for (const Buckets& buckets : {Buckets(), Buckets(1), Buckets(100)}) {
    for (int64_t position = 0; position < 5000; ++position) {
      const size_t b = buckets.of(position);
      EXPECT_LE(buckets.begin(b), position);
      EXPECT_LT(position, buckets.end(b));
    }
  }
  EXPECT_EQ(Buckets().begin(0), 0);
  EXPECT_EQ(Buckets().end(0), 64);
  EXPECT_EQ(Buckets().end(1), 128);
  EXPECT_EQ(Buckets().of(int64_t{1} << 20), 15u);
  EXPECT_EQ(Buckets(100).middle(3), 350);
  EXPECT_EQ(Buckets().middle(0), 32);
  EXPECT_NEAR(Buckets().middle(1), 64 * std::numbers::sqrt2, 1e-9);
}

TEST(SumByPositionTest, TokensFallWhereTheyStand) {
  const auto tokenizer = test::small_world_tokenizer();
  // "The" " grass" " is" "x", with the end of a document before them.
  std::vector<TokenId> tokens{0};
  tokenizer->encode("The grass isx", tokens);
  ASSERT_EQ(tokens.size(), 5u);
  const std::vector<float> losses{1, 2, 4, 8};
  const Buckets two(2);
  const auto sums = [&](std::span<const TokenId> ids, std::span<const float> values, bool begins,
                        PositionUnit unit) {
    std::vector<std::tuple<int64_t, int64_t, double>> out;
    for (const LossSums& s : sum_by_position("d", ids, values, begins, *tokenizer, two, unit).buckets)
      out.emplace_back(s.tokens, s.bytes, s.nats);
    return out;
  };
  using Row = std::tuple<int64_t, int64_t, double>;
  EXPECT_THAT(sums(tokens, losses, true, PositionUnit::tokens), ElementsAre(Row{2, 9, 3}, Row{2, 4, 12}));
  // Positions 0, 3, 9 and 12 in bytes.
  EXPECT_THAT(sums(tokens, losses, true, PositionUnit::bytes),
              ElementsAre(Row{1, 3, 1}, Row{1, 6, 2}, Row{0, 0, 0}, Row{0, 0, 0}, Row{1, 3, 4}, Row{0, 0, 0},
                          Row{1, 1, 8}));
  // Without it the first token is not predicted, but has its position.
  const auto rest = std::span(tokens).subspan(1);
  const auto fewer = std::span(losses).subspan(1);
  EXPECT_THAT(sums(rest, fewer, false, PositionUnit::tokens), ElementsAre(Row{1, 6, 2}, Row{2, 4, 12}));
  EXPECT_EQ(sum_by_position("d", tokens, losses, true, *tokenizer, two, PositionUnit::tokens).tokens, 4);
  EXPECT_EQ(sum_by_position("d", rest, fewer, false, *tokenizer, two, PositionUnit::tokens).tokens, 4);
}

TEST(RatioEstimateTest, DocumentsOfOneSizeGiveTheUsualStandardError) {
  const std::vector<double> amounts{2, 4, 9}, weights{2, 2, 2};
  const Estimate e = ratio_estimate(amounts, weights);
  EXPECT_DOUBLE_EQ(e.mean, 2.5);
  // Means 1, 2, 4.5: variance 3.25, of three.
  EXPECT_DOUBLE_EQ(e.error, std::sqrt(3.25 / 3));
}

TEST(RatioEstimateTest, SizesWeigh) {
  const std::vector<double> amounts{10, 1}, weights{10, 2};
  const Estimate e = ratio_estimate(amounts, weights);
  EXPECT_DOUBLE_EQ(e.mean, 11.0 / 12);
  // Residuals 10 - 110/12 = 5/6 and 1 - 22/12 = -5/6.
  EXPECT_NEAR(e.error, std::sqrt(2.0 * 2 * 25 / 36) / 12, 1e-12);
  EXPECT_TRUE(std::isnan(ratio_estimate(std::vector<double>{3}, std::vector<double>{2}).error));
}

std::vector<DocumentLoss> two_documents() {
  return {{"a", 100, {{63, 63, 126}, {36, 36, 36}}}, {"b", 64, {{63, 126, 252}}}};
}

TEST(SummariseTest, BucketsAndWhole) {
  const ModelLoss m = summarise("m", two_documents(), Buckets());
  ASSERT_EQ(m.buckets.size(), 2u);
  EXPECT_EQ(m.buckets[0].documents, 2);
  EXPECT_EQ(m.buckets[0].tokens, 126);
  EXPECT_DOUBLE_EQ(m.buckets[0].loss.mean, 3);
  EXPECT_DOUBLE_EQ(m.buckets[0].perplexity.mean, std::exp(3));
  EXPECT_DOUBLE_EQ(m.buckets[0].perplexity.error, std::exp(3) * m.buckets[0].loss.error);
  EXPECT_DOUBLE_EQ(m.buckets[0].bits_per_byte.mean, 378 / std::numbers::ln2 / 189);
  EXPECT_EQ(m.buckets[1].documents, 1);
  EXPECT_EQ(m.buckets[1].begin, 64);
  EXPECT_EQ(m.buckets[1].end, 128);
  EXPECT_TRUE(std::isnan(m.buckets[1].loss.error));
  EXPECT_EQ(m.all.tokens, 162);
  EXPECT_DOUBLE_EQ(m.all.loss.mean, 414.0 / 162);
}

TEST(DocumentLossTest, ComesBackFromJson) {
  for (const DocumentLoss& before : two_documents()) {
    const auto json = nlohmann::ordered_json::parse(to_json(before).dump());
    EXPECT_EQ(to_json(document_loss(json, "f")), to_json(before));
  }
  for (const char* bad : {"{}", "{\"document\":\"a\",\"tokens\":1,\"buckets\":[[1]]}", "{\"document\":1}"}) {
    EXPECT_THAT(error_of([&] { document_loss(nlohmann::ordered_json::parse(bad), "some/file"); }),
                HasSubstr("some/file"));
  }
}

TEST(LossReportTest, CsvJsonTextAndChart) {
  const std::vector<ModelLoss> models{summarise("one", two_documents(), Buckets()),
                                      summarise("two", {{{"a", 65, {{64, 64, 64}}}}}, Buckets())};
  const std::string csv = loss_csv(models);
  std::vector<std::string> lines;
  for (size_t at = 0; at < csv.size(); at = csv.find('\n', at) + 1)
    lines.push_back(csv.substr(at, csv.find('\n', at) - at));
  ASSERT_EQ(lines.size(), 6u);
  for (const std::string& line : lines) EXPECT_EQ(std::count(line.begin(), line.end(), ','), 11) << line;
  EXPECT_THAT(lines[1], ::testing::StartsWith("one,0,64,2,126,189,3,"));
  EXPECT_THAT(lines[4], ::testing::StartsWith("two,0,64,1,64,64,1,,2.718282,,1.442695,"));

  const auto json = nlohmann::ordered_json::parse(loss_json(models).dump());
  ASSERT_EQ(json["models"].size(), 2u);
  EXPECT_EQ(json["models"][0]["buckets"].size(), 2u);
  EXPECT_DOUBLE_EQ(json["models"][0]["buckets"][0]["loss"].get<double>(), 3);
  EXPECT_TRUE(json["models"][1]["perplexity_error"].is_null());

  const std::string text = loss_text(models, LossMeasure::loss);
  EXPECT_THAT(text, HasSubstr("0 - 64"));
  EXPECT_THAT(text, HasSubstr("3.0000 ±1."));
  const LineChart chart = loss_chart(models, Buckets(), PositionUnit::tokens, LossMeasure::bits_per_byte);
  ASSERT_EQ(chart.series.size(), 2u);
  EXPECT_EQ(chart.series[0].x.size(), 2u);
  EXPECT_EQ(chart.series[0].error[1], 0);
  EXPECT_EQ(chart.y.label, "bits per byte");
}

TEST(DocumentsTest, LinesFilesAndFolders) {
  const test::TemporaryFolder folder;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
    return folder / name;
  };
  const Path lines =
      write("b.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"\"}\n{\"id\": 2, \"text\": \"two\"}");
  const Path plain = write("a.txt", "whole\nfile\n");
  const auto names = [](const std::vector<Document>& documents) {
    std::vector<std::string> out;
    for (const Document& d : documents) out.push_back(d.name + "=" + d.text);
    return out;
  };
  EXPECT_THAT(names(read_documents(std::vector<Path>{lines, plain})),
              ElementsAre("b.jsonl:1=one", "b.jsonl:4=two", "a.txt=whole\nfile\n"));
  EXPECT_THAT(names(read_documents(std::vector<Path>{plain.parent_path()})),
              ElementsAre("a.txt=whole\nfile\n", "b.jsonl:1=one", "b.jsonl:4=two"));
  for (const char* bad : {"x", "[]", "{}", "{\"text\": 1}"}) {
    const Path file = write("bad.jsonl", std::string("{\"text\": \"ok\"}\n") + bad);
    EXPECT_THAT(error_of([&] { read_documents(std::vector<Path>{file}); }), HasSubstr("bad.jsonl: line 2"))
        << bad;
  }
}

}  // namespace
}  // namespace rwkvx
