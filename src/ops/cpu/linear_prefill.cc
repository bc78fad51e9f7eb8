#include "ops/cpu/linear_prefill.h"

#include <compare>
#include <dnnl.hpp>
#include <unordered_map>

#include "base/error.h"
#include "hwy/highway.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/threads.h"

namespace rwkvx::cpu {

bool has_bf16_products() {
  const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & wanted) == wanted && (hwy::SupportedTargets() & HWY_AVX3) != 0;
}

/// What a product is compiled for.
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

struct ManyRows::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Product> products;
  Scratch scratchpad, x, weight, y;
};

namespace {

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

}  // namespace

ManyRows::ManyRows(int threads) : threads_(threads), state_(std::make_unique<State>()) {}
ManyRows::~ManyRows() = default;

const ManyRows::Product& ManyRows::product(const Key& key) {
  auto found = state_->products.find(key);
  if (found != state_->products.end()) return found->second;
  constexpr size_t kMostProducts = 512;  // a server sees any number of rows; oneDNN keeps the code for longer
  if (state_->products.size() >= kMostProducts) state_->products.clear();
  const auto type = dnnl_type(key.type);
  const dnnl::memory::desc x({key.rows, key.in}, type, dnnl::memory::dims{key.in, 1});
  const dnnl::memory::desc weight({key.in, key.out}, type, dnnl::memory::dims{1, key.in});
  const dnnl::memory::desc y({key.rows, key.out}, dnnl_type(key.y_type), dnnl::memory::dims{key.y_stride, 1});
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, weight, y),
                                                 attributes(key.activation, key.add), state_->engine);
  Product made{x, weight, y, description.scratchpad_desc(), dnnl::matmul(description)};
  return state_->products.emplace(key, std::move(made)).first->second;
}

void ManyRows::multiply(const Key& key, const void* x, const void* weight, void* y) {
  try {
    const TeamSize team(threads_);
    const Product& p = product(key);
    const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
      return dnnl::memory(desc, state_->engine, const_cast<void*>(data));
    };
    void* scratchpad = state_->scratchpad.take<std::byte>(static_cast<int64_t>(p.scratchpad.get_size()));
    p.matmul.execute(state_->stream, {{DNNL_ARG_SRC, memory(p.x, x)},
                                      {DNNL_ARG_WEIGHTS, memory(p.weight, weight)},
                                      {DNNL_ARG_DST, memory(p.y, y)},
                                      {DNNL_ARG_SCRATCHPAD, memory(p.scratchpad, scratchpad)}});
    state_->stream.wait();
  } catch (const dnnl::error& error) {
    fail("oneDNN cannot multiply [{}, {}] with [{}, {}] ({}): {}", key.rows, key.in, key.in, key.out,
         rwkvx::name(key.type), error.what());
  }
}

void ManyRows::run(const LinearCall& call) {
  const DType type = call.x.dtype();
  if (type != call.w->weight.dtype() || (type == DType::f32 && call.y.dtype() != DType::f32)) {
    return run_converted(call);
  }
  const int64_t out = call.w->out();
  multiply({call.x.dim(0), call.w->in(), out, out, type, call.y.dtype(), call.activation, call.add},
           call.x.data(), call.w->weight.data(), call.y.data());
}

/// In float32, for blocks of outputs whose converted weights and results stay in the cache.
void ManyRows::run_converted(const LinearCall& call) {
  const int64_t rows = call.x.dim(0), in = call.w->in(), out = call.w->out();
  const ConstView& weight = call.w->weight;
  const void* x = call.x.data();
  if (call.x.dtype() != DType::f32) {
    float* copy = state_->x.take<float>(rows * in);
    parallel_for(threads_, rows, 1, [&](int64_t begin, int64_t end) {
      convert(static_cast<const std::byte*>(x) + bytes_of(call.x.dtype(), begin * in), call.x.dtype(),
              copy + begin * in, DType::f32, (end - begin) * in);
    });
    x = copy;
  }
  constexpr int64_t kBlockElements = 1 << 20;
  const int64_t block = std::min(out, std::max<int64_t>(64, kBlockElements / std::max(in, rows) / 64 * 64));
  const bool direct = call.y.dtype() == DType::f32;
  for (int64_t begin = 0; begin < out; begin += block) {
    const int64_t outs = std::min(block, out - begin);
    const std::byte* from =
        static_cast<const std::byte*>(weight.data()) + bytes_of(weight.dtype(), begin * in);
    const void* block_weight = from;
    if (weight.dtype() != DType::f32) {
      float* copy = state_->weight.take<float>(outs * in);
      parallel_for(threads_, outs, 1, [&](int64_t first, int64_t last) {
        convert(from + bytes_of(weight.dtype(), first * in), weight.dtype(), copy + first * in, DType::f32,
                (last - first) * in);
      });
      block_weight = copy;
    }
    float* y = direct ? call.y.as<float>() + begin : state_->y.take<float>(rows * outs);
    const int64_t stride = direct ? out : outs;
    const auto bytes = [&](int64_t r) {
      return static_cast<std::byte*>(call.y.data()) + bytes_of(call.y.dtype(), r * out + begin);
    };
    if (!direct && call.add) {
      for (int64_t r = 0; r < rows; ++r) convert(bytes(r), call.y.dtype(), y + r * stride, DType::f32, outs);
    }
    multiply({rows, in, outs, stride, DType::f32, DType::f32, call.activation, call.add}, x, block_weight, y);
    if (direct) continue;
    parallel_for(threads_, rows, 64, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        convert(y + r * stride, DType::f32, bytes(r), call.y.dtype(), outs);
      }
    });
  }
}

}  // namespace rwkvx::cpu
