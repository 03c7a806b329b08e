#pragma once

// What operations of a schedule do to the contents of buffers: what the executor carries out. The planner's readers do
// not look at it.

#include <cstdint>
#include <string_view>

#include "core/dtype.hpp"
#include "core/layout.hpp"

namespace shardwright {

using BufferId = std::int32_t;
using ContentId = std::int32_t;
using GroupId = std::int32_t;

/// What the elements of a buffer are. Parameters are the same quantity in every dtype: master copies too. Moments:
/// Adam's exp_avg of all elements of the layout, then exp_avg_sq of all; of SGD with momentum the one. Error: what
/// 1-bit compression left over (error feedback).
enum class Quantity : std::uint8_t { Parameters, Gradients, Moments, Error };
template <> struct EnumNames<Quantity> {
    static constexpr std::array<std::pair<Quantity, std::string_view>, 4> table{{{Quantity::Parameters, "parameters"},
                                                                                 {Quantity::Gradients, "gradients"},
                                                                                 {Quantity::Moments, "moments"},
                                                                                 {Quantity::Error, "error"}}};
};

/// How the elements are encoded. Blockwise: symmetric integers with one fp32 scale a block (ZeRO++, arXiv 2306.10209
/// sec. 4); the scales stand behind the integers. Sign: one bit an element, one fp32 scale (1-bit Adam). Bits: the
/// signs alone, whose scale is in a buffer of its own.
enum class Codec : std::uint8_t { None, Int8Blockwise, Int4Blockwise, Sign, Bits };
template <> struct EnumNames<Codec> {
    static constexpr std::array<std::pair<Codec, std::string_view>, 5> table{{{Codec::None, "none"},
                                                                              {Codec::Int8Blockwise, "int8"},
                                                                              {Codec::Int4Blockwise, "int4"},
                                                                              {Codec::Sign, "sign"},
                                                                              {Codec::Bits, "bits"}}};
};

/// What a buffer holds, besides the tensors of layers, whose shapes the kernels know.
struct Content {
    Quantity quantity = Quantity::Parameters;
    DType dtype = DType::Fp32; // of what is encoded
    Layout layout;
    GroupId group = -1; // whose ranks hold the parts: this rank's place in it is its part; -1: it is not cut
    Codec codec = Codec::None;
    std::int64_t block = 0; // elements that share a scale; 0 without blocks
    // Encoded: so many ranks' values of the same elements stand one after another, as an all-to-all leaves them. What
    // is read of them is their mean; they are written by an all-to-all alone.
    std::int64_t versions = 1;

    bool operator==(const Content&) const = default;
};

enum class Verb : std::uint8_t {
    Initialize, // writes take their first values: the initial weights; zeros for all else
    Move,       // what a read and a write both hold goes over and is cast; between buffers without content, the bytes.
                // Between places too: host, NVMe. Decodes and encodes where a side has a codec.
    Add,        // like Move, added to what the write holds
    AllGather,  // reads: own part; writes: all parts. Several pairs go one by one (a coalesced call). The part may hold
                // more tensors than the write, which may stand one after another (Whole). In place where read and
                // write are the same
    ReduceScatter, // reads: all parts; writes: own part of the MEAN over the group. In place where they are the same:
                   // what remains valid is the own part. With `content` there are no reads: in place in the writes,
                   // wherever its tensors lie in them, each rank keeps its part of the mean, the others' are void
    AllReduce,     // writes: the mean over the group, in place; of the tensors of `content` where it is given
    ReduceTo,      // writes: in place, the mean over the group of each element whose part of `content` the operation
                   // goes to (Op::firstPart), on the rank of that part; elsewhere what remains of those is void
    Broadcast,     // writes: from the group's first rank
    AllToAll, // reads, writes: the pieces of the reads, one a rank, are exchanged; a write holds as many versions as
              // the group has ranks, or what the read holds
    Clip,     // writes: gradients, scaled by min(1, limit / norm). The norm is of the reads, of the writes where there
              // are none, and sums over `group`, whose ranks hold parts
    Update,  // the optimizer steps: reads gradients; writes parameters and moments, matched by tensor. Of 1-bit Adam in
             // two halves: without parameters it is the first moment's, without gradients that of the parameters
    Compute, // runs `kernel`
    LoadBatch, // writes: tokens and labels of the next micro-batch, int64, tokens first
    Hold,      // writes: from here on they hold `content`; the data stay as they are (a bucket filled anew; one tensor
               // that no padding parts seen as its parts)
    Compress,  // writes: values, what earlier compressions left over of them, their signs, the scale: the left over is
               // added to the values, their code written, and what it does not say is left over for the next time.
               // Padding is values like others
    AverageSigns, // reads: signs of as many parts as ranks, their scales; writes: the mean of what they stand for
    ExpandSigns,  // reads: the same; writes: what they stand for, one part after another
};
template <> struct EnumNames<Verb> {
    static constexpr std::array<std::pair<Verb, std::string_view>, 17> table{{{Verb::Initialize, "initialize"},
                                                                              {Verb::Move, "move"},
                                                                              {Verb::Add, "add"},
                                                                              {Verb::AllGather, "all-gather"},
                                                                              {Verb::ReduceScatter, "reduce-scatter"},
                                                                              {Verb::AllReduce, "all-reduce"},
                                                                              {Verb::ReduceTo, "reduce-to"},
                                                                              {Verb::Broadcast, "broadcast"},
                                                                              {Verb::AllToAll, "all-to-all"},
                                                                              {Verb::Clip, "clip"},
                                                                              {Verb::Update, "update"},
                                                                              {Verb::Compute, "compute"},
                                                                              {Verb::LoadBatch, "load-batch"},
                                                                              {Verb::Hold, "hold"},
                                                                              {Verb::Compress, "compress"},
                                                                              {Verb::AverageSigns, "average-signs"},
                                                                              {Verb::ExpandSigns, "expand-signs"}}};
};

/// What layers compute, in the words of Training::implementation "shardrun". Operands: reads -> writes, in this order.
/// T tokens, H hidden, I ffn, V vocabulary, a query heads, k key heads, d head size, c the compute dtype; statistics:
/// fp32. A kernel takes its module's weights from the newest whole copy in the compute dtype; their gradients go to
/// Action::gradient, those it does not hold whole to the one gradient buffer that does and that nothing has written
/// yet.
enum class Kernel : std::uint8_t {
    None,
    Embedding,              // tokens -> (T, H)
    EmbeddingAdd,           // (T, H) of the tokens -> (T, H) with the learned positions added
    Norm,                   // x -> y, statistics: RMSNorm (T) or LayerNorm (2, T)
    Linear,                 // x -> y
    Rotate,                 // q (T, a, d), k (T, k, d) -> in place
    Attention,              // q, k, v -> context (T, a, d), logsumexp (T, a) fp32; causal within a sequence, within
                            // the block's window, probabilities dropped as the model says
    SplitAttention,         // qkv (T, 3 H) as GPT-2 has it -> context, logsumexp
    SwiGlu,                 // gate, up -> silu(gate) up
    Gelu,                   // x -> gelu(x), the tanh form
    Add,                    // x, y -> x + y
    CrossEntropy,           // logits, tokens -> row logsumexp (T) fp32; the loss is recorded
    EmbeddingBackward,      // gradient, tokens -> (weights only)
    EmbeddingAddBackward,   // gradient -> (weights only)
    NormBackward,           // gradient, x, statistics -> gradient of x
    LinearBackward,         // gradient, x -> gradient of x
    RotateBackward,         // gradients of q and k -> in place
    AttentionBackward,      // gradient, q, k, v, context, logsumexp -> gradients of q, k, v
    SplitAttentionBackward, // gradient, qkv, context, logsumexp -> gradient of qkv
    SwiGluBackward,         // gradient, gate, up -> gradients of gate, up
    GeluBackward,           // gradient, x -> gradient of x
    CrossEntropyBackward,   // logits, row logsumexp, tokens -> gradient of the mean loss, in place of the logits
    // Dropout. Which elements go is drawn anew in backward: no mask is kept.
    Dropout,            // embeddings, or what attention adds -> in place
    MlpDropout,         // what the MLP adds -> in place
    DropoutBackward,    // gradient -> gradient of what it dropped from
    MlpDropoutBackward, // likewise
};
constexpr std::size_t kKernelCount = 26;
template <> struct EnumNames<Kernel> {
    static constexpr std::array<std::pair<Kernel, std::string_view>, kKernelCount> table{
        {{Kernel::None, "none"},
         {Kernel::Embedding, "embedding"},
         {Kernel::EmbeddingAdd, "embedding-add"},
         {Kernel::Norm, "norm"},
         {Kernel::Linear, "linear"},
         {Kernel::Rotate, "rotate"},
         {Kernel::Attention, "attention"},
         {Kernel::SplitAttention, "split-attention"},
         {Kernel::SwiGlu, "swiglu"},
         {Kernel::Gelu, "gelu"},
         {Kernel::Add, "add"},
         {Kernel::CrossEntropy, "cross-entropy"},
         {Kernel::EmbeddingBackward, "embedding-backward"},
         {Kernel::EmbeddingAddBackward, "embedding-add-backward"},
         {Kernel::NormBackward, "norm-backward"},
         {Kernel::LinearBackward, "linear-backward"},
         {Kernel::RotateBackward, "rotate-backward"},
         {Kernel::AttentionBackward, "attention-backward"},
         {Kernel::SplitAttentionBackward, "split-attention-backward"},
         {Kernel::SwiGluBackward, "swiglu-backward"},
         {Kernel::GeluBackward, "gelu-backward"},
         {Kernel::CrossEntropyBackward, "cross-entropy-backward"},
         {Kernel::Dropout, "dropout"},
         {Kernel::MlpDropout, "mlp-dropout"},
         {Kernel::DropoutBackward, "dropout-backward"},
         {Kernel::MlpDropoutBackward, "mlp-dropout-backward"}}};
};

/// One thing that an operation does. Its operands stand in Schedule::operands, reads before writes.
struct Action {
    Verb verb = Verb::Move;
    Kernel kernel = Kernel::None;
    std::uint16_t reads = 0;
    std::uint16_t writes = 0;
    std::uint32_t firstOperand = 0;
    std::uint32_t eventsBefore = 0; // of the op's events, those that come before it
    std::int32_t layer = -1;        // of a kernel: position in Model::layers
    std::int32_t module = -1;       // of a kernel: its leaf module in the layer, -1 = without parameters
    BufferId gradient = -1;         // of a kernel: where its weights' gradients are written (not added)
    GroupId group = -1;             // of collectives and Clip
    ContentId content = -1;         // of ReduceTo and ReduceScatter: whose parts say who owns an element; of Hold; of
                                    // AllReduce
};

} // namespace shardwright
