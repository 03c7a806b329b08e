#pragma once

// The answer for one strategy: what planner/ computes and everybody prints. Documented field by field, with its JSON
// form, in planner/README.md.

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "core/cluster.hpp"
#include "core/schedule.hpp"

namespace shardwright {

using CategoryBytes = std::array<Bytes, kCategoryCount>; // indexed by Category

/// Buffers of one class that are live at a moment.
struct LiveItem {
    std::string name;
    std::string formula;
    std::string source;
    Category category = Category::Temporaries;
    Place place = Place::Gpu;
    std::int64_t count = 0; // buffers of the class
    Bytes bytesEach;
    Bytes bytes() const { return bytesEach * count; }
};

/// A point of the memory curve: live GPU bytes by category after an operation, at its highest within it.
struct CurvePoint {
    OpId op = -1;
    Phase phase = Phase::Init;
    std::int32_t layer = -1;
    Bytes total;
    CategoryBytes byCategory{};
};

/// Memory outside the tensors: context, communicators, libraries.
struct Overhead {
    std::string name;
    Bytes bytes;
    Provenance tag = Provenance::Assumed;
    std::string source;
};

struct GpuMemory {
    Bytes capacity;      // what the driver gives to programs
    Bytes modelStates;   // parameters, gradients, master weights and optimizer states as partitioned, nothing else
    Bytes peakAllocated; // most live bytes of tensors over a step (torch max_memory_allocated)
    Bytes peakReserved;  // what the caching allocator holds then (torch max_memory_reserved)
    Bytes peakUsed;      // as nvidia-smi shows it: reserved + overheads
    Bytes held;          // live between two steps (torch memory_allocated)
    Bytes initPeak;      // most live bytes while the model is built and sharded
    Bytes heldBeforeFirstStep;  // live after the micro-steps, before lazily made optimizer states exist
    Bytes peakBeforeFirstStep;  // peak of the micro-steps before lazily made optimizer states exist
    CategoryBytes byCategory{}; // at the peak
    std::string peakMoment;     // "backward of block 31 of 32"
    std::vector<LiveItem> peakItems;
    std::vector<CurvePoint> curve;
    std::vector<Overhead> overheads;
    bool allocatorFlushes =
        false; // fits only because the allocator gives cached blocks back (cudaMalloc retries: slow)
};

struct HostMemory {
    Bytes pinnedPerRank; // with PyTorch's power-of-two rounding where it applies
    Bytes pageablePerRank;
    Bytes bytesPerRank; // pinned + pageable
    Bytes bytesPerNode;
    Bytes capacity;        // of a node
    Bytes initPeakPerNode; // while checkpoints are loaded
    std::vector<LiveItem> items;
};

struct NvmeUse {
    Bytes bytesPerNode;
    Bytes readBytesPerStep;  // per node
    Bytes writeBytesPerStep; // per node
    Bytes capacity;
};

struct CollectiveTraffic {
    OpKind op = OpKind::AllGather;
    std::string group;
    std::string payload;
    std::int64_t ranks = 1;
    std::int64_t nodes = 1;
    std::int64_t count = 0; // per optimizer step
    Bytes payloadBytes;     // sum of the whole tensors, as nccl-tests counts them
    Bytes sentBytesPerGpu;  // (n-1)/n of it, twice for all-reduce
};

/// Per optimizer step, accumulation included. Ψ counts one gather or one scatter of the whole model as 1 and an
/// all-reduce as 2 (ZeRO, arXiv 1910.02054 sec. 7), in elements of the uncompressed dtype.
struct Traffic {
    double psi = 0;            // as implemented
    double psiTextbook = 0;    // what papers print for the strategy
    double psiInterNode = 0;   // the part of psi that crosses nodes
    std::string psiDifference; // why the two differ; empty when they do not
    Bytes sentBytesPerGpu;
    Bytes intraNodeBytesPerGpu;
    Bytes interNodeBytesPerGpu;
    Bytes interNodeBytesPerNode;     // least that must leave a node: S (k-1)/k per gather over k nodes
    Bytes interNodeRingBytesPerNode; // what a flat NCCL ring puts on the node's NICs
    Bytes hostToDeviceBytes;         // per GPU over PCIe
    Bytes deviceToHostBytes;
    std::vector<CollectiveTraffic> collectives;
};

struct CheckpointSize {
    Bytes full16Bit;    // one consolidated file set, 16-bit weights
    Bytes fullFp32;     // weights in fp32
    Bytes shardedTotal; // weights, master weights and optimizer states of all ranks
    Bytes shardedPerRank;
    std::int64_t filesPerRank = 0;
    std::string layout; // which files the framework writes
};

/// Tight: fits, but with little room or only by the allocator's giving memory back. NotPossible: the framework forbids
/// the combination, so there are no figures.
enum class Verdict : std::uint8_t { Fits, Tight, DoesNotFit, NotPossible };
template <> struct EnumNames<Verdict> {
    static constexpr std::array<std::pair<Verdict, std::string_view>, 4> table{
        {{Verdict::Fits, "fits"},
         {Verdict::Tight, "tight"},
         {Verdict::DoesNotFit, "does-not-fit"},
         {Verdict::NotPossible, "not-possible"}}};
};

/// A change that makes a plan fit, in the user's own terms.
struct Suggestion {
    std::string text;               // "activation checkpointing: full"
    std::vector<std::string> steps; // each single change
    Bytes peakUsed;                 // afterwards
};

struct Note {
    std::string text;
    Provenance tag = Provenance::Assumed;
    std::string source;
};

/// Where the step's seconds go, on the rank that sets the pace; they add up to the step.
struct StepBreakdown {
    double compute = 0;              // forward, backward and loss
    double recompute = 0;            // forward again, for activation checkpointing
    double exposedCommunication = 0; // nothing computes and a collective is what is waited for
    double bubble = 0;               // pipeline stages waiting for each other
    double offload = 0;              // waiting for copies over PCIe and for NVMe
    double optimizer = 0;            // optimizer step, on the GPU or the host
    double other = 0; // copies within the GPU, quantisation, launch gaps, what collectives take from computing
    double total() const { return compute + recompute + exposedCommunication + bubble + offload + optimizer + other; }
};

/// One optimizer step, accumulation included, in steady state. Seconds come from simulating the schedule; rates count
/// the tokens and FLOPs of the model, not those of padding or recomputation.
struct StepTime {
    double seconds = 0;
    double tokensPerSecond = 0; // of the whole job
    double tokensPerSecondPerGpu = 0;
    double samplesPerSecond = 0; // sequences
    double tflopsPerGpu = 0;     // model FLOPs, recomputation left out, 1e12/s
    double mfu = 0;              // of the GPU's dense peak in the compute dtype (PaLM, arXiv 2204.02311 app. B)
    double hfu = 0;              // recomputation counted in
    StepBreakdown breakdown;
    double hiddenCommunicationSeconds = 0; // collectives that ran beside compute
    double lowSeconds = 0;                 // band learnt from the accuracy ledger's residuals
    double highSeconds = 0;
    std::vector<Note> assumptions;
};

/// What a step costs, where the cluster says prices and power.
struct StepCost {
    std::optional<double> dollarsPerStep;
    std::optional<double> dollarsPerBillionTokens;
    std::optional<double> joulesPerStep; // GPUs at their rated power times the GPU's busy share; hosts left out
};

struct ModelStates {
    Bytes parameters;
    Bytes masterParameters;
    Bytes gradients;
    Bytes optimizerStates;
    Bytes total() const { return parameters + masterParameters + gradients + optimizerStates; }
};

struct Plan {
    std::string strategy;
    std::string framework;
    Verdict verdict = Verdict::Fits;
    std::vector<std::string>
        reasons; // why not, or what makes it tight; also rules of the framework that forbid the combination
    std::vector<std::string> remarks; // what would surprise beside another plan, with its cause: ZeRO-2 above ZeRO-1
    double headroom = 0;              // (capacity - used) / capacity, negative when it does not fit
    ModelStates states;
    GpuMemory gpu;
    HostMemory host;
    NvmeUse nvme;
    Traffic traffic;
    CheckpointSize checkpoint;
    std::optional<StepTime> step; // absent when the combination is not possible
    StepCost cost;
    std::optional<double> networkBytesPerSecondPerNode; // that would hide what crosses nodes behind this plan's compute
    std::optional<double> checkpointSeconds;  // to write one sharded checkpoint, where the cluster names its storage
    std::optional<Suggestion> smallestChange; // only when it does not fit
    std::vector<Note> assumptions;
    std::vector<Note> excluded; // what the figures leave out

    bool fits() const { return verdict == Verdict::Fits || verdict == Verdict::Tight; }
};

/// Which of several plans to take.
struct Recommendation {
    std::string strategy;
    std::string reason; // one or two sentences
};

} // namespace shardwright
