#include "harness.h"

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numbers>

#include "base/hash.h"
#include "ops/reference/access.h"
#include "ops/reference/reference_ops.h"
#include "tensor/quantise.h"

namespace rwkvx::test {

double sum_error(int64_t terms) { return 8 * std::sqrt(static_cast<double>(terms)) * kF32; }

uint64_t Random::next() {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
double Random::normal() {  // nearly: the sum of 4 uniform numbers, cheap and bounded
  const uint64_t bits = next();
  const uint64_t sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
  return (static_cast<double>(sum) * 0x1p-16 - 2) * std::numbers::sqrt3;
}

Values normal(double deviation) {
  return [=](Random& random) { return deviation * random.normal(); };
}
Values uniform(double low, double high) {
  return [=](Random& random) { return low + (high - low) * random.uniform(); };
}
Values grid(double step, double most) {
  const auto steps = static_cast<uint64_t>(2 * most / step) + 1;
  return [=](Random& random) { return static_cast<double>(random.next() % steps) * step - most; };
}

namespace {

constexpr size_t kGuard = 128;
constexpr std::byte kGuardByte{0xa5};

double rounded(double value, DType dtype) {
  double storage = 0;
  reference::store(&storage, dtype, 0, value);
  return reference::load(&storage, dtype, 0);
}

}  // namespace

struct Run::Tensor {
  View view;  // inside the block, kGuard from both ends
  void* block = nullptr;
  size_t bytes = 0;
  bool is_output = false;
  std::vector<std::byte> before;  // the block as it was uploaded
};

namespace {

std::vector<double> numbers(const void* data, DType dtype, int64_t count) {
  if (is_quantised(dtype)) {
    std::vector<float> values(static_cast<size_t>(count));
    dequantise(data, dtype, values.data(), count);
    return {values.begin(), values.end()};
  }
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = reference::load(data, dtype, i);
  return values;
}

}  // namespace

Run::Run(Ops& ops, const Ops& tested, uint64_t seed) : ops_(ops), tested_(tested), random_(seed) {}

Run::Run(Ops& ops, const Run& like, const std::string& changed, int64_t at, double step)
    : ops_(ops),
      tested_(like.tested_),
      like_(&like),
      changed_(changed),
      changed_at_(at),
      step_(step),
      random_(0) {}

Run::~Run() {
  for (auto& [name, tensor] : tensors_) ops_.allocator().release(tensor->block, tensor->bytes + 2 * kGuard);
}

View Run::make(const std::string& name, Type type, Shape shape, const Values* values, bool is_output) {
  const auto stored_by = [&](const Ops& ops) {
    if (type.kind == Type::Kind::real) return ops.real();
    return type.kind == Type::Kind::active ? ops.active() : type.dtype;
  };
  const DType dtype = stored_by(ops_), tested = stored_by(tested_);
  auto tensor = std::make_unique<Tensor>();
  tensor->bytes = bytes_of(dtype, shape.elements());
  tensor->is_output = is_output;
  tensor->before.assign(tensor->bytes + 2 * kGuard, kGuardByte);
  std::vector<double> known;
  if (values && like_ != nullptr && like_->has(name)) known = like_->initial(name);
  std::vector<float> unquantised;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    // An output starts as NaN, so that an element that is not written fails.
    double value = NAN;
    if (!known.empty()) {
      value = known[static_cast<size_t>(i)] + (name == changed_ && i == changed_at_ ? step_ : 0);
    } else if (values) {
      value = is_quantised(tested) ? (*values)(random_) : rounded((*values)(random_), tested);
    }
    if (is_quantised(dtype)) {
      unquantised.push_back(static_cast<float>(value));
    } else {
      reference::store(tensor->before.data() + kGuard, dtype, i, value);
    }
  }
  if (!unquantised.empty()) {
    quantise(unquantised.data(), dtype, tensor->before.data() + kGuard, shape.elements());
  }
  tensor->block = ops_.allocator().allocate(tensor->before.size());
  ops_.upload(tensor->before, tensor->block);
  tensor->view = View(static_cast<std::byte*>(tensor->block) + kGuard, dtype, shape);
  const View view = tensor->view;
  EXPECT_TRUE(tensors_.emplace(name, std::move(tensor)).second) << "two tensors named " << name;
  return view;
}

ConstView Run::input(const std::string& name, Type type, Shape shape, const Values& values) {
  return make(name, type, shape, &values, false);
}
View Run::inout(const std::string& name, Type type, Shape shape, const Values& values) {
  return make(name, type, shape, &values, true);
}
View Run::output(const std::string& name, Type type, Shape shape) {
  return make(name, type, shape, nullptr, true);
}

const Run::Tensor& Run::find(const std::string& name) const { return *tensors_.at(name); }
DType Run::dtype(const std::string& name) const { return find(name).view.dtype(); }

std::vector<std::string> Run::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

bool Run::is_output(const std::string& name) const { return find(name).is_output; }

std::vector<double> Run::initial(const std::string& name) const {
  const Tensor& tensor = find(name);
  return numbers(tensor.before.data() + kGuard, tensor.view.dtype(), tensor.view.elements());
}

std::vector<std::string> Run::outputs() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) {
    if (tensor->is_output) names.push_back(name);
  }
  return names;
}

std::vector<std::byte> Run::download(const Tensor& tensor) const {
  std::vector<std::byte> block(tensor.bytes + 2 * kGuard);
  ops_.download(tensor.block, block);
  return block;
}

std::vector<double> Run::values(const std::string& name) const {
  const Tensor& tensor = find(name);
  const auto block = download(tensor);
  return numbers(block.data() + kGuard, tensor.view.dtype(), tensor.view.elements());
}

double Run::max_abs(const std::string& name) const { return max_norm(name, 1); }

double Run::max_norm(const std::string& name, int64_t width) const {
  double most = 0, sum = 0;
  int64_t i = 0;
  for (const double value : values(name)) {
    sum += value * value;
    if (++i % width == 0) {
      most = std::max(most, sum);
      sum = 0;
    }
  }
  return std::sqrt(most);
}

std::string Run::damage() const {
  for (const auto& [name, tensor] : tensors_) {
    const auto now = download(*tensor);
    const std::span<const std::byte> after(now), before(tensor->before);
    const auto changed = [&](size_t begin, size_t count) {
      return std::memcmp(&after[begin], &before[begin], count) != 0;
    };
    if (changed(0, kGuard)) return "something wrote before the start of " + name;
    if (changed(kGuard + tensor->bytes, kGuard)) return "something wrote behind the end of " + name;
    if (!tensor->is_output && changed(kGuard, tensor->bytes)) return "the input " + name + " was overwritten";
  }
  return "";
}

double compare_with_reference(const OpCase& one, Ops& tested) {
  SCOPED_TRACE(one.describe());
  const auto reference_ops = make_reference_ops(Precision::f64);
  const std::string description = one.describe();
  const uint64_t seed = hash64(std::as_bytes(std::span(description)));
  Run expected(*reference_ops, tested, seed), actual(tested, tested, seed);
  one.run(expected);
  one.run(actual);
  EXPECT_EQ(expected.damage(), "") << "by the reference";
  EXPECT_EQ(actual.damage(), "");
  double worst = 0;
  for (const std::string& name : expected.outputs()) {
    const Tolerance bound = one.tolerance(expected, name);
    const auto want = expected.values(name), got = actual.values(name);
    const double rounding =
        actual.dtype(name) == DType::bf16 && expected.dtype(name) != DType::bf16 ? kBf16 : 0;
    double max_error = 0, max_relative = 0, max_part = 0, squares = 0, total = 0;
    size_t at = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = std::abs(got[i] - want[i]), size = std::abs(want[i]);
      const double allowed = bound.absolute + (bound.relative + rounding) * size + rounding * bound.absolute;
      // Never satisfied by NaN on either side.
      const double part = error <= allowed ? (allowed > 0 ? error / allowed : 0) : INFINITY;
      if (part > max_part || i == 0) at = i;
      max_part = std::max(max_part, part);
      max_error = std::max(max_error, error);
      max_relative = std::max(max_relative, size > 0 ? error / size : 0);
      squares += error * error;
      total += size * size;
    }
    worst = std::max(worst, max_part);
    const double norm = one.norm_bound(expected, name) + rounding;
    if ((actual.dtype(name) == DType::f32 || rounding > 0) && squares > norm * norm * total) {
      ADD_FAILURE() << fmt::format("{}: ‖error‖ / ‖reference‖ is {:.3g}, bound {:.3g}", name,
                                   std::sqrt(squares / total), norm);
    }
    if (max_part <= 1) continue;
    ADD_FAILURE() << fmt::format(
        "{}[{}] is {}, the reference says {}; bound {:.3g} + {:.3g} relative. Over the tensor: max error "
        "{:.3g}, "
        "max relative error {:.3g}, ‖error‖ / ‖reference‖ {:.3g}",
        name, at, got[at], want[at], bound.absolute, bound.relative + rounding, max_error, max_relative,
        std::sqrt(squares / total));
  }
  return worst;
}

double GradientCase::loss(const Run& forward, const Run& backward) const {
  double sum = 0;
  for (const std::string& y : forward.outputs()) {
    if (!backward.has("d" + y)) continue;
    const auto values = forward.values(y), weights = backward.initial("d" + y);
    for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  }
  return sum;
}

/// Central differences are off by step²·f‴/6 and by rounding, 2⁻⁵²·|loss| / step: parts in 10⁸ of the
/// gradients here, where both are within some hundreds.
void compare_with_differences(const GradientCase& one) {
  if (!one.differentiable()) return;
  SCOPED_TRACE(one.describe());
  constexpr double kStep = 1e-5, kBound = 1e-6;
  constexpr size_t kProbes = 6;  // of each tensor
  const std::string description = one.describe();
  const auto ops = make_reference_ops(Precision::f64);
  Run backward(*ops, *ops, hash64(std::as_bytes(std::span(description))));
  one.run(backward);
  Random random(1);
  int compared = 0;
  for (const std::string& x : backward.names()) {
    const std::string dx = "d" + x;
    if (!backward.has(dx) || !backward.is_output(dx)) continue;
    ++compared;
    const auto gradient = backward.values(dx), before = backward.initial(dx);
    const bool adds = one.adds(dx);
    const auto added = [&](size_t i) {
      return gradient[i] - (std::isnan(before[i]) || !adds ? 0 : before[i]);
    };
    double largest = 0;
    for (size_t i = 0; i < gradient.size(); ++i) largest = std::max(largest, std::abs(added(i)));
    for (size_t probe = 0; probe < std::min(kProbes, gradient.size()); ++probe) {
      const size_t i = probe == 0 ? gradient.size() - 1 : random.next() % gradient.size();
      double losses[2];
      for (const int side : {0, 1}) {
        Run forward(*ops, backward, x, static_cast<int64_t>(i), side == 0 ? -kStep : kStep);
        one.forward(forward);
        losses[side] = one.loss(forward, backward);
      }
      const double difference = (losses[1] - losses[0]) / (2 * kStep);
      const double scale = std::max(largest, 1e-3);
      if (!(std::abs(difference - added(i)) <= kBound * scale)) {
        ADD_FAILURE() << fmt::format("{}[{}] is {}, the difference quotient {}; largest {:.3g}", dx, i,
                                     added(i), difference, largest);
      }
    }
  }
  EXPECT_GT(compared, 0) << "no gradient was compared";
}

std::vector<std::vector<int64_t>> ragged(int64_t rows) {
  std::vector<std::vector<int64_t>> all{{0, rows}};
  if (rows >= 2) all.push_back({0, 1, rows});
  if (rows >= 5) all.push_back({0, rows / 3, rows / 3 + 1, rows - 1, rows});
  return all;
}

}  // namespace rwkvx::test
