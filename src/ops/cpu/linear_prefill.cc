#include "ops/cpu/linear_prefill.h"

#include <compare>
#include <dnnl.hpp>
#include <map>

#include "base/divide.h"
#include "base/error.h"
#include "hwy/highway.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/one_dnn_scope.h"
#include "ops/cpu/scratch.h"

namespace rwkvx::cpu {

namespace {

bool has(dnnl::cpu_isa wanted) {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  return (isa & static_cast<unsigned>(wanted)) == static_cast<unsigned>(wanted);
}

}  // namespace

bool has_bf16_products() {
  return has(dnnl::cpu_isa::avx512_core_bf16) && (hwy::SupportedTargets() & HWY_AVX3) != 0;
}

bool has_amx() { return has(dnnl::cpu_isa::avx512_core_amx); }

/// What a product is made for.
struct ManyRows::Key {
  int64_t rows, in, out;
  int64_t y_stride;  ///< elements between rows of y
  DType type, y_type;
  Activation activation;
  bool add;
  auto operator<=>(const Key&) const = default;
};

struct ManyRows::Product {
  dnnl::memory::desc x, weight, y, scratchpad;
  dnnl::matmul matmul;
};

/// A block of one call's results.
struct ManyRows::Part {
  const LinearCall* call;
  const Product* product;
  const void* x;  ///< of the block's first row, in the product's type
  int64_t row, rows, out, outs;
};

struct ManyRows::ThreadState {
  explicit ThreadState(const dnnl::engine& engine) : stream(engine) {}
  dnnl::stream stream;
  Scratch scratchpad, weight, y;
};

struct ManyRows::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::map<Key, Product> products;
  std::vector<Part> parts;
  std::vector<std::unique_ptr<ThreadState>> threads;
  Scratch converted_x;
};

namespace {

constexpr int64_t kMostRows = 512;  // of a part; long prompts then come in parts of one size
constexpr int64_t kMostOuts = 256;
constexpr int64_t kLeastOuts = 64;

dnnl::memory::data_type dnnl_type(DType dtype) {
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::primitive_attr attributes(Activation activation, bool add) {
  dnnl::post_ops after;
  if (add) after.append_sum(1.0f);
  switch (activation) {
    case Activation::none:
      break;
    case Activation::tanh:
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_tanh, 0.0f, 0.0f);
      break;
    case Activation::sigmoid:
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_logistic, 0.0f, 0.0f);
      break;
    case Activation::relu_squared:
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
      after.append_eltwise(1.0f, dnnl::algorithm::eltwise_square, 0.0f, 0.0f);
      break;
  }
  dnnl::primitive_attr attr;
  attr.set_post_ops(after);
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

/// The type that a call multiplies in: x's, or float32 where weights of another float type would lose bits in
/// it. Quantised weights have lost more than bf16 takes from them.
DType product_type(const LinearCall& call) {
  const DType weight = call.w->weight.dtype();
  return call.x.dtype() == weight || is_quantised(weight) ? call.x.dtype() : DType::f32;
}
/// Results pass through float32 memory before they are rounded: oneDNN has no f32 × f32 → bf16.
bool rounds_later(const LinearCall& call) {
  return product_type(call) == DType::f32 && call.y.dtype() != DType::f32;
}

const std::byte* at(const ConstView& view, int64_t element) {
  return static_cast<const std::byte*>(view.data()) + bytes_of(view.dtype(), element);
}

}  // namespace

ManyRows::ManyRows(ThreadPool& pool) : pool_(pool), state_(std::make_unique<State>()) {
  for (int i = 0; i < pool.threads(); ++i) {
    state_->threads.push_back(std::make_unique<ThreadState>(state_->engine));
  }
}
ManyRows::~ManyRows() = default;

const ManyRows::Product& ManyRows::product(const Key& key) {
  const auto found = state_->products.find(key);
  if (found != state_->products.end()) return found->second;
  const auto type = dnnl_type(key.type);
  const dnnl::memory::desc x({key.rows, key.in}, type, dnnl::memory::dims{key.in, 1});
  const dnnl::memory::desc weight({key.in, key.out}, type, dnnl::memory::dims{1, key.in});
  const dnnl::memory::desc y({key.rows, key.out}, dnnl_type(key.y_type), dnnl::memory::dims{key.y_stride, 1});
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, weight, y),
                                                 attributes(key.activation, key.add), state_->engine);
  Product made{x, weight, y, description.scratchpad_desc(), dnnl::matmul(description)};
  return state_->products.emplace(key, std::move(made)).first->second;
}

void ManyRows::run(std::span<const LinearCall* const> calls) {
  if (calls.empty()) return;
  const OneDnnScope scope;
  constexpr size_t kMostProducts = 1024;  // a server sees any number of rows
  if (state_->products.size() > kMostProducts) state_->products.clear();
  state_->parts.clear();
  int64_t converted = 0, outs = 0;
  for (const LinearCall* call : calls) {
    if (call->x.dtype() != product_type(*call)) converted += call->x.elements();
    outs += call->w->out() * ceil_div(call->x.dim(0), kMostRows);
  }
  float* to = state_->converted_x.take<float>(converted);
  // Enough parts for every thread to get several.
  const int64_t block =
      std::clamp(outs / (3 * pool_.threads()) / kLeastOuts * kLeastOuts, kLeastOuts, kMostOuts);
  try {
    for (const LinearCall* call : calls) {
      const void* x = call->x.data();
      if (call->x.dtype() != product_type(*call)) {
        pool_.run_ranges(call->x.elements(), 1 << 15, [&](int64_t begin, int64_t end) {
          convert(at(call->x, begin), call->x.dtype(), to + begin, DType::f32, end - begin);
        });
        x = to;
        to += call->x.elements();
      }
      add_parts(*call, x, block);
    }
    pool_.run(static_cast<int64_t>(state_->parts.size()), [&](int64_t part, int thread) {
      run_part(state_->parts[static_cast<size_t>(part)], *state_->threads[static_cast<size_t>(thread)]);
    });
  } catch (const dnnl::error& error) {
    const LinearCall& call = *calls[0];
    fail("oneDNN cannot multiply [{}, {}] {} with [{}, {}] {}: {}", call.x.dim(0), call.w->in(),
         rwkvx::name(call.x.dtype()), call.w->in(), call.w->out(), rwkvx::name(call.w->weight.dtype()),
         error.what());
  }
}

void ManyRows::add_parts(const LinearCall& call, const void* x, int64_t block) {
  const int64_t rows = call.x.dim(0), in = call.w->in(), out = call.w->out();
  const DType type = product_type(call);
  for (int64_t o = 0; o < out; o += block) {
    const int64_t outs = std::min(block, out - o);
    for (int64_t row = 0; row < rows; row += kMostRows) {
      const int64_t rows_here = std::min(kMostRows, rows - row);
      const bool later = rounds_later(call);
      const Product& p = product({rows_here, in, outs, later ? outs : out, type,
                                  later ? DType::f32 : call.y.dtype(), call.activation, call.add});
      const void* x_here = static_cast<const std::byte*>(x) + bytes_of(type, row * in);
      state_->parts.push_back({&call, &p, x_here, row, rows_here, o, outs});
    }
  }
}

void ManyRows::run_part(const Part& part, ThreadState& thread) const {
  const LinearCall& call = *part.call;
  const ConstView& weight = call.w->weight;
  const int64_t in = call.w->in(), out = call.w->out();
  const void* w = at(weight, part.out * in);
  if (product_type(call) != weight.dtype()) {
    void* copy = thread.weight.take<float>(part.outs * in);
    convert(w, weight.dtype(), copy, product_type(call), part.outs * in);
    w = copy;
  }
  const auto y_row = [&](int64_t r) {
    return const_cast<std::byte*>(at(call.y, (part.row + r) * out + part.out));
  };
  const bool later = rounds_later(call);
  float* rounded_later = later ? thread.y.take<float>(part.rows * part.outs) : nullptr;
  if (later && call.add) {
    for (int64_t r = 0; r < part.rows; ++r) {
      convert(y_row(r), call.y.dtype(), rounded_later + r * part.outs, DType::f32, part.outs);
    }
  }
  const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, state_->engine, const_cast<void*>(data));
  };
  const Product& p = *part.product;
  void* scratchpad = thread.scratchpad.take<std::byte>(static_cast<int64_t>(p.scratchpad.get_size()));
  p.matmul.execute(thread.stream,
                   {{DNNL_ARG_SRC, memory(p.x, part.x)},
                    {DNNL_ARG_WEIGHTS, memory(p.weight, w)},
                    {DNNL_ARG_DST, memory(p.y, later ? static_cast<void*>(rounded_later) : y_row(0))},
                    {DNNL_ARG_SCRATCHPAD, memory(p.scratchpad, scratchpad)}});
  thread.stream.wait();
  if (!later) return;
  for (int64_t r = 0; r < part.rows; ++r) {
    convert(rounded_later + r * part.outs, DType::f32, y_row(r), call.y.dtype(), part.outs);
  }
}

}  // namespace rwkvx::cpu
