#include "ops/cuda/resident_program.h"

#include <algorithm>

#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/resident_ring.h"
#include "ops/cuda/weight_units.h"
#include "tensor/quantise.h"

namespace rwkvx::cuda {
namespace {

using namespace resident;

constexpr int32_t kMostSlotBytes = 5632;  // more slots let the ring follow smaller steps
constexpr int64_t kUnit = 256;            // elements that a piece of a row is a multiple of

void require(bool fits) {
  if (!fits) throw CannotRecord();
}
bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
int32_t int_of(int64_t x) { return static_cast<int32_t>(x); }
int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

/// Whether rows of the matrix, and pieces of them, can be copied and read as they are.
bool fits(const GpuMatrix& m) {
  const bool type = m.type == DType::bf16 || m.type == DType::q8_0 || m.type == DType::q4_0 ||
                    m.type == DType::q4_k || m.type == DType::q5_k;
  const bool width = m.in % (m.type == DType::bf16 ? 32 : kUnit) == 0;  // bfloat16: whole steps
  return type && width && !m.input_major && aligned(m.body) && aligned(m.scales);
}
bool one_row(const ConstView& view, DType type) {
  return view.shape().rank() == 2 && view.dim(0) == 1 && view.dtype() == type && aligned(view.data());
}

Job job_of(const LinearCall& call, int input) {
  const GpuMatrix& m = gpu_matrix(*call.w);
  require(fits(m) && (call.y.dtype() == DType::bf16 || call.y.dtype() == DType::f32));
  require(!call.add || call.y.dtype() == DType::f32);
  return {.body = static_cast<const uint8_t*>(m.body),
          .scales = m.scales,
          .y = call.y.data(),
          .tagged = nullptr,
          .out = int_of(m.out),
          .input = static_cast<int16_t>(input),
          .activation = static_cast<uint8_t>(call.activation),
          .add = call.add,
          .y_bf16 = call.y.dtype() == DType::bf16};
}

Share share_of(int64_t total, int blocks) { return {int_of(total / blocks), int_of(total % blocks)}; }

Group group_of(const GpuMatrix& m, int first_job) {
  const WeightRows rows = weight_rows(m);
  const int32_t row = int_of(rows.row_bytes), scales = int_of(2 * rows.row_scales);
  Group group{.first_job = first_job,
              .jobs = 0,
              .rows = 0,
              .share = {},
              .in = int_of(m.in),
              .type = static_cast<int32_t>(m.type),
              .row_stride = row,
              .scales_stride = scales,
              .row_bytes = row,
              .scales_bytes = scales,
              .last_bytes = row,
              .last_scales = scales,
              .log_rows_of_slot = 0,
              .pieces = 1,
              .piece_elements = int_of(m.in)};
  if (row + scales <= kMostSlotBytes) return group;
  const int64_t piece = rounded_up(divided_up(m.in, divided_up(row + scales, kMostSlotBytes)), kUnit);
  const auto bytes = [&](int64_t whole, int64_t elements) { return int_of(whole * elements / m.in); };
  group.piece_elements = int_of(piece);
  group.pieces = int_of(divided_up(m.in, piece));
  group.row_bytes = bytes(row, piece);
  group.scales_bytes = bytes(scales, piece);
  group.last_bytes = row - (group.pieces - 1) * group.row_bytes;
  group.last_scales = scales - (group.pieces - 1) * group.scales_bytes;
  return group;
}
void fill_slots(Group& group, int64_t slot_bytes) {
  const int64_t bytes = group.row_bytes + group.scales_bytes;
  const auto rows = [&] { return int64_t{1} << group.log_rows_of_slot; };
  while (group.pieces == 1 && rows() < kTile && 2 * rows() * bytes <= slot_bytes) ++group.log_rows_of_slot;
}
struct Pieces {
  int32_t bytes, slots;
};
/// In 1, 2, 4 … slots: those of one tray follow each other.
Pieces pieces_of(int64_t bytes, int64_t slot_bytes, int64_t unit) {
  int64_t slots = 1;
  while (rounded_up(divided_up(bytes, slots), unit) > slot_bytes) slots *= 2;
  return {int_of(rounded_up(divided_up(bytes, slots), unit)), int_of(slots)};
}

/// The most inputs that a block's rows need.
int most_inputs(const Instruction& op, int blocks) {
  if (op.kind == Kind::time_mix) return op.input_count;
  int most = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    uint32_t needed = 0;
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      const auto first_of = [&](int64_t i) {
        return i * group.share.each + std::min<int64_t>(i, group.share.extra);
      };
      int64_t before = 0;
      for (int j = group.first_job; j < group.first_job + group.jobs; ++j) {
        const int64_t after = before + op.jobs[j].out;
        if (std::max(first_of(block), before) < std::min(first_of(block + 1), after)) {
          needed |= 1u << op.jobs[j].input;
        }
        before = after;
      }
    }
    most = std::max(most, __builtin_popcount(needed));
  }
  return most;
}

}  // namespace

ResidentComposer::ResidentComposer(Gpu& gpu) : gpu_(gpu) { require(available(gpu)); }

void ResidentComposer::unwritten(const ConstView& view) {
  const auto* begin = static_cast<const std::byte*>(view.data());
  unwritten_.push_back({begin, begin + view.bytes()});
}
void ResidentComposer::written(const ConstView& view) {
  const auto* begin = static_cast<const std::byte*>(view.data());
  const auto* end = begin + view.bytes();
  std::erase_if(unwritten_, [&](const Range& r) { return r.begin < end && begin < r.end; });
}
void ResidentComposer::require_written(const ConstView& view) const {
  const auto* begin = static_cast<const std::byte*>(view.data());
  const auto* end = begin + view.bytes();
  for (const Range& r : unwritten_) require(end <= r.begin || r.end <= begin);
}

void ResidentComposer::start_norm(ConstView x, ConstView gain, ConstView bias, float eps,
                                  std::span<const View> y) {
  flush();
  require(one_row(x, DType::f32) && x.dim(1) % 8 == 0 && x.dim(1) <= kMostWidth);
  // A thread keeps one quad at most for the next token.
  require(divided_up(x.dim(1) / 4, gpu_.multiprocessors()) <= kComputing);
  require_written(x);
  Instruction op{};
  op.source = Source::norm;
  op.x = x.as<float>();
  op.gain = gain.as<float>();
  op.bias = bias.as<float>();
  op.eps = eps;
  op.width = int_of(x.dim(1));
  op.quads = share_of(op.width / 4, gpu_.multiprocessors());
  op.input_count = int_of(static_cast<int64_t>(y.size()));
  norm_ = Inputs{op, {}};
  for (const View& view : y) {
    require(one_row(view, DType::bf16));
    norm_->at.push_back(view.data());
    written(view);  // of what lay there before nothing is left
    unwritten(view);
  }
}

void ResidentComposer::layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) {
  start_norm(x, gain, bias, eps, std::span(&y, 1));
}

void ResidentComposer::norm_shift(const NormShift& call) {
  require(!call.normed_needed && call.last.size() == 1 && call.y.size() <= kMostInputs);
  start_norm(call.x, call.gain, call.bias, call.eps, call.y);
  norm_->norm.source = Source::norm_shift;
  norm_->norm.mix = call.mix.as<float>();
  norm_->norm.last = static_cast<float*>(call.last[0]);
}

void ResidentComposer::linear(std::span<const LinearCall> calls) {
  if (held_.size() == 1 && calls.size() == 1 && calls[0].x.data() == held_[0].y.data() && calls[0].add &&
      gpu_matrix(*calls[0].w).input_major) {
    const LinearCall key = held_[0];
    held_.clear();
    return channel_mix(key, calls[0]);
  }
  flush();
  require(!calls.empty() && calls.size() <= kMostJobs);
  for (const LinearCall& call : calls) {
    require(one_row(call.x, DType::bf16) && one_row(call.y, call.y.dtype()));
    held_.push_back(call);
  }
}

Instruction ResidentComposer::begin(std::span<const LinearCall> calls) {
  const auto of_norm = [&](const LinearCall& call) {
    return norm_ && std::ranges::find(norm_->at, call.x.data()) != norm_->at.end();
  };
  if (std::ranges::all_of(calls, of_norm)) return norm_->norm;
  Instruction op{};
  op.source = Source::rows;
  for (const LinearCall& call : calls) {
    require_written(call.x);
    if (std::ranges::find(op.inputs, call.x.data()) != std::end(op.inputs)) continue;
    require(op.input_count < kMostInputs);
    op.input_elements[op.input_count] = int_of(call.x.dim(1));
    op.inputs[op.input_count++] = call.x.data();
  }
  return op;
}

void ResidentComposer::add_groups(Instruction& op, std::span<const LinearCall> calls, bool by_type) {
  const auto input_of = [&](const LinearCall& call) {
    if (op.source == Source::rows) {
      return std::ranges::find(op.inputs, call.x.data()) - std::begin(op.inputs);
    }
    return std::ranges::find(norm_->at, call.x.data()) - norm_->at.begin();
  };
  std::vector<bool> done(calls.size());
  int jobs = 0;
  for (size_t first = 0; first < calls.size(); ++first) {
    if (done[first]) continue;
    require(op.group_count < kMostGroups);
    const GpuMatrix& m = gpu_matrix(*calls[first].w);
    Group& group = op.groups[op.group_count++];
    group = group_of(m, jobs);
    for (size_t i = first; i < calls.size(); ++i) {
      const GpuMatrix& other = gpu_matrix(*calls[i].w);
      const bool same = i == first || (by_type && other.type == m.type && other.in == m.in);
      if (done[i] || !same) continue;
      done[i] = true;
      op.jobs[jobs++] = job_of(calls[i], static_cast<int>(input_of(calls[i])));
      ++group.jobs;
      group.rows += int_of(other.out);
    }
    group.share = share_of(group.rows, gpu_.multiprocessors());
  }
}

void ResidentComposer::flush() {
  if (held_.empty()) return;
  Instruction op = begin(held_);
  op.kind = Kind::products;
  add_groups(op, held_, true);
  for (const LinearCall& call : held_) written(call.y);
  append(op);
  norm_.reset();
  held_.clear();
}

void ResidentComposer::channel_mix(const LinearCall& key, const LinearCall& value) {
  const GpuMatrix& m = gpu_matrix(*value.w);
  require(m.type == DType::bf16 && m.out % 8 == 0 && m.out <= kMostSparseOut && aligned(m.body));
  require(one_row(value.y, DType::f32) && !key.add && key.y.dtype() == DType::bf16);
  Instruction op = begin(std::span(&key, 1));
  op.kind = Kind::channel_mix;
  add_groups(op, std::span(&key, 1), true);
  op.value = static_cast<const uint8_t*>(m.body);
  op.out = int_of(m.out);
  append(op);
  norm_.reset();
  written(key.y);
  unwritten(key.y);
  parts_ = std::max(parts_, m.out);

  Instruction total{};
  total.kind = Kind::total;
  total.out = op.out;
  total.outputs = share_of(op.out, gpu_.multiprocessors());
  total.y = value.y.as<float>();
  written(value.y);
  append(total);
}

void ResidentComposer::wkv7_step(const Wkv7Step& call) {
  const Wkv7Operands& in = call.operands;
  const std::vector<const void*> wanted = [&] {
    std::vector<const void*> all{in.decay.data(), in.rate.data(), call.output.g.data()};
    if (in.value_gate) all.push_back(in.value_gate.data());
    return all;
  }();
  require(held_.size() == wanted.size() && in.reset.empty() && !call.recurrence.kept);
  require(call.recurrence.states.size() == 1 && one_row(call.output.y, DType::bf16));
  const int64_t C = call.output.y.dim(1);
  for (size_t i = 0; i < held_.size(); ++i) {
    const LinearCall& low_rank = held_[i];
    require(low_rank.y.data() == wanted[i] && low_rank.y.dtype() == DType::f32 && !low_rank.add &&
            low_rank.activation == Activation::none && low_rank.w->out() == C);
  }
  Instruction op = begin(held_);
  require(op.source == Source::rows);
  for (const ConstView& view : {call.recurrence.r, in.k, in.v}) require_written(view);
  op.kind = Kind::time_mix;
  add_groups(op, held_, false);
  op.heads = int_of(C / kHead);
  op.first_head = head_step(call);
  op.first_head.state = static_cast<float*>(call.recurrence.states[0]);
  op.first_head.before = op.first_head.state;
  op.step_y = call.output.y.data();
  for (const LinearCall& low_rank : held_) {
    written(low_rank.y);
    unwritten(low_rank.y);
  }
  for (const ConstView& view : {ConstView(in.w), ConstView(in.a), ConstView(in.b), ConstView(call.recurrence.y)}) {
    written(view);
    unwritten(view);
  }
  written(call.output.y);
  append(op);
  held_.clear();
}

/// Words that are written in one instruction and read in the next. Those of the one after that begin elsewhere:
/// three places take turns, so that nobody who is behind finds other ones. `at` are offsets until finish().
uint64_t* ResidentComposer::tagged_room(int64_t elements) {
  const int64_t at = tagged_;
  tagged_ += rounded_up(elements, 16);
  most_tagged_ = std::max(most_tagged_, tagged_);
  return reinterpret_cast<uint64_t*>(1 + at);
}

bool ResidentComposer::tag_last(Instruction& op) {
  if (list_.empty()) return false;
  Instruction& last = list_.back();
  tagged_ = 0;
  const auto job_of_y = [&](const void* y) -> Job* {
    if (last.kind != Kind::products) return nullptr;
    for (int g = 0; g < last.group_count; ++g) {
      for (int j = last.groups[g].first_job; j < last.groups[g].first_job + last.groups[g].jobs; ++j) {
        if (last.jobs[j].y == y) return &last.jobs[j];
      }
    }
    return nullptr;
  };
  if (op.source != Source::rows) {
    Job* const job = job_of_y(op.x);
    if (job == nullptr || job->out != op.width || job->y_bf16) return false;
    op.tagged_x = job->tagged = tagged_room(job->out);
    return true;
  }
  if (op.kind == Kind::time_mix) {
    Job *jobs[kMostInputs], *operands[3];
    for (int i = 0; i < op.input_count; ++i) {
      jobs[i] = job_of_y(op.inputs[i]);
      if (jobs[i] == nullptr || !jobs[i]->y_bf16 || jobs[i]->out != op.input_elements[i]) return false;
    }
    const float* const names[3] = {op.first_head.r, op.first_head.k, op.first_head.v};
    for (int i = 0; i < 3; ++i) {
      operands[i] = job_of_y(names[i]);
      if (operands[i] == nullptr || operands[i]->y_bf16) return false;
    }
    for (int i = 0; i < op.input_count; ++i) op.tagged_inputs[i] = jobs[i]->tagged = tagged_room(jobs[i]->out);
    for (int i = 0; i < 3; ++i) op.tagged_operands[i] = operands[i]->tagged = tagged_room(operands[i]->out);
    return true;
  }
  if (last.kind == Kind::time_mix && op.input_count == 1 && op.inputs[0] == last.step_y) {
    op.tagged_inputs[0] = last.tagged_step = tagged_room(op.input_elements[0]);
    return true;
  }
  return false;
}

void ResidentComposer::append(Instruction op) {
  const bool shifts = op.kind != Kind::total && op.source == Source::norm_shift;
  const bool enough_room = norms_ + (shifts ? 1 : 0) <= kMostKept;
  const bool tagged = op.kind != Kind::total && enough_room && tag_last(op);
  op.meets = tagged ? 0 : 1;
  if (!tagged) norms_ = 0;
  if (shifts) ++norms_;
  // 0 is no tag.
  op.writes = static_cast<uint32_t>(list_.size()) + 1;
  op.reads = op.writes - 1;
  list_.push_back(op);
}

std::shared_ptr<Program> ResidentComposer::finish() {
  flush();
  require(!list_.empty());
  // Slots have room for the longest row, or piece of one; other things come in as many as they need.
  int64_t slot = 1024, inputs = 0, trays = kTile / kSlotsOfTray;  // needed at once
  for (Instruction& op : list_) {
    for (int g = 0; g < op.group_count; ++g) {
      slot = std::max<int64_t>(slot, op.groups[g].row_bytes + op.groups[g].scales_bytes);
    }
    if (op.kind == Kind::time_mix) slot = std::max<int64_t>(slot, kHeadParameters * kHead * sizeof(float));
    // A vector, and a value row, lies in one tray.
    slot = std::max<int64_t>({slot, rounded_up(op.width, 16), rounded_up(op.out / 2, 16)});
    int64_t longest = op.source == Source::rows ? 0 : op.width;
    for (int i = 0; op.source == Source::rows && i < op.input_count; ++i) {
      longest = std::max<int64_t>(longest, op.input_elements[i]);
    }
    op.input_pitch = int_of(rounded_up(2 * longest, 128));
    inputs = std::max<int64_t>(inputs, most_inputs(op, gpu_.multiprocessors()) * op.input_pitch);
  }
  for (Instruction& op : list_) {
    for (int g = 0; g < op.group_count; ++g) fill_slots(op.groups[g], slot);
    if (op.source != Source::rows) {
      const Pieces all = pieces_of(4 * op.width, slot, 16);
      op.vector_piece = all.bytes, op.vector_slots = all.slots;
      const int64_t vectors = 3 + most_inputs(op, gpu_.multiprocessors());
      trays = std::max(trays, divided_up(vectors * all.slots, kSlotsOfTray));
    }
    if (op.kind == Kind::channel_mix) {
      const Pieces all = pieces_of(2 * op.out, slot, 16);
      op.value_piece = all.bytes, op.value_pieces = all.slots;
      trays = std::max(trays, divided_up(kTile * all.slots, kSlotsOfTray));  // all of a tile's
    }
    if (op.kind == Kind::time_mix) {
      const Pieces all = pieces_of(kHead * kHead * 4, slot, 1024);
      op.state_piece = all.bytes, op.state_slots = all.slots;
      op.head_trays = int_of(divided_up(1 + all.slots, kSlotsOfTray));
      for (int g = 0; g < op.group_count; ++g) {
        require(op.groups[g].pieces == 1 && op.groups[g].type == static_cast<int32_t>(DType::bf16));
        op.lora_trays[g] = op.head_trays;
        op.head_trays += kHead / kSlotsOfTray >> op.groups[g].log_rows_of_slot;
      }
      trays = std::max<int64_t>(trays, op.head_trays);
    }
  }
  auto program = std::make_shared<Program>();
  // Rows in neighbouring slots begin in other halves of the memory's banks.
  program->layout = layout_for(int_of(rounded_up(slot, 128) + 64), int_of(inputs));
  require(program->layout.trays >= trays);
  program->length = int_of(static_cast<int64_t>(list_.size()));
  program->count = Buffer(DType::u8, {2 * sizeof(uint32_t)}, gpu_.allocator());
  program->parts = Buffer(DType::f32, {std::max<int64_t>(1, gpu_.multiprocessors() * parts_)}, gpu_.allocator());
  program->tagged = Buffer(DType::i64, {std::max<int64_t>(1, 3 * most_tagged_)}, gpu_.allocator());
  auto* const tagged = static_cast<uint64_t*>(program->tagged.view().data());
  // What instruction i writes tagged is in place i mod 3.
  const auto place = [&](auto*& p, size_t writer) {
    if (p == nullptr) return;
    p = tagged + static_cast<int64_t>(writer % 3) * most_tagged_ + (reinterpret_cast<intptr_t>(p) - 1);
  };
  for (size_t i = 0; i < list_.size(); ++i) {
    Instruction& op = list_[i];
    op.parts = program->parts.as<float>();
    for (Job& job : op.jobs) place(job.tagged, i);
    place(op.tagged_step, i);
    place(op.tagged_x, i - 1);
    for (const uint64_t*& p : op.tagged_inputs) place(p, i - 1);
    for (const uint64_t*& p : op.tagged_operands) place(p, i - 1);
  }
  const auto bytes = std::as_bytes(std::span(list_));
  program->instructions = Buffer(DType::u8, {static_cast<int64_t>(bytes.size())}, gpu_.allocator());
  gpu_.upload(bytes.data(), program->instructions.view().data(), bytes.size());
  return program;
}

}  // namespace rwkvx::cuda
