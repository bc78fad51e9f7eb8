// What a backend reaches, from single operations to whole models and training steps, at the sizes of a 3.6B
// RWKV-X: for GPUs, but any backend runs. Prints a JSON object for each measurement as soon as it is there;
// what fails is reported in the same way and the rest goes on. Times are the host's between two waits for the
// backend: medians over batches of calls after a warm-up, a single run where one takes over a second.
// `cuda_speed --help` lists the options.
#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <limits>

#include "cuda_speed_data.h"
#include "cuda_speed_meter.h"
#include "cuda_speed_model.h"

namespace rwkvx {
namespace {

struct Options {
  std::string backend = "cuda", precision = "bf16";
  std::vector<std::string> only{"copy",      "model",       "attention",   "linear",         "wkv",
                                "train",     "dense",       "wkv_back",    "attention_back", "decode_linear",
                                "rows",      "dense_model", "model_plain", "train_large",    "model_q4_k",
                                "model_q8_0"};
  double budget = 240;
  int threads = 0;
  std::vector<int64_t> contexts{8192, 32768, 131072, 524288, 1048576};
  std::vector<int64_t> batches{8, 32};
  int64_t dense_most = 131072, rows = 4096, tokens = 65536, piece = 65536;
  double copy_gb = 2;
  BenchModel model;
  int64_t train_layers = 24, train_sparse = 6, train_channels = 1024, large_channels = 2048;
  std::vector<int64_t> slice_rows{2048, 16384};
  double activation_gb = 16;
};

constexpr int64_t kAll = std::numeric_limits<int32_t>::max();

class Speed {
 public:
  Speed(const Options& options, std::shared_ptr<Ops> ops)
      : o_(options),
        ops_(std::move(ops)),
        meter_(*ops_, options.budget),
        data_(*ops_),
        C_(options.model.channels),
        H_(options.model.channels / kHeadSize) {}

  void run() {
    Fields fields;
    fields.text("what", "machine").text("backend", ops_->name()).number("budget", o_.budget);
    fields.number("segment", o_.model.segment);
    fields.print();
    for (const std::string& group : o_.only) {
      meter_.guarded(group, [&] { run_group(group); });
    }
    Fields().text("what", "end").number("at", meter_.elapsed()).print();
  }

 private:
  void run_group(const std::string& group) {
    if (group == "copy") return copy();
    if (group == "linear") return prefill_products();
    if (group == "decode_linear") return decode_products();
    if (group == "rows") return row_operations();
    if (group == "wkv") return wkv(false);
    if (group == "wkv_back") return wkv(true);
    if (group == "attention") return attention(o_.model.top_k, kAll);
    if (group == "dense") return attention(kAll, o_.dense_most);
    if (group == "attention_back") return attention_backward();
    const ModelSpeed models{*this->ops_, ops_, meter_, data_, o_.model, o_.contexts, o_.batches, o_.piece};
    if (group == "model") return models.run(o_.model.sparse_blocks, DType::bf16, true);
    if (group == "model_plain") return models.run(0, DType::bf16, true);
    if (group == "decode") return models.run(o_.model.sparse_blocks, DType::bf16, false);
    if (group == "model_q4_k") return models.run(o_.model.sparse_blocks, DType::q4_k, false);
    if (group == "model_q8_0") return models.run(o_.model.sparse_blocks, DType::q8_0, false);
    if (group == "dense_model") return models.dense(o_.dense_most);
    if (group == "train") return train(o_.train_channels, o_.tokens);
    if (group == "train_large") return train(o_.large_channels, o_.tokens);
    fail("no such group of measurements");
  }

  Buffer real(Shape shape) { return Buffer(ops_->real(), shape, ops_->allocator()); }
  Buffer active(Shape shape) { return Buffer(ops_->active(), shape, ops_->allocator()); }
  Buffer random(Shape shape, float deviation = 1) {
    Buffer buffer = real(shape);
    data_.fill(buffer, deviation);
    return buffer;
  }
  Buffer random_active(Shape shape) {
    Buffer buffer = active(shape);
    data_.fill(buffer, 1);
    return buffer;
  }

  // ---- memory and products

  void copy() {
    const auto bytes = static_cast<int64_t>(o_.copy_gb * (1 << 30));
    const Buffer from = random({bytes / 4});
    Buffer to = real({bytes / 4});
    Fields fields;
    fields.text("what", "copy").number("bytes", bytes);
    meter_.measure(fields, [&] { ops_->copy(from.view().data(), to.view().data(), from.view().bytes()); },
                   {{"gb_per_s", 2e-9 * static_cast<double>(bytes)}});
    meter_.bandwidth = meter_.last_rate;
  }

  struct Product {
    const char* name;
    int64_t in, out;
    Activation activation;
    bool add;
  };
  std::array<Product, 3> products() const {
    return {{{"projection", C_, C_, Activation::none, false},
             {"ffn key", C_, o_.model.ffn(), Activation::relu_squared, false},
             {"ffn value", o_.model.ffn(), C_, Activation::none, true}}};
  }
  static constexpr std::array kTypes{DType::bf16, DType::q8_0, DType::q4_0, DType::q4_k};

  void product(const Product& p, DType type, int64_t rows, bool decode) {
    const HostMatrix host(type, p.out, p.in);
    const bool value = p.activation == Activation::none && p.add;
    // Decoding meets every matrix once a token, so they must not stay in the cache.
    const double matrix_bytes = static_cast<double>(host.view().bytes());
    const int64_t count = decode ? 1 + static_cast<int64_t>(meter_.cache_bytes / matrix_bytes) : 1;
    std::vector<Matrix> ws;
    for (int64_t i = 0; i < count; ++i) ws.push_back(ops_->prepare(host.view(), value));
    Buffer x = random_active({rows, p.in});
    if (value) {  // what comes out of the squared ReLUs: half of it is zero
      const HostMatrix key(DType::bf16, p.in, C_, 1);
      const Matrix w = ops_->prepare(key.view());
      const Buffer in = random_active({rows, C_});
      ops_->linear({.x = in, .w = &w, .y = x, .activation = Activation::relu_squared});
    }
    Buffer y = p.activation == Activation::none ? real({rows, p.out}) : active({rows, p.out});
    size_t turn = 0;
    Fields fields;
    fields.text("what", "linear").text("product", p.name).text("type", name(type)).number("rows", rows);
    fields.number("in", p.in).number("out", p.out);
    const double flop = 2 * static_cast<double>(rows) * static_cast<double>(p.in * p.out);
    meter_.measure(
        fields,
        [&] {
          ops_->linear(
              {.x = x, .w = &ws[turn++ % ws.size()], .y = y, .activation = p.activation, .add = p.add});
        },
        {{"tflop_per_s", 1e-12 * flop}, {"weights_gb_per_s", 1e-9 * matrix_bytes}});
  }

  void prefill_products() {
    for (const DType type : kTypes) {
      for (const Product& p : products()) {
        meter_.guarded("linear", [&] { product(p, type, o_.rows, false); });
      }
    }
  }

  void decode_products() {
    for (const int64_t rows : {1, 8}) {
      for (const DType type : kTypes) {
        for (const Product& p : products()) {
          meter_.guarded("linear", [&] { product(p, type, rows, true); });
        }
      }
    }
  }

  // ---- operations on rows, at the size of a prompt's segment

  void row_operations() {
    const int64_t R = o_.model.segment;
    const double bytes = 4 * static_cast<double>(R * C_),
                 half = bytes / 4 * static_cast<double>(active_bytes());
    const Buffer x = random({R, C_}), gain = random({C_}), bias = random({C_}), mix = random({6, C_}, 0.3f);
    Buffer y = real({R, C_}), last = real({C_});
    std::vector<Buffer> mixed;
    std::vector<View> views;
    for (int i = 0; i < 6; ++i) mixed.push_back(active({R, C_}));
    for (Buffer& one : mixed) views.push_back(one);
    const auto fields = [&](std::string_view what) {
      Fields f;
      f.text("what", what).number("rows", R).number("channels", C_);
      return f;
    };
    meter_.measure(fields("layer_norm"), [&] { ops_->layer_norm(x, gain, bias, 1e-5f, y); },
                   {{"gb_per_s", 2e-9 * bytes}});
    const std::array<int64_t, 2> offsets{0, R};
    void* const shift = last.view().data();
    meter_.measure(fields("token_shift, 6"),
                   [&] { ops_->token_shift(x, mix, offsets, std::span(&shift, 1), views); },
                   {{"gb_per_s", 1e-9 * (bytes + 6 * half)}});
    const Buffer k = random({R, C_}), v = random({R, C_}), g = random({R, C_});
    Buffer w = real({R, C_}), a = real({R, C_}), b = real({R, C_}), k_out = real({R, C_}),
           v_out = real({R, C_});
    Wkv7Operands call;
    call.decay = x, call.rate = g, call.value_gate = x, call.k = k, call.v = v, call.v_first = g;
    call.w0 = call.a0 = call.v0 = call.k_k = call.k_a = gain;
    call.w = w, call.k_out = k_out, call.v_out = v_out, call.a = a, call.b = b;
    meter_.measure(fields("wkv7_operands"), [&] { ops_->wkv7_operands(call); },
                   {{"gb_per_s", 11e-9 * bytes}});
    meter_.measure(fields("wkv7_output"),
                   [&] {
                     ops_->wkv7_output({.x = x,
                                        .r = w,
                                        .k = k,
                                        .v = v,
                                        .g = g,
                                        .r_k = bias,
                                        .gain = gain,
                                        .bias = bias,
                                        .y = views[0]});
                   },
                   {{"gb_per_s", 1e-9 * (5 * bytes + half)}});
  }
  int64_t active_bytes() const { return ops_->active() == DType::bf16 ? 2 : 4; }

  // ---- the recurrence

  /// Operands such as a model has, for `rows` rows.
  struct Recurrence {
    Buffer r, w, k, v, a, b, y, states;
    std::vector<int64_t> offsets;
    std::vector<void*> pointers;
  };
  Recurrence recurrence(int64_t sequences, int64_t length) {
    const int64_t R = sequences * length;
    Recurrence x{.r = random({R, C_}),
                 .w = real({R, C_}),
                 .k = random({R, C_}),
                 .v = random({R, C_}),
                 .a = real({R, C_}),
                 .b = real({R, C_}),
                 .y = random({R, C_}),  // at first the decay's input
                 .states = real({sequences, H_, kHeadSize, kHeadSize}),
                 .offsets = {0},
                 .pointers = {}};
    const Buffer rate = random({R, C_}), w0 = random({C_}, 0.5f), k_k = random({C_}, 0.3f);
    ops_->wkv7_operands({.decay = x.y,
                         .rate = rate,
                         .value_gate = {},
                         .k = x.k,
                         .v = x.v,
                         .v_first = {},
                         .w0 = w0,
                         .a0 = w0,
                         .v0 = {},
                         .k_k = k_k,
                         .k_a = k_k,
                         .w = x.w,
                         .k_out = x.k,
                         .v_out = x.v,
                         .a = x.a,
                         .b = x.b});
    ops_->synchronize();
    for (int64_t s = 0; s < sequences; ++s) {
      x.offsets.push_back((s + 1) * length);
      x.pointers.push_back(x.states.view().rows(s, 1).data());
    }
    return x;
  }
  static Wkv7Call call_of(Recurrence& x) {
    return {.r = x.r,
            .w = x.w,
            .k = x.k,
            .v = x.v,
            .a = x.a,
            .b = x.b,
            .offsets = x.offsets,
            .states = x.pointers,
            .y = x.y};
  }

  void wkv(bool backward) {
    for (const auto& [sequences, length] : {std::array{int64_t{1}, o_.tokens}, {8, o_.tokens / 16}}) {
      Fields fields;
      fields.number("batch", sequences).number("rows", length).number("heads", H_);
      meter_.guarded("wkv7", [&] {
        Recurrence x = recurrence(sequences, length);
        Wkv7Call call = call_of(x);
        const auto tokens = static_cast<double>(sequences * length);
        const double bytes = 7 * 4 * tokens * static_cast<double>(C_);
        if (!backward) {
          meter_.measure(Fields(fields).text("what", "wkv7"), [&] { ops_->wkv7(call); },
                         {{"tokens_per_s", tokens}, {"gb_per_s", 1e-9 * bytes}});
          return;
        }
        Buffer kept = real({wkv7_intervals(x.offsets), H_, kHeadSize, kHeadSize});
        call.kept = kept;
        meter_.measure(Fields(fields).text("what", "wkv7, keeping"), [&] { ops_->wkv7(call); },
                       {{"tokens_per_s", tokens}, {"gb_per_s", 1e-9 * bytes}});
        std::vector<Buffer> d;
        for (int i = 0; i < 7; ++i) d.push_back(random({sequences * length, C_}, 0.1f));
        meter_.measure(
            Fields(fields).text("what", "wkv7_backward"),
            [&] {
              ops_->training().wkv7_backward(
                  call, {.dy = d[0], .dr = d[1], .dk = d[2], .dv = d[3], .dw = d[4], .da = d[5], .db = d[6]});
            },
            {{"tokens_per_s", tokens}});
      });
    }
    if (backward) return;
    std::vector<int64_t> batches{1};
    batches.insert(batches.end(), o_.batches.begin(), o_.batches.end());
    for (const int64_t batch : batches) {
      meter_.guarded("wkv7 decode", [&] {
        Recurrence x = recurrence(batch, 1);
        const Wkv7Call call = call_of(x);
        Fields fields;
        fields.text("what", "wkv7 decode").number("batch", batch).number("heads", H_);
        meter_.measure(fields, [&] { ops_->wkv7(call); },
                       {{"state_gb_per_s", 2e-9 * static_cast<double>(x.states.view().bytes())}});
      });
    }
  }

  // ---- attention

  /// Keys that the queries of all rows see.
  double pairs(int64_t rows, int64_t top_k) const {
    const int64_t B = o_.model.chunk;
    double sum = 0;
    for (int64_t t = 0; t < rows; ++t) sum += static_cast<double>(t % B + 1 + std::min(top_k - 1, t / B) * B);
    return sum;
  }

  void attention(int64_t top_k, int64_t most) {
    const bool all = top_k == kAll;
    double before = 0;  // seconds for the context before
    int64_t context_before = 0;
    for (const int64_t T : o_.contexts) {
      if (T > most) continue;
      Fields fields;
      fields.text("what", all ? "attention, dense" : "attention").number("rows", T).number("heads", H_);
      fields.number("chunk", o_.model.chunk);
      if (!all) fields.number("top_k", top_k);
      const double ratio =
          context_before > 0 ? static_cast<double>(T) / static_cast<double>(context_before) : 0;
      const double expected = before * ratio * (all ? ratio : 1.1);
      if (!meter_.fits(fields, 0.5 + 2 * expected)) continue;
      meter_.guarded("attention", [&] {
        KvStore store(H_, o_.model.chunk, 0, {}, std::make_shared<KvMemory>(KvOptions{}, *ops_), *ops_);
        append_random(*ops_, data_, std::span(&store, 1), T, o_.piece);
        const Buffer q = random({T, C_});
        Buffer y = active({T, C_});
        KvChunks kv = store.chunks();
        const std::array<int64_t, 2> offsets{0, T};
        const ChunkAttention call{
            .q = q, .offsets = offsets, .kv = std::span(&kv, 1), .top_k = top_k, .y = y};
        std::unique_ptr<KvDerived> derived;
        const double flop = 4 * static_cast<double>(kHeadSize * H_) * pairs(T, top_k);
        meter_.measure(
            fields,
            [&] {
              derived.reset();  // a prompt comes without
              kv.derived = &derived;
              ops_->chunk_attention(call);
            },
            {{"tflop_per_s", 1e-12 * flop}, {"tokens_per_s", static_cast<double>(T)}}, expected > 1);
        before = meter_.last_seconds;
        context_before = T;
        attention_decode(store, q, top_k, fields);
      });
    }
    if (all) return;
    meter_.guarded("kv_append", [&] {
      KvStore store(H_, o_.model.chunk, 0, {}, std::make_shared<KvMemory>(KvOptions{}, *ops_), *ops_);
      const int64_t R = o_.tokens;
      const Buffer k = random({R, C_}), v = random({R, C_});
      store.extend(R);
      const KvChunks kv = store.chunks();
      const std::array<int64_t, 2> offsets{0, R};
      Fields fields;
      fields.text("what", "kv_append").number("rows", R).number("heads", H_);
      meter_.measure(fields, [&] { ops_->kv_append(k, v, offsets, std::span(&kv, 1)); },
                     {{"gb_per_s", 1e-9 * static_cast<double>(R * C_ * 2 * (4 + active_bytes()))}});
    });
  }

  /// One query at the end of what is stored.
  void attention_decode(const KvStore& store, ConstView q, int64_t top_k, Fields fields) {
    const KvChunks kv = store.chunks();
    Buffer y = active({1, C_});
    const std::array<int64_t, 2> offsets{0, 1};
    int64_t turn = 0;  // other queries choose other chunks, so that the cache does not hold them
    const int64_t full = kv.length / kv.chunk_size, chosen = std::min(top_k - 1, full);
    const double keys = static_cast<double>(std::min(kv.length, (1 + chosen) * kv.chunk_size));
    meter_.measure(fields.text("of", "one query"),
                   [&] {
                     ops_->chunk_attention({.q = q.rows(turn++ % std::min<int64_t>(64, q.dim(0)), 1),
                                            .offsets = offsets,
                                            .kv = std::span(&kv, 1),
                                            .top_k = top_k,
                                            .y = y});
                   },
                   {{"kv_gb_per_s", 1e-9 * keys * static_cast<double>(store.token_bytes())}});
  }

  void attention_backward() {
    const int64_t R = o_.tokens, B = o_.model.chunk, top_k = o_.model.top_k;
    KvStore store(H_, B, 0, {}, std::make_shared<KvMemory>(KvOptions{}, *ops_), *ops_);
    append_random(*ops_, data_, std::span(&store, 1), R, o_.piece);
    const Buffer q = random({R, C_}), dy = random({R, C_});
    Buffer y = active({R, C_}), lse = real({R, H_}),
           chosen(DType::i32, {R, H_, top_k - 1}, ops_->allocator());
    Buffer dq = real({R, C_}), dk = real({R, C_}), dv = real({R, C_});
    const KvChunks kv = store.chunks();
    const std::array<int64_t, 2> offsets{0, R};
    const ChunkAttention call{.q = q,
                              .offsets = offsets,
                              .kv = std::span(&kv, 1),
                              .top_k = top_k,
                              .y = y,
                              .lse = lse,
                              .chosen = chosen};
    Fields fields;
    fields.number("rows", R).number("heads", H_).number("chunk", B).number("top_k", top_k);
    const double flop = 4e-12 * static_cast<double>(kHeadSize * H_) * pairs(R, top_k);
    meter_.measure(Fields(fields).text("what", "attention, keeping"), [&] { ops_->chunk_attention(call); },
                   {{"tflop_per_s", flop}});
    meter_.measure(
        Fields(fields).text("what", "attention backward"),
        [&] { ops_->training().chunk_attention_backward(call, {.dy = dy, .dq = dq, .dk = dk, .dv = dv}); },
        {{"tflop_per_s", 2.5 * flop}});
  }

  // ---- training

  void train(int64_t channels, int64_t context) {
    const ModelConfig config = o_.model.config(o_.train_layers, o_.train_sparse, channels);
    TrainingSpeed{*ops_, meter_, data_}.run(config, context, o_.slice_rows,
                                            static_cast<uint64_t>(1e9 * o_.activation_gb));
  }

  const Options& o_;
  std::shared_ptr<Ops> ops_;
  Meter meter_;
  RandomData data_;
  int64_t C_, H_;
};

}  // namespace
}  // namespace rwkvx

int main(int argc, char** argv) {
  rwkvx::Options o;
  CLI::App app("Speed of a backend: operations, whole models, training steps");
  app.option_defaults()->always_capture_default();
  app.add_option("--backend", o.backend);
  app.add_option("--precision", o.precision)->check(CLI::IsMember({"f32", "bf16"}));
  app.add_option("--threads", o.threads, "of the processor; 0: one for each core");
  app.add_option("--only", o.only, "groups of measurements, in the order wanted")->delimiter(',');
  app.add_option("--budget", o.budget, "seconds for all; what does not fit is skipped");
  app.add_option("--contexts", o.contexts, "tokens, for attention and models")->delimiter(',');
  app.add_option("--batches", o.batches, "sequences that decode together")->delimiter(',');
  app.add_option("--dense-most", o.dense_most, "longest context of dense attention");
  app.add_option("--rows", o.rows, "rows of products");
  app.add_option("--tokens", o.tokens, "rows of the recurrence, of backwards and of training");
  app.add_option("--piece", o.piece, "rows of random keys that are appended at once");
  app.add_option("--copy-gb", o.copy_gb);
  app.add_option("--segment", o.model.segment,
                 "rows of a prompt that a model takes at a time; 0: as sessions do");
  app.add_option("--kv-gb", o.model.kv_gb, "memory for keys and values; above it they are stored as i8");
  app.add_option_function<std::string>(
      "--kv",
      [&o](const std::string& text) {
        try {
          rwkvx::parse_kv_policy(text, o.model.kv);
        } catch (const rwkvx::Error& error) {
          throw CLI::ValidationError(error.what());
        }
      },
      "full or host[:GB], for whole models");
  app.add_option("--layers", o.model.layers, "RWKV-7 blocks");
  app.add_option("--sparse-blocks", o.model.sparse_blocks);
  app.add_option("--channels", o.model.channels);
  app.add_option("--vocab-size", o.model.vocab);
  app.add_option("--chunk-size", o.model.chunk);
  app.add_option("--chunk-top-k", o.model.top_k);
  app.add_option("--train-layers", o.train_layers);
  app.add_option("--train-sparse-blocks", o.train_sparse);
  app.add_option("--train-channels", o.train_channels);
  app.add_option("--large-channels", o.large_channels, "of train_large");
  app.add_option("--slice-rows", o.slice_rows, "of training, one step for each")->delimiter(',');
  app.add_option("--activation-gb", o.activation_gb, "memory for activations of blocks in training");
  CLI11_PARSE(app, argc, argv);
  try {
    const auto precision = o.precision == "f32" ? rwkvx::Precision::f32 : rwkvx::Precision::bf16;
    std::shared_ptr<rwkvx::Ops> ops = rwkvx::make_ops({o.backend, precision, o.threads});
    if (o.model.segment <= 0) o.model.segment = rwkvx::session_segment(*ops, o.model);
    rwkvx::Speed(o, std::move(ops)).run();
  } catch (const std::exception& e) {
    fmt::print(stderr, "cuda_speed: {}\n", e.what());
    return 1;
  }
}
