#pragma once

// What is trained and how, apart from how it is sharded.

#include <optional>
#include <string>

#include "core/dtype.hpp"
#include "core/model.hpp"

namespace shardwright {

enum class Optimizer : std::uint8_t {
    AdamW,
    Adam,
    SgdMomentum,
    Sgd,
    Adafactor,
    Adam8bit,
    Lion,
    OneBitAdam,
    ZeroOneAdam,
    OneBitLamb
};
template <> struct EnumNames<Optimizer> {
    static constexpr std::array<std::pair<Optimizer, std::string_view>, 10> table{
        {{Optimizer::AdamW, "adamw"},
         {Optimizer::Adam, "adam"},
         {Optimizer::SgdMomentum, "sgd-momentum"},
         {Optimizer::Sgd, "sgd"},
         {Optimizer::Adafactor, "adafactor"},
         {Optimizer::Adam8bit, "adamw-8bit"},
         {Optimizer::Lion, "lion"},
         {Optimizer::OneBitAdam, "onebit-adam"},
         {Optimizer::ZeroOneAdam, "zero-one-adam"},
         {Optimizer::OneBitLamb, "onebit-lamb"}}};
};

/// None: everything autograd saves is kept. Full: each block keeps its input only and recomputes. Selective: what the
/// implementation profile means by it (torchtitan: every second matmul and the attention output are kept; Megatron:
/// only the attention core is recomputed). Partitioned: the kept inputs are split over the tensor-parallel group
/// (DeepSpeed partition_activations). Cpu: the kept inputs go to host memory (DeepSpeed cpu_checkpointing).
enum class Checkpointing : std::uint8_t { None, Selective, Full, Partitioned, Cpu };
template <> struct EnumNames<Checkpointing> {
    static constexpr std::array<std::pair<Checkpointing, std::string_view>, 5> table{
        {{Checkpointing::None, "none"},
         {Checkpointing::Selective, "selective"},
         {Checkpointing::Full, "full"},
         {Checkpointing::Partitioned, "partitioned"},
         {Checkpointing::Cpu, "cpu"}}};
};

/// MaskedSdpa: torch's scaled_dot_product_attention with the causal mask as a tensor, which its flash kernel does not
/// take (transformers 4.38 to 4.40).
enum class Attention : std::uint8_t { Flash, Sdpa, MaskedSdpa, Eager };
template <> struct EnumNames<Attention> {
    static constexpr std::array<std::pair<Attention, std::string_view>, 4> table{
        {{Attention::Flash, "flash"},
         {Attention::Sdpa, "sdpa"},
         {Attention::MaskedSdpa, "sdpa-masked"},
         {Attention::Eager, "eager"}}};
};

/// Whose modelling code trains the model: it decides which tensors a layer keeps for backward.
enum class Implementation : std::uint8_t { HuggingFace, Torchtitan, Torchtune, LlmFoundry, Megatron, Shardrun };
template <> struct EnumNames<Implementation> {
    static constexpr std::array<std::pair<Implementation, std::string_view>, 6> table{
        {{Implementation::HuggingFace, "hf"},
         {Implementation::Torchtitan, "torchtitan"},
         {Implementation::Torchtune, "torchtune"},
         {Implementation::LlmFoundry, "llm-foundry"},
         {Implementation::Megatron, "megatron"},
         {Implementation::Shardrun, "shardrun"}}};
};

/// How the loss over the vocabulary is computed. Default: as the implementation does it today. ShiftedCopy:
/// transformers before 4.46, which made logits fp32 and copied logits[..., :-1, :]. Compiled: torch.compile fuses the
/// casts. Fused: chunked or fused cross entropy that never holds fp32 logits of the whole batch.
enum class LossKind : std::uint8_t { Default, ShiftedCopy, Compiled, Fused };
template <> struct EnumNames<LossKind> {
    static constexpr std::array<std::pair<LossKind, std::string_view>, 4> table{
        {{LossKind::Default, "default"},
         {LossKind::ShiftedCopy, "shifted-copy"},
         {LossKind::Compiled, "compiled"},
         {LossKind::Fused, "fused"}}};
};

/// How float8 linear layers scale what they cast (torchao's recipes): a factor a tensor, or one a row of each operand.
enum class Float8Scaling : std::uint8_t { Tensorwise, Rowwise };
template <> struct EnumNames<Float8Scaling> {
    static constexpr std::array<std::pair<Float8Scaling, std::string_view>, 2> table{
        {{Float8Scaling::Tensorwise, "tensorwise"}, {Float8Scaling::Rowwise, "rowwise"}}};
};

/// What a user sets; what becomes of it is each framework's rule.
struct Precision {
    std::optional<DType> mixed =
        DType::Bf16;          // mixed precision: bf16 or fp16; nothing = "no" (compute in the load dtype)
    DType load = DType::Fp32; // dtype the weights are loaded in
    bool fp8 = false;         // float8 linear layers on top of bf16
    Float8Scaling fp8Scaling = Float8Scaling::Tensorwise;
};

struct Training {
    std::int64_t sequenceLength = 4096;    // tokens
    std::int64_t microBatch = 1;           // sequences per GPU and micro-step
    std::int64_t gradientAccumulation = 1; // micro-steps per optimizer step
    Precision precision;
    Optimizer optimizer = Optimizer::AdamW;
    Checkpointing checkpointing = Checkpointing::None;
    int checkpointEvery = 1;   // with Full: every n-th block is checkpointed, the others keep everything
    int checkpointSegment = 1; // with Full: so many blocks in a row are one checkpoint, whose first input is kept
    // Recomputation without reentrance ends once backward has what it needs (set_checkpoint_early_stop, torch 2.1 on).
    bool checkpointEarlyStop = true;
    Attention attention = Attention::Flash;
    Implementation implementation = Implementation::HuggingFace;
    LossKind loss = LossKind::Default;
    bool compile = false;   // torch.compile of each block: pointwise chains are fused, casts are not kept
    bool fusedNorm = false; // fused RMSNorm/LayerNorm kernels: input and statistics kept, no fp32 copy
    // The caller's own loop keeps outputs.logits alive until the next forward. transformers' Trainer does not.
    bool holdsLogits = false;
    bool fusedOptimizer = true; // torch.optim with fused=True; otherwise foreach, with a temporary of one moment's size
    bool expandableSegments = false; // PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
    bool launchBlocking = false;     // CUDA_LAUNCH_BLOCKING=1: the host waits for every kernel
    bool deterministic = false;      // torch.use_deterministic_algorithms, NVTE_ALLOW_NONDETERMINISTIC_ALGO=0
    int hostThreads = 0; // a rank's for an optimizer on the host (OMP_NUM_THREADS); 0 = its share of the node's cores
    std::optional<double> gradientClipping = 1.0;
    std::optional<Lora> lora;

    std::int64_t tokensPerMicroBatch() const { return checkedMultiply(sequenceLength, microBatch); }
};

} // namespace shardwright
