// Losses, LongCE weights and every gradient, against numbers from PyTorch and against each other.
#include <fmt/format.h>

#include <cmath>
#include <iostream>

#include "model/support.h"
#include "model/tensor_file.h"
#include "model/training_model.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

using test::Distance;
using test::distance;

constexpr double kGradientBound = 1e-4;  // ‖got − expected‖ / ‖expected‖, float32

std::vector<float> host(ConstView view) {
  std::vector<float> values(static_cast<size_t>(view.elements()));
  convert(view, View(values.data(), DType::f32, view.shape()));
  return values;
}

/// A golden's training batch and numbers.
struct TrainingGolden {
  explicit TrainingGolden(const std::string& name)
      : golden(test::read_golden(name)),
        checkpoint(open_checkpoint(golden.model, golden.options)),
        file(open_catalog(test::data("goldens/" + name + "/expected.safetensors"))) {
    const ConstView ids = tensor("targets");
    for (const auto& sequence : golden.tokens) {
      tokens.insert(tokens.end(), sequence.begin(), sequence.end());
      offsets.push_back(static_cast<int64_t>(tokens.size()));
    }
    for (int64_t i = 0; i < ids.elements(); ++i)
      targets.push_back(static_cast<int32_t>(ids.as<int64_t>()[i]));
    longce = {number("longce_window"), number("longce_stride"),
              static_cast<float>(std::stod(*file.text("longce_gamma")))};
  }
  ConstView tensor(const std::string& key) const { return file.find(key)->data; }
  int64_t number(const char* key) const { return std::stoll(*file.text(key)); }
  TrainingBatch batch() const { return {.tokens = tokens, .targets = targets, .offsets = offsets}; }

  test::Golden golden;
  std::shared_ptr<const Checkpoint> checkpoint;
  Catalog file;
  std::vector<int32_t> tokens, targets;
  std::vector<int64_t> offsets{0};
  LongCe longce;
};

/// Compares with tensors `prefix` + name of the golden; returns how many there were.
int compare_gradients(const TrainingGolden& golden, const Parameters& parameters, const std::string& prefix) {
  int compared = 0;
  double worst = 0;
  std::string worst_name;
  for (const Parameters::Tensor& tensor : parameters.tensors()) {
    const CatalogTensor* expected =
        golden.file.find(prefix + golden.checkpoint->file_name_of(tensor.spec.name));
    if (expected == nullptr) continue;
    ++compared;
    std::vector<float> want = host(expected->data), got = host(tensor.gradient);
    if (tensor.spec.role == Role::low_rank) {
      std::vector<float> turned(got.size());
      transpose(tensor.gradient.dtype() == DType::f32 ? ConstView(tensor.gradient)
                                                      : ConstView(got.data(), DType::f32, tensor.spec.shape),
                View(turned.data(), DType::f32, {tensor.spec.shape[1], tensor.spec.shape[0]}));
      got = turned;
    }
    const double norm = distance(got, want).rms;
    EXPECT_LE(norm, kGradientBound) << prefix << tensor.spec.name;
    if (norm >= worst) worst_name = tensor.spec.name;
    worst = std::max(worst, norm);
  }
  std::cout << fmt::format("[ measured ] {} {}*: at most {:.3g} ({})\n", compared, prefix, worst, worst_name);
  return compared;
}

class GoldenGradientTest : public testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  const TrainingGolden golden_{std::get<0>(GetParam())};
  const std::shared_ptr<Ops> ops_ = make_ops({std::get<1>(GetParam()), Precision::f32, 2});
};

TEST_P(GoldenGradientTest, CrossEntropy) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  const TrainingResult result = model.forward_backward(golden_.batch(), {});
  EXPECT_NEAR(result.loss, static_cast<double>(golden_.tensor("loss").as<float>()[0]), 1e-5);
  EXPECT_NEAR(result.loss, result.cross_entropy, 1e-9);
  EXPECT_EQ(result.counted, static_cast<int64_t>(golden_.tokens.size()));
  EXPECT_EQ(compare_gradients(golden_, parameters, "grad."), static_cast<int>(parameters.tensors().size()));
}

TEST_P(GoldenGradientTest, LongCe) {
  Parameters parameters(golden_.checkpoint->config, *ops_);
  parameters.load(*golden_.checkpoint);
  TrainingModel model(parameters);
  TrainingOptions options;
  options.longce = golden_.longce;
  const TrainingResult result = model.forward_backward(golden_.batch(), options);
  const Distance weights = distance(result.longce, host(golden_.tensor("longce.weight")));
  EXPECT_LE(weights.rms, kGradientBound);
  EXPECT_LE(weights.max, 2e-4);
  std::cout << fmt::format("[ measured ] LongCE weights: max {:.3g}, rms {:.3g}\n", weights.max, weights.rms);
  EXPECT_NEAR(result.loss, static_cast<double>(golden_.tensor("longce.loss").as<float>()[0]), 1e-4);
  EXPECT_GE(compare_gradients(golden_, parameters, "longce.grad."), 3);
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenGradientTest,
                         testing::Combine(testing::Values("rwkv7", "rwkvx"),
                                          testing::Values("reference", "cpu")),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param)) + "_" + std::get<1>(test.param);
                         });

}  // namespace
}  // namespace rwkvx
