#pragma once

#include <memory>

#include "ops/ops.h"

namespace rwkvx {

/// Passes every operation on to another backend: the base of backends that watch or change a few of them.
/// Fused operations and replay() are not passed on: made of the others, they show all of them to who watches.
class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(std::shared_ptr<Ops> to) : to_(std::move(to)) {}

  std::string_view name() const override { return to_->name(); }
  Precision precision() const override { return to_->precision(); }
  Allocator& allocator() override { return to_->allocator(); }
  Allocator& host_memory() override { return to_->host_memory(); }
  DType active() const override { return to_->active(); }
  DType kv_type(DType weights) const override { return to_->kv_type(weights); }
  using Ops::prepare;
  Matrix prepare(ConstView weight, bool sparse_input) override { return to_->prepare(weight, sparse_input); }
  Matrix prepare_table(ConstView table) override { return to_->prepare_table(table); }
  void embed(std::span<const int32_t> tokens, ConstView table, View y) override {
    to_->embed(tokens, table, y);
  }
  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) override {
    to_->layer_norm(x, gain, bias, eps, y);
  }
  void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets, std::span<void* const> last,
                   std::span<const View> y) override {
    to_->token_shift(x, mix, offsets, last, y);
  }
  void linear(std::span<const LinearCall> calls) override { to_->linear(calls); }
  void wkv7_operands(const Wkv7Operands& call) override { to_->wkv7_operands(call); }
  void wkv7(const Wkv7Call& call) override { to_->wkv7(call); }
  void wkv7_output(const Wkv7Output& call) override { to_->wkv7_output(call); }
  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    to_->kv_append(k, v, offsets, kv);
  }
  void chunk_attention(const ChunkAttention& call) override { to_->chunk_attention(call); }
  void kv_vote(const KvVote& call) override { to_->kv_vote(call); }
  void kv_distinct(const KvDistinct& call) override { to_->kv_distinct(call); }
  void kv_keep(const KvChunks& kv, ConstView kept) override { to_->kv_keep(kv, kept); }
  void gather_rows(ConstView x, std::span<const int64_t> rows, View y) override {
    to_->gather_rows(x, rows, y);
  }
  void upload(std::span<const std::byte> host, void* device) override { to_->upload(host, device); }
  void download(const void* device, std::span<std::byte> host) override { to_->download(device, host); }
  void copy(const void* from, void* to, size_t bytes) override { to_->copy(from, to, bytes); }
  bool reads_host_memory() const override { return to_->reads_host_memory(); }
  Pieces pieces() const override { return to_->pieces(); }
  void synchronize() override { to_->synchronize(); }
  TrainingOps& training() override { return to_->training(); }

 protected:
  Ops& to() { return *to_; }

 private:
  std::shared_ptr<Ops> to_;
};

}  // namespace rwkvx
