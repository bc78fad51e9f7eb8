#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ops/ops.h"

/// Compares a backend with the reference, operation by operation.
///
/// An operation is an OpCase: it makes its tensors in a Run and calls the Ops. The harness runs it twice, on
/// the reference in float64 and on the tested backend, with the same values (rounded to what the tested
/// backend stores), and compares every output with the bound that the case derives. Around every tensor lie
/// guard bytes that must survive, and inputs must be left as they were.
///
/// To add an operation: an OpCase and a line in operations(). To add a backend: instantiate OpsTest for it.
namespace rwkvx::test {

/// Unit roundoffs.
inline constexpr double kF32 = 0x1p-24;
inline constexpr double kBf16 = 0x1p-8;
inline constexpr double kTf32 = 0x1p-11;

/// Rounding errors of a sum of n terms in any order: |error| ≤ λ·√n·u·Σ|terms| but for a probability below
/// 2·exp(−λ²/2) (Higham and Mary, 2019); λ = 8 makes that 3e-14 for each element.
double sum_error(int64_t terms);

struct Random {
  explicit Random(uint64_t seed) : state(seed) {}
  uint64_t next();
  double uniform();  ///< [0, 1)
  double normal();
  uint64_t state;
};

using Values = std::function<double(Random&)>;
Values normal(double deviation = 1);
Values uniform(double low, double high);
/// Multiples of `step` in [−most, most]: sums and products of few bits, exact in float32 whatever the order.
Values grid(double step, double most);

/// A tensor's type, as the operation's interface names it.
struct Type {
  enum class Kind { real, active, fixed } kind;
  DType dtype = DType::f32;
};
inline constexpr Type kReal{Type::Kind::real}, kActive{Type::Kind::active};
inline constexpr Type fixed(DType dtype) { return {Type::Kind::fixed, dtype}; }

/// The tensors of one execution of a case on one backend.
class Run {
 public:
  /// `tested` says which types the values are rounded to; `ops` executes.
  Run(Ops& ops, const Ops& tested, uint64_t seed);
  /// Takes the values of tensors that `like` has from there; of tensor `changed`, element `at` is greater by
  /// `step`.
  Run(Ops& ops, const Run& like, const std::string& changed = "", int64_t at = 0, double step = 0);
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run();

  Ops& ops() { return ops_; }
  /// What the tested backend's products take.
  bool rounds_to_bf16() const { return tested_.active() == DType::bf16; }
  /// In bf16 precision tensor cores and tiles take attention's queries and weights, and in the backward its
  /// gradients, as bfloat16 too (docs/decisions/0014-gpu.md).
  bool rounds_attention() const { return rounds_to_bf16() && tested_.rounds_attention(); }
  /// In bf16 precision tensor cores take the factors of long WKV-7 recurrences with 10 bits behind the point.
  bool rounds_recurrence(int64_t rows) const {
    return rounds_to_bf16() && tested_.name() == "cuda" && rows >= 192;
  }
  /// And tiles take them in a whole step as bfloat16 (docs/decisions/0017-cpu-tiles.md).
  bool rounds_step(int64_t rows) const { return rounds_to_bf16() && tested_.rounds_recurrence(rows); }
  /// The reference gets in one call what others get in several.
  bool is_reference() const { return &ops_ != &tested_; }
  Random& random() { return random_; }
  ConstView input(const std::string& name, Type type, Shape shape, const Values& values);
  /// Read and overwritten by the operation.
  View inout(const std::string& name, Type type, Shape shape, const Values& values);
  View output(const std::string& name, Type type, Shape shape);

  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return tensors_.contains(name); }
  bool is_output(const std::string& name) const;
  std::vector<std::string> outputs() const;
  /// What the tensor held before the operation; NaN in outputs.
  std::vector<double> initial(const std::string& name) const;
  /// What the tensor holds now.
  std::vector<double> values(const std::string& name) const;
  DType dtype(const std::string& name) const;
  double max_abs(const std::string& name) const;
  /// The largest Euclidean norm of `width` consecutive elements.
  double max_norm(const std::string& name, int64_t width) const;
  /// What is wrong: overwritten guards, a changed input. Empty when nothing is.
  std::string damage() const;

 private:
  struct Tensor;
  View make(const std::string& name, Type type, Shape shape, const Values* values, bool is_output);
  std::vector<std::byte> download(const Tensor& tensor) const;
  const Tensor& find(const std::string& name) const;

  Ops& ops_;
  const Ops& tested_;
  const Run* like_ = nullptr;
  std::string changed_;
  int64_t changed_at_ = 0;
  double step_ = 0;
  Random random_;
  std::map<std::string, std::unique_ptr<Tensor>> tensors_;
};

/// |value − reference| ≤ absolute + relative·|reference|. The rounding of a bf16 output is added by the
/// harness.
struct Tolerance {
  double absolute = 0;
  double relative = 0;
};

class OpCase {
 public:
  virtual ~OpCase() = default;
  virtual std::string describe() const = 0;
  virtual void run(Run& run) const = 0;
  /// `reference` has run.
  virtual Tolerance tolerance(const Run& reference, const std::string& output) const = 0;
  /// Of ‖error‖ / ‖reference‖ over a float32 output. Bounds for single elements have to allow for unlucky
  /// ones; over a tensor errors are far smaller: some ten roundings of each element. This finds what was
  /// rounded to fewer bits on the way.
  virtual double norm_bound(const Run&, const std::string&) const { return 32 * kF32; }
};

/// The backward of an operation. run() executes it (and what it needs of the forward); forward() executes the
/// forward alone. Names say what belongs together: the gradient of tensor "x" is "dx".
class GradientCase : public OpCase {
 public:
  virtual void forward(Run& run) const = 0;
  /// The loss whose gradient run() computes: Σ dy·y over the outputs y of `forward` for which `backward` was
  /// given a dy.
  virtual double loss(const Run& forward, const Run& backward) const;
  /// True when an inout gradient is added to, false when it is read and then overwritten.
  virtual bool adds(const std::string&) const { return true; }
  /// False where a tensor shares memory with another, so that names do not tell.
  virtual bool differentiable() const { return true; }
};

/// Compares every gradient of a case with central differences of forward(), in float64 on the reference.
void compare_with_differences(const GradientCase& one);

using Cases = std::vector<std::unique_ptr<OpCase>>;
/// Every operation's cases, by name, for a precision.
const std::vector<std::pair<std::string, std::function<Cases(Precision)>>>& operations();

/// Runs a case on both and adds failures to the current GoogleTest test. Returns the largest error in parts
/// of its bound.
double compare_with_reference(const OpCase& one, Ops& tested);

/// Ways to cut `rows` rows into sequences, as offsets.
std::vector<std::vector<int64_t>> ragged(int64_t rows);

}  // namespace rwkvx::test
