#include "ops/cpu/linear_backward.h"

#include <algorithm>
#include <compare>
#include <deque>
#include <dnnl.hpp>
#include <map>
#include <vector>

#include "base/divide.h"
#include "base/error.h"
#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/one_dnn_scope.h"

namespace rwkvx::cpu {

/// c [m, n] (+)= a [m, k] · b [k, n]; a may lie transposed in memory. Strides in elements.
struct BackwardProducts::Key {
  int64_t m, k, n, a_stride, b_stride, c_stride;
  DType type;
  bool a_transposed, add;
  auto operator<=>(const Key&) const = default;
};

struct BackwardProducts::Product {
  dnnl::memory::desc a, b, c, scratchpad;
  dnnl::matmul matmul;
};

/// A block of a result: the sum of one or more products, one after another.
struct BackwardProducts::Part {
  const std::byte *a, *b;
  float* c;
  const Product *middle, *last;  // of the blocks of k
  int64_t blocks;
  int64_t a_step, b_step;  // bytes from one block of k to the next
};

/// One call's matrices in the type of its products.
struct BackwardProducts::Operands {
  DType type;
  const std::byte *du, *x, *w;
};

struct BackwardProducts::ThreadState {
  explicit ThreadState(const dnnl::engine& engine) : stream(engine) {}
  dnnl::stream stream;
  Scratch scratchpad;
};

struct BackwardProducts::State {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  std::map<Key, Product> products;
  std::vector<Part> parts;
  std::vector<std::unique_ptr<ThreadState>> threads;
  std::deque<Scratch> converted;  // du, x and w of each call, where they had to be converted
  size_t used = 0;                // of converted
};

namespace {

constexpr int64_t kMostRows = 512;  // of a block of dx, and of a step along k
constexpr int64_t kMostBlock = 256, kLeastBlock = 64;

}  // namespace

BackwardProducts::BackwardProducts(ThreadPool& pool) : pool_(pool), state_(std::make_unique<State>()) {
  for (int i = 0; i < pool.threads(); ++i) {
    state_->threads.push_back(std::make_unique<ThreadState>(state_->engine));
  }
}
BackwardProducts::~BackwardProducts() = default;

const BackwardProducts::Product& BackwardProducts::product(const Key& key) {
  const auto found = state_->products.find(key);
  if (found != state_->products.end()) return found->second;
  const auto type = key.type == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  using dnnl::memory;
  const memory::desc a({key.m, key.k}, type,
                       key.a_transposed ? memory::dims{1, key.a_stride} : memory::dims{key.a_stride, 1});
  const memory::desc b({key.k, key.n}, type, memory::dims{key.b_stride, 1});
  const memory::desc c({key.m, key.n}, memory::data_type::f32, memory::dims{key.c_stride, 1});
  dnnl::primitive_attr attributes;
  dnnl::post_ops after;
  if (key.add) after.append_sum(1.0f);
  attributes.set_post_ops(after);
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes, state_->engine);
  Product made{a, b, c, description.scratchpad_desc(), dnnl::matmul(description)};
  return state_->products.emplace(key, std::move(made)).first->second;
}

void BackwardProducts::run(std::span<const LinearBackward> calls) {
  const OneDnnScope scope;
  constexpr size_t kMostProducts = 1024;
  if (state_->products.size() > kMostProducts) state_->products.clear();
  // Calls that add to the same memory belong to different groups.
  while (!calls.empty()) {
    size_t count = 1;
    const auto shares = [&](const LinearBackward& one) {
      return std::any_of(calls.begin(), calls.begin() + static_cast<std::ptrdiff_t>(count),
                         [&](const LinearBackward& other) {
                           return (one.dx && one.dx.data() == other.dx.data()) ||
                                  (one.dw && one.dw.data() == other.dw.data());
                         });
    };
    while (count < calls.size() && !shares(calls[count])) ++count;
    try {
      run_independent(calls.first(count));
    } catch (const dnnl::error& error) {
      fail("oneDNN cannot multiply [{}, {}] with [{}, {}]: {}", calls[0].dy.dim(0), calls[0].w->out(),
           calls[0].w->out(), calls[0].w->in(), error.what());
    }
    calls = calls.subspan(count);
  }
}

void BackwardProducts::run_independent(std::span<const LinearBackward> calls) {
  state_->used = 0;
  state_->parts.clear();
  std::vector<Operands> operands;
  int64_t most = 0;  // parts at the largest block size
  for (const LinearBackward& call : calls) {
    RWKVX_ASSERT(call.dy.dim(1) == call.w->out() && call.x.dim(1) == call.w->in());
    operands.push_back(prepare(call));
    if (call.dx) most += ceil_div(call.dy.dim(0), kMostRows) * ceil_div(call.w->in(), kMostBlock);
    if (call.dw) most += ceil_div(call.w->out(), kMostBlock) * ceil_div(call.w->in(), kMostBlock);
  }
  int64_t block = kMostBlock;  // smaller where threads would wait
  for (int64_t parts = most; block > kLeastBlock && parts < 3 * pool_.threads(); parts *= 2) block /= 2;
  for (size_t i = 0; i < calls.size(); ++i) add_parts(calls[i], operands[i], block);
  pool_.run(static_cast<int64_t>(state_->parts.size()), [&](int64_t part, int thread) {
    run_part(state_->parts[static_cast<size_t>(part)], *state_->threads[static_cast<size_t>(thread)]);
  });
}

BackwardProducts::Operands BackwardProducts::prepare(const LinearBackward& call) {
  const DType type = call.x.dtype() == call.w->weight.dtype() ? call.x.dtype() : DType::f32;
  RWKVX_ASSERT(type == DType::f32 || type == DType::bf16);
  const auto space = [&](int64_t elements) {
    if (state_->used == state_->converted.size()) state_->converted.emplace_back();
    return state_->converted[state_->used++].take<std::byte>(static_cast<int64_t>(bytes_of(type, elements)));
  };
  const auto converted = [&](const ConstView& view) {
    if (view.dtype() == type) return static_cast<const std::byte*>(view.data());
    std::byte* to = space(view.elements());
    pool_.run_ranges(view.elements(), 1 << 15, [&](int64_t begin, int64_t end) {
      convert(static_cast<const std::byte*>(view.data()) + bytes_of(view.dtype(), begin), view.dtype(),
              to + bytes_of(type, begin), type, end - begin);
    });
    return static_cast<const std::byte*>(to);
  };
  Operands operands{type, nullptr, nullptr, nullptr};
  if (call.activation == Activation::none) {
    operands.du = converted(call.dy);
  } else {
    std::byte* du = space(call.dy.elements());
    pool_.run_ranges(call.dy.elements(), 1 << 14,
                     [&](int64_t begin, int64_t end) { activation_backward(call, du, type, begin, end); });
    operands.du = du;
  }
  if (call.dw) operands.x = converted(call.x);
  if (call.dx) operands.w = converted(call.w->weight);
  return operands;
}

void BackwardProducts::add_parts(const LinearBackward& call, const Operands& operands, int64_t block) {
  const int64_t rows = call.dy.dim(0), in = call.w->in(), out = call.w->out();
  const DType type = operands.type;
  const auto bytes = [&](int64_t elements) { return static_cast<int64_t>(bytes_of(type, elements)); };
  if (call.dx) {  // [rows, in] = du [rows, out] · w [out, in]
    for (int64_t row = 0; row < rows; row += kMostRows) {
      for (int64_t column = 0; column < in; column += block) {
        const Product& p = product({std::min(kMostRows, rows - row), out, std::min(block, in - column), out,
                                    in, in, type, false, call.add});
        state_->parts.push_back({operands.du + bytes(row * out), operands.w + bytes(column),
                                 call.dx.as<float>() + row * in + column, &p, &p, 1, 0, 0});
      }
    }
  }
  if (!call.dw) return;
  // [out, in] += duᵀ [out, rows] · x [rows, in], some rows at a time: they stay in the cache, and batches of
  // any size need few kinds of products.
  for (int64_t o = 0; o < out; o += block) {
    for (int64_t column = 0; column < in; column += block) {
      const auto of_rows = [&](int64_t count) {
        return &product(
            {std::min(block, out - o), count, std::min(block, in - column), out, in, in, type, true, true});
      };
      const int64_t blocks = ceil_div(rows, kMostRows);
      const Product* whole = blocks > 1 ? of_rows(kMostRows) : nullptr;
      const Product* last = of_rows(rows - (blocks - 1) * kMostRows);
      state_->parts.push_back({operands.du + bytes(o), operands.x + bytes(column),
                               call.dw.as<float>() + o * in + column, whole, last, blocks,
                               bytes(kMostRows * out), bytes(kMostRows * in)});
    }
  }
}

void BackwardProducts::run_part(const Part& part, ThreadState& thread) const {
  const auto memory = [&](const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, state_->engine, const_cast<void*>(data));
  };
  for (int64_t i = 0; i < part.blocks; ++i) {
    const Product& p = i + 1 == part.blocks ? *part.last : *part.middle;
    void* scratchpad = thread.scratchpad.take<std::byte>(static_cast<int64_t>(p.scratchpad.get_size()));
    p.matmul.execute(thread.stream, {{DNNL_ARG_SRC, memory(p.a, part.a + i * part.a_step)},
                                     {DNNL_ARG_WEIGHTS, memory(p.b, part.b + i * part.b_step)},
                                     {DNNL_ARG_DST, memory(p.c, part.c)},
                                     {DNNL_ARG_SCRATCHPAD, memory(p.scratchpad, scratchpad)}});
    thread.stream.wait();
  }
}

}  // namespace rwkvx::cpu
