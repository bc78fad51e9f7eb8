#include "model/state_file.h"

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/checked.h"
#include "base/error.h"
#include "base/hash.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

constexpr std::string_view kMagic = "RWKVXST\x01";
constexpr uint64_t kLargest = uint64_t{1} << 62;  // number in a header
constexpr int kFormat = 2;
constexpr uint64_t kFixedBytes = 8 + 8 + 8;  // magic, header length, checksum

/// What the header says; also the only place that knows the order of the payload.
struct Header {
  uint64_t fingerprint = 0;
  int64_t position = 0;
  DType real = DType::f32, kv = DType::f32;
  int64_t layers = 0, sparse_blocks = 0, channels = 0, chunk_size = 0;
  std::string bound;                     // KvOptions::policy_text() of bounded stores, else empty
  std::vector<int64_t> stored, waiting;  // of each sparse block: tokens; queries that wait to vote
  std::string extra;
};

nlohmann::json to_json(const Header& h) {
  return {{"format", kFormat},
          {"model", fmt::format("{:016x}", h.fingerprint)},
          {"position", h.position},
          {"real", name(h.real)},
          {"kv", name(h.kv)},
          {"layers", h.layers},
          {"sparse_blocks", h.sparse_blocks},
          {"channels", h.channels},
          {"chunk_size", h.chunk_size},
          {"bound", h.bound},
          {"stored", h.stored},
          {"waiting", h.waiting},
          {"extra", h.extra}};
}

Header parse_header(std::string_view text, const std::string& file) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    const auto checked = [&](const nlohmann::json& value) {
      if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > kLargest)) {
        fail("{}: the state file's header is damaged", file);
      }
      return value.get<int64_t>();
    };
    const auto number = [&](const char* key) { return checked(json.at(key)); };
    const auto numbers = [&](const char* key) {
      std::vector<int64_t> list;
      for (const nlohmann::json& value : json.at(key)) list.push_back(checked(value));
      return list;
    };
    const int64_t format = number("format");
    if (format > kFormat) fail("{}: written by a newer rwkvx; update rwkvx to read it", file);
    if (format < kFormat) {
      fail("{}: a state of format {}, which this rwkvx no longer reads; read the prompt again", file, format);
    }
    Header h;
    const auto dtype = [&](const char* key) {
      const auto found = dtype_named(json.at(key).get<std::string>());
      const bool known = found && (is_float(*found) || (*found == DType::i8 && key == std::string("kv")));
      if (!known) fail("{}: the state file's header has an unknown type", file);
      return *found;
    };
    h.fingerprint = std::stoull(json.at("model").get<std::string>(), nullptr, 16);
    h.position = number("position");
    h.real = dtype("real");
    h.kv = dtype("kv");
    h.layers = number("layers");
    h.sparse_blocks = number("sparse_blocks");
    h.channels = number("channels");
    h.chunk_size = number("chunk_size");
    h.bound = json.at("bound").get<std::string>();
    h.stored = numbers("stored");
    h.waiting = numbers("waiting");
    h.extra = json.at("extra").get<std::string>();
    return h;
  } catch (const nlohmann::json::exception&) {
    fail("{}: the state file's header is damaged", file);
  } catch (const std::logic_error&) {  // std::stoull
    fail("{}: the state file's header is damaged", file);
  }
}

/// The used part of one page: rows [0, used) of each of its 2 H blocks.
int64_t used_rows(int64_t length, int64_t chunk_size, int64_t page) {
  return std::min(chunk_size, length - page * chunk_size);
}

class Writer {
 public:
  explicit Writer(const Path& path) : file_(path) {}
  void write(std::span<const std::byte> bytes) {
    hash_.update(bytes);
    file_.write(bytes);
  }
  void write_number(uint64_t n) { write(std::as_bytes(std::span(&n, 1))); }
  void finish() {
    const uint64_t checksum = hash_.digest();
    file_.write(std::as_bytes(std::span(&checksum, 1)));
    file_.commit();
  }

 private:
  AtomicFile file_;
  Hash64 hash_;
};

/// Takes pieces off a checked payload.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& file) : rest_(bytes), file_(file) {}
  std::span<const std::byte> take(uint64_t bytes) {
    if (bytes > rest_.size()) fail("{}: the state file is shorter than its header says", file_);
    const auto piece = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return piece;
  }
  /// `elements` of type `from`, converted to the type of `to`.
  void take_as(DType from, View to) {
    const auto raw = take(bytes_of(from, to.elements()));
    Buffer aligned(from, to.shape());
    std::memcpy(aligned.view().data(), raw.data(), raw.size());
    convert(aligned, to);
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  const std::string& file_;
};

/// One page of a KV store in the host's memory: the rows of each head, and their scales if they are int8.
struct HostPage {
  DType dtype;
  int64_t heads, chunk_size;
  std::array<Buffer, 2> rows;    // keys, values [H, B, N]
  std::array<Buffer, 2> scales;  // [H, B] f32, i8 only
  Buffer sums;                   // [H, N] real

  HostPage(DType type, int64_t h, int64_t b, DType real)
      : dtype(type), heads(h), chunk_size(b), sums(real, {h, kHeadSize}) {
    for (Buffer& part : rows) part = Buffer(type, {h, b, kHeadSize});
    if (type != DType::i8) return;
    for (Buffer& part : scales) part = Buffer(DType::f32, {h, b});
  }
  /// f(bytes) for each piece of the first `used` rows, in the order of the file.
  template <typename Function>
  void for_each_piece(int64_t used, const Function& f) {
    for (size_t part = 0; part < 2; ++part) {
      for (int64_t h = 0; h < heads; ++h) {
        f(rows[part].view().rows(h, 1).reshaped({chunk_size, kHeadSize}).rows(0, used).raw());
        if (scales[part]) f(scales[part].view().rows(h, 1).reshaped({chunk_size}).rows(0, used).raw());
      }
    }
    f(sums.view().raw());
  }
  /// Keys (0) or values (1) of the first `used` tokens as rows [used, C] of type `real`.
  Buffer tokens(size_t part, int64_t used, DType real) const {
    Buffer widened(DType::f32, rows[part].view().shape()), out(DType::f32, {used, heads * kHeadSize}),
        result(real, {used, heads * kHeadSize});
    if (dtype == DType::i8) {
      for (int64_t i = 0; i < widened.view().elements(); ++i) {
        widened.as<float>()[i] =
            scales[part].as<float>()[i / kHeadSize] * static_cast<float>(rows[part].as<int8_t>()[i]);
      }
    } else {
      convert(rows[part], widened);
    }
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < used; ++t) {
        std::memcpy(out.as<float>() + (t * heads + h) * kHeadSize,
                    widened.as<float>() + (h * chunk_size + t) * kHeadSize, kHeadSize * sizeof(float));
      }
    }
    convert(out, result);
    return result;
  }
};

/// Between a page of the backend and the host's. Scales are empty unless the rows are int8.
template <typename Transfer>
void transfer_page(const KvChunks& kv, size_t chunk, HostPage& page, const Transfer& transfer) {
  transfer(kv.keys[chunk], page.rows[0]);
  transfer(kv.values[chunk], page.rows[1]);
  transfer(kv.key_sums[chunk], page.sums);
  if (kv.dtype != DType::i8) return;
  transfer(kv.key_scales[chunk], page.scales[0]);
  transfer(kv.value_scales[chunk], page.scales[1]);
}

void save_store(Writer& writer, const KvStore& store, Ops& ops) {
  const KvChunks kv = store.chunks();
  HostPage page(kv.dtype, store.heads(), kv.chunk_size, ops.real());
  for (size_t i = 0; i < kv.keys.size(); ++i) {
    transfer_page(kv, i, page, [&](void* device, Buffer& host) { ops.download(device, host.view().raw()); });
    page.for_each_piece(used_rows(kv.length, kv.chunk_size, static_cast<int64_t>(i)),
                        [&](std::span<std::byte> bytes) { writer.write(bytes); });
  }
  if (store.bound() == nullptr) return;
  const auto write = [&](ConstView device) {
    Buffer host(device.dtype(), device.shape());
    ops.download(device.data(), host.view().raw());
    writer.write(host.view().raw());
  };
  write(store.bound()->votes());
  write(store.bound()->waiting().rows(0, store.bound()->waiting_count()));
}

void load_store(Reader& reader, KvStore& store, const Header& h, size_t block, Ops& ops) {
  const int64_t stored = h.stored[block], heads = store.heads(), chunk_size = store.chunk_size();
  HostPage page(h.kv, heads, chunk_size, h.real);
  // Sums of parts are not saved: appending computes them.
  const bool same = h.kv == store.dtype() && h.real == ops.real() && store.chunks().part == 0;
  for (int64_t begin = 0; begin < stored; begin += chunk_size) {
    const int64_t used = std::min(chunk_size, stored - begin);
    page.for_each_piece(used, [&](std::span<std::byte> bytes) {
      const auto piece = reader.take(bytes.size());
      std::memcpy(bytes.data(), piece.data(), bytes.size());
    });
    store.extend(used);
    const KvChunks kv = store.chunks();
    if (same) {
      transfer_page(kv, static_cast<size_t>(begin / chunk_size), page,
                    [&](void* device, const Buffer& host) { ops.upload(host.view().raw(), device); });
      continue;
    }
    Buffer keys(ops.real(), {used, heads * kHeadSize}, ops.allocator()),
        values(ops.real(), {used, heads * kHeadSize}, ops.allocator());
    ops.upload(page.tokens(0, used, ops.real()).view().raw(), keys.view().data());
    ops.upload(page.tokens(1, used, ops.real()).view().raw(), values.view().data());
    ops.kv_append(keys, values, std::array<int64_t, 2>{0, used}, std::span(&kv, 1));
  }
  KvBound* bound = store.bound();
  if (bound == nullptr || h.bound.empty()) return;
  const auto read = [&](View device) {
    Buffer host(device.dtype(), device.shape());
    reader.take_as(h.real, host);
    ops.upload(host.view().raw(), device.data());
  };
  read(bound->votes());
  read(bound->waiting().rows(0, h.waiting[block]));
  bound->set_waiting_count(h.waiting[block], h.stored[block]);
}

/// Before room is made for what the header claims.
void check_stored(const Header& h, const State& state, uint64_t file_bytes, const std::string& file) {
  const KvOptions& options = state.kv_options();
  const std::string bound = options.policy == KvPolicy::bounded ? options.policy_text() : "";
  if (!h.bound.empty() && h.bound != bound) {
    fail("{}: saved with --kv {}, which dropped tokens; load it with the same", file, h.bound);
  }
  const auto blocks = static_cast<size_t>(h.sparse_blocks);
  if (h.stored.size() != blocks || h.waiting.size() != blocks) {
    fail("{}: the state file's header is damaged", file);
  }
  uint64_t claimed = 0;
  for (size_t j = 0; j < h.stored.size(); ++j) {
    const KvStore& store = state.kv(static_cast<int64_t>(j));
    if (h.stored[j] < 0 || h.stored[j] > h.position || h.waiting[j] < 0 || h.waiting[j] >= KvBound::kVoters ||
        (h.bound.empty() && (h.stored[j] != h.position || h.waiting[j] != 0))) {
      fail("{}: the state file's header is damaged", file);
    }
    claimed += 2 * bytes_of(h.kv, h.channels);
    if (claimed > 0 && static_cast<uint64_t>(h.stored[j]) > file_bytes / claimed) {
      fail("{}: the state file is shorter than its header says", file);
    }
    if (store.bound() != nullptr && h.stored[j] >= store.bound()->max()) {
      fail("{}: holds {} tokens, more than --kv {} keeps; load it with --kv full, host or disk", file,
           h.stored[j], options.policy_text());
    }
  }
}

}  // namespace

void save_state(const Path& path, const State& state, uint64_t fingerprint, std::string_view extra) {
  const ModelConfig& c = state.config();
  Ops& ops = state.ops();
  const DType kv_type = c.sparse_blocks > 0 ? state.kv(0).dtype() : ops.real();
  Header h{fingerprint, state.position(), ops.real(), kv_type, c.layers, c.sparse_blocks,
           c.channels,  c.chunk_size,     "",         {},      {},       std::string(extra)};
  if (state.kv_options().policy == KvPolicy::bounded) h.bound = state.kv_options().policy_text();
  for (int64_t j = 0; j < c.sparse_blocks; ++j) {
    const KvStore& store = state.kv(j);
    h.stored.push_back(store.length());
    h.waiting.push_back(store.bound() != nullptr ? store.bound()->waiting_count() : 0);
  }
  const std::string header = to_json(h).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  Writer writer(path);
  writer.write(std::as_bytes(std::span(kMagic)));
  writer.write_number(header.size());
  writer.write(std::as_bytes(std::span(header)));

  Buffer recurrent(ops.real(), state.recurrent().shape());
  ops.download(state.recurrent().data(), recurrent.view().raw());
  writer.write(recurrent.view().raw());
  for (int64_t j = 0; j < c.sparse_blocks; ++j) save_store(writer, state.kv(j), ops);
  writer.finish();
}

std::string load_state(const Path& path, State& state, uint64_t fingerprint) {
  const auto mapped = MappedFile::open(path);
  const std::span<const std::byte> bytes = mapped->bytes();
  const std::string file = path.string();
  if (bytes.size() < kFixedBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    fail("{} is not a state file of rwkvx (generate --state-out and chat's /save write them)", file);
  }
  uint64_t checksum = 0, header_bytes = 0;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 8, 8);
  if (hash64(bytes.first(bytes.size() - 8)) != checksum) {
    fail("{}: the checksum does not match; the file is damaged or cut short", file);
  }
  std::memcpy(&header_bytes, bytes.data() + 8, 8);
  if (!in_bounds(16, header_bytes, bytes.size() - 8)) fail("{}: the state file's header is damaged", file);
  const Header h = parse_header(
      {reinterpret_cast<const char*>(bytes.data()) + 16, static_cast<size_t>(header_bytes)}, file);

  const ModelConfig& c = state.config();
  if (h.layers != c.layers || h.sparse_blocks != c.sparse_blocks || h.channels != c.channels) {
    fail("{}: a state of another model: {}+{} blocks of {} channels, this model has {}+{} of {}", file,
         h.layers, h.sparse_blocks, h.channels, c.layers, c.sparse_blocks, c.channels);
  }
  if (h.chunk_size != c.chunk_size) {
    fail("{}: saved with chunks of {} tokens, the model runs with {} (--chunk-size)", file, h.chunk_size,
         c.chunk_size);
  }
  if (h.fingerprint != fingerprint) {
    fail(
        "{}: a state of another model (fingerprint {:016x}, this model's is {:016x}); load the model it was "
        "saved with",
        file, h.fingerprint, fingerprint);
  }
  if (h.position < 0) fail("{}: the state file's header is damaged", file);

  check_stored(h, state, bytes.size(), file);

  Ops& ops = state.ops();
  State loaded(c, state.kv_options(), ops);
  loaded.set_position(h.position);
  Reader reader(bytes.subspan(16 + header_bytes, bytes.size() - kFixedBytes - header_bytes), file);
  Buffer recurrent(ops.real(), loaded.recurrent().shape());
  reader.take_as(h.real, recurrent);
  ops.upload(recurrent.view().raw(), loaded.recurrent().data());
  for (int64_t j = 0; j < c.sparse_blocks; ++j)
    load_store(reader, loaded.kv(j), h, static_cast<size_t>(j), ops);
  if (!reader.empty()) fail("{}: the state file is longer than its header says", file);
  state = std::move(loaded);
  return h.extra;
}

}  // namespace rwkvx
