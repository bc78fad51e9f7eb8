#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>

#include "base/file.h"
#include "model/longce.h"
#include "ops/ops.h"
#include "training/schedule.h"

namespace rwkvx {

/// Everything that decides a training run. for_each_setting() is the only list of the settings: flags, help,
/// the configuration file and the copy saved with the run follow from it. 0 or "" often means: by the stage.
struct TrainConfig {
  // The model
  std::string load;  // a model to start from; else a new one of these sizes
  int64_t layers = 6, channels = 256, sparse_blocks = 0, vocab_size = 256, ffn = 0;
  std::string sparse_after;
  int64_t chunk_size = 0, chunk_top_k = 0;
  double embedding_init = 1e-4;
  std::string stage = "full";
  // The data
  std::string data, chat, mixture, held_out, vocab;
  std::string order = "shuffled";
  bool document_resets = false;
  std::string curriculum;
  int64_t context = 0, batch = 8, accumulate = 1, steps = 1000;
  int64_t seed = 0;
  // The optimizer
  double lr = 0, lr_final = -1;
  int64_t warmup = 10;
  std::string schedule = "cosine";
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-18, weight_decay = 1e-3, clip = 1;
  // The loss
  double l2wrap = 1e-4;
  std::string longce = "";
  double gate_loss = 0;
  double pointing_loss = 0;
  int64_t gate_rows = 512;
  std::string gate_by = "rows";
  // How it is computed and recorded
  std::string precision = "bf16", device = "cpu";
  int64_t threads = 0;
  std::string recompute = "auto";
  double activation_gb = 4;
  int64_t log_every = 1, eval_every = 100, eval_windows = 16, save_every = 500, keep = 2;

  template <typename Self, typename Visit>
  static void for_each_setting(Self& c, Visit&& visit);
};

/// `base` with the settings of `over` whose names `chosen` picks.
TrainConfig overridden(TrainConfig base, const TrainConfig& over,
                       const std::function<bool(const char* name)>& chosen);

/// Of "off" (nothing), "paper" (4096/1024/5), "rwkvx" (4000/4000/10) or "WINDOW/STRIDE/GAMMA".
std::optional<LongCe> parse_longce(const std::string& text);

/// Fills in what follows from the stage and checks the rest. Errors: UsageError that names the flag.
TrainConfig resolved(TrainConfig config);
Schedule schedule_of(const TrainConfig& config);

/// As JSON, one line for each setting.
std::string to_json(const TrainConfig& config);
/// Settings that the text does not name stay as they are. Errors name the file and the setting: not JSON, an
/// unknown name, a value of another kind.
void read_json(const std::string& text, const Path& file, TrainConfig& config);

// ---------------------------------------------------------------------------------------------------------------------

/// Calls visit(name, member, group, help). Names are flags without "--", with '-' between the words.
template <typename Self, typename Visit>
void TrainConfig::for_each_setting(Self& c, Visit&& visit) {
  const char* group = "Model";
  visit("load", c.load, group, "Model to start from (.pth, .safetensors, .gguf); else a new one is made");
  visit("layers", c.layers, group, "RWKV-7 blocks of a new model");
  visit("channels", c.channels, group, "Channels of a new model, a multiple of 64");
  visit("sparse-blocks", c.sparse_blocks, group, "Sparse attention blocks of a new model");
  visit("sparse-after", c.sparse_after, group,
        "Where they are: RWKV-7 blocks before each, such as 2,4; default: spread evenly");
  visit("vocab-size", c.vocab_size, group, "Tokens of a new model: 256 for bytes, 65536 for World");
  visit("ffn", c.ffn, group, "Channels inside the channel mix of a new model; 0: 4 x channels");
  visit("chunk-size", c.chunk_size, group, "Tokens of an attention chunk; 0: as recorded, or 2048");
  visit("chunk-top-k", c.chunk_top_k, group, "Chunks a query sees, its own included; 0: as recorded, or 3");
  visit("embedding-init", c.embedding_init, group,
        "Largest initial embedding of a new model; RWKV-LM: 1e-4. See docs/training.md");
  visit("stage", c.stage, group,
        "full: everything trains; align: only the sparse blocks; long: everything, on long contexts");
  group = "Data";
  visit("data", c.data, group, "Token file to train on (NAME of NAME.bin and NAME.idx)");
  visit("chat", c.chat, group, "Or conversations to fine-tune on (.jsonl); only answers count");
  visit("mixture", c.mixture, group,
        "Or a file that says what to mix (.json, see docs/formats.md); its text comes from --data");
  visit("held-out", c.held_out, group, "Token file (with --chat: conversations) that is only tested on");
  visit("vocab", c.vocab, group, "World vocabulary for --chat and --mixture, or 'byte'");
  visit("order", c.order, group, "Of the windows: shuffled, magic (RWKV-LM's) or sequential");
  visit("document-resets", c.document_resets, group, "Reset the WKV states where a document begins");
  visit("context", c.context, group, "Tokens of each sequence; 0: 1024, or 65536 in the long stage");
  visit("curriculum", c.curriculum, group,
        "Contexts by steps, CONTEXT:STEPS,...,CONTEXT such as 256:120,512:350,1024; tokens of a step stay");
  visit("batch", c.batch, group, "Sequences computed at a time");
  visit("accumulate", c.accumulate, group, "Batches that make one step");
  visit("steps", c.steps, group, "Updates of the weights");
  visit("seed", c.seed, group, "Of the order of the data and of a new model's weights");
  group = "Optimizer";
  visit("lr", c.lr, group, "Peak learning rate; 0: 6e-4, or 1e-4 (align) and 1e-5 (long)");
  visit("lr-final", c.lr_final, group, "Learning rate of the last step; negative: a tenth of --lr");
  visit("warmup", c.warmup, group, "Steps until the peak");
  visit("schedule", c.schedule, group, "cosine, linear or constant");
  visit("beta1", c.beta1, group, "AdamW");
  visit("beta2", c.beta2, group, "AdamW");
  visit("eps", c.eps, group, "AdamW");
  visit("weight-decay", c.weight_decay, group, "AdamW; of the large matrices only");
  visit("clip", c.clip, group, "Largest norm of the gradient; 0: no limit");
  group = "Loss";
  visit("l2wrap", c.l2wrap, group, "Factor of L2Wrap, which keeps logits small; 0: off");
  visit("longce", c.longce, group,
        "LongCE: off, paper (4096/1024/5), rwkvx (4000/4000/10) or WINDOW/STRIDE/GAMMA; default: off, and "
        "paper in the long stage");
  visit("gate-loss", c.gate_loss, group, "Factor of the selection loss, which teaches the gate; 0: off");
  visit("pointing-loss", c.pointing_loss, group,
        "Factor of the pointing loss, which teaches attention and gate where the answers of a --mixture were "
        "said before; 0: off");
  visit("gate-rows", c.gate_rows, group,
        "Query positions of a batch that the selection and the pointing loss sample");
  visit("gate-by", c.gate_by, group,
        "How it samples them: rows, all alike, or weights, as often as their losses count");
  group = "Run";
  visit("precision", c.precision, group, "Of matrix products: f32 or bf16");
  visit("device", c.device, group, kDeviceHelp);
  visit("threads", c.threads, group, "0 for one on each core");
  visit(
      "recompute", c.recompute, group,
      "Compute blocks again in the backward pass: on, off, or auto: what does not fit into --activation-gb");
  visit("activation-gb", c.activation_gb, group, "Memory for what blocks keep for the backward pass");
  visit("log-every", c.log_every, group, "Steps between lines of metrics.jsonl");
  visit("eval-every", c.eval_every, group, "Steps between held-out losses");
  visit("eval-windows", c.eval_windows, group, "Samples of a held-out loss, and of held-out questions");
  visit("save-every", c.save_every, group, "Steps between checkpoints");
  visit("keep", c.keep, group, "Checkpoints that stay");
}

}  // namespace rwkvx
