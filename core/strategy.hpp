#pragma once

// How a framework is told to shard: every option that changes memory, traffic or the schedule, under the framework's
// own names. What an option does is the framework's room's business (planner/frameworks/).

#include <optional>
#include <string>
#include <variant>

#include "core/dtype.hpp"

namespace shardwright {

enum class ShardingStrategy : std::uint8_t { FullShard, ShardGradOp, NoShard, HybridShard, HybridShardZero2 };
template <> struct EnumNames<ShardingStrategy> {
    static constexpr std::array<std::pair<ShardingStrategy, std::string_view>, 5> table{
        {{ShardingStrategy::FullShard, "FULL_SHARD"},
         {ShardingStrategy::ShardGradOp, "SHARD_GRAD_OP"},
         {ShardingStrategy::NoShard, "NO_SHARD"},
         {ShardingStrategy::HybridShard, "HYBRID_SHARD"},
         {ShardingStrategy::HybridShardZero2, "HYBRID_SHARD_ZERO2"}}};
};

enum class BackwardPrefetch : std::uint8_t { None, Pre, Post };
template <> struct EnumNames<BackwardPrefetch> {
    static constexpr std::array<std::pair<BackwardPrefetch, std::string_view>, 3> table{
        {{BackwardPrefetch::None, "NO_PREFETCH"},
         {BackwardPrefetch::Pre, "BACKWARD_PRE"},
         {BackwardPrefetch::Post, "BACKWARD_POST"}}};
};

enum class WrapPolicy : std::uint8_t { Transformer, Size, None };
template <> struct EnumNames<WrapPolicy> {
    static constexpr std::array<std::pair<WrapPolicy, std::string_view>, 3> table{
        {{WrapPolicy::Transformer, "TRANSFORMER_BASED_WRAP"},
         {WrapPolicy::Size, "SIZE_BASED_WRAP"},
         {WrapPolicy::None, "NO_WRAP"}}};
};

/// torch DistributedDataParallel.
struct DdpOptions {
    Bytes bucketCap = 25_MiB;          // bucket_cap_mb, torch default 25
    bool gradientAsBucketView = false; // torch default: gradients and reduction buckets are separate copies

    bool operator==(const DdpOptions&) const = default;
};

/// PyTorch FullyShardedDataParallel, the first.
struct Fsdp1Options {
    ShardingStrategy sharding = ShardingStrategy::FullShard;
    std::int64_t shardGroup = 0; // ranks per shard group of HYBRID strategies; 0 = GPUs per node
    bool offloadParams = false;  // CPUOffload: parameters, gradients and optimizer, all or nothing
    BackwardPrefetch backwardPrefetch = BackwardPrefetch::Pre;
    bool forwardPrefetch = false;
    bool limitAllGathers = true;
    WrapPolicy wrap = WrapPolicy::Transformer;
    std::int64_t minNumParams = 100000000; // of SIZE_BASED_WRAP; torch default 1e8
    bool useOrigParams = true;
    bool syncModuleStates = true;
    bool cpuRamEfficientLoading = true;
    std::optional<DType> paramDtype; // MixedPrecision(...); absent = the run's mixed precision
    std::optional<DType> reduceDtype;
    std::optional<DType> bufferDtype;
    bool noSync = true; // accumulate under no_sync(), as Accelerate does unless sync_each_batch
    bool upcastTrainable =
        true; // Accelerate: with mixed precision, trainable parameters are upcast to fp32 after wrapping

    bool operator==(const Fsdp1Options&) const = default;
};

/// PyTorch fully_shard.
struct Fsdp2Options {
    bool reshardAfterForward = true; // false = SHARD_GRAD_OP
    std::int64_t reshardGroup = 0;   // reshard_after_forward=int: reshard to this many ranks; 0 = not used
    std::int64_t replicate = 1;      // dp_replicate_size; > 1 = HSDP over replicate x (N / replicate);
                                     // 0 = one replica per node (shard group = the GPUs of a node)
    bool noShard = false;            // shard group of one rank: replication only
    bool offloadParams = false;      // CPUOffloadPolicy
    bool pinMemory = true;
    bool forwardPrefetch = false; // explicit set_modules_to_forward_prefetch
    WrapPolicy wrap = WrapPolicy::Transformer;
    std::int64_t minNumParams = 100000000;
    bool separateHeadUnit = true; // Accelerate 1.15, torchtitan since 2025: embedding alone, [final norm, head]
                                  // together; false: both in the root
    bool cpuRamEfficientLoading = true;
    std::optional<DType> paramDtype;
    std::optional<DType> reduceDtype;
    bool noSync = true;
    bool upcastTrainable = true;     // Accelerate upcasts before sharding
    bool keepLastBlock = false;      // the last block is not resharded after forward, as torchtitan does
    bool checkpointChildren = false; // Accelerate's activation checkpointing wraps the children of each wrapped layer

    bool operator==(const Fsdp2Options&) const = default;
};

enum class OffloadDevice : std::uint8_t { None, Cpu, Nvme };
template <> struct EnumNames<OffloadDevice> {
    static constexpr std::array<std::pair<OffloadDevice, std::string_view>, 3> table{
        {{OffloadDevice::None, "none"}, {OffloadDevice::Cpu, "cpu"}, {OffloadDevice::Nvme, "nvme"}}};
};

/// Asynchronous I/O of DeepSpeed's NVMe offload ("aio").
struct AioOptions {
    std::int64_t blockSize = 1048576;
    std::int64_t queueDepth = 8;
    std::int64_t threads = 1; // intra_op_parallelism
    bool singleSubmit = false;
    bool overlapEvents = true;

    bool operator==(const AioOptions&) const = default;
};

/// DeepSpeed ZeRO. Names and defaults: zero/config.py of DeepSpeed 0.19.6. Sizes are in ELEMENTS, as there.
struct DeepSpeedOptions {
    int stage = 3;
    OffloadDevice offloadOptimizer = OffloadDevice::None;
    OffloadDevice offloadParam = OffloadDevice::None;
    std::string nvmePath = "/local_nvme";      // offload_optimizer.nvme_path
    std::string paramNvmePath = "/local_nvme"; // offload_param.nvme_path
    double offloadRatio = 1.0;                 // offload_optimizer.ratio, stage 3
    bool pinMemory = true;                     // offload_optimizer.pin_memory
    bool paramPinMemory = true;                // offload_param.pin_memory
    bool pipelineRead = false;
    bool pipelineWrite = false;
    std::int64_t optimizerBufferCount = 4;
    std::int64_t paramBufferCount = 5;
    std::int64_t paramBufferSize = 100000000;
    std::int64_t maxInCpu = 1000000000;
    AioOptions aio;

    std::int64_t reduceBucketSize = 500000000;
    std::int64_t allgatherBucketSize = 500000000;
    std::optional<bool> overlapComm; // absent: true for stage 3, false otherwise
    bool contiguousGradients = true;
    bool reduceScatter = true;
    bool useMultiRankBucketAllreduce = true;
    bool roundRobinGradients = false;
    std::int64_t subGroupSize = 1000000000;
    std::int64_t prefetchBucketSize = 50000000;
    std::int64_t paramPersistenceThreshold = 100000;
    std::int64_t modelPersistenceThreshold = INT64_MAX;
    std::int64_t maxLiveParameters = 1000000000;
    std::int64_t maxReuseDistance = 1000000000;
    bool gather16bitWeightsOnModelSave = true;
    bool memoryEfficientLinear = true; // zero.Init replaces torch's linear, which would keep gathered weights

    bool quantizedWeights = false;     // qwZ
    bool quantizedGradients = false;   // qgZ
    std::int64_t hpzPartitionSize = 1; // hpZ: ranks of the secondary shard group
    std::int64_t micsShardSize = 0;    // MiCS: 0 = off
    bool micsHierarchicalGather = false;

    std::optional<DType> gradAccumDtype;     // data_types.grad_accum_dtype
    std::optional<DType> communicationDtype; // communication_data_type
    bool bf16MasterWeightsAndGrads = false;
    bool bf16OptimizerStates = false;
    bool zero3Init = true; // parameters are partitioned as they are built

    bool operator==(const DeepSpeedOptions&) const = default;
};

/// The plain textbook schedule that shardrun executes: per-layer units, no framework buffers.
struct NativeOptions {
    int stage = 3; // 0 replicate, 1 optimizer sharded, 2 and gradients, 3 and parameters
    bool prefetch = true;
    bool offloadOptimizer = false;

    bool operator==(const NativeOptions&) const = default;
};

/// Megatron-LM (megatron/core/distributed, megatron/core/optimizer). Which blocks recompute is the training's
/// activation checkpointing.
struct MegatronOptions {
    bool distributedOptimizer =
        true;                       // use_distributed_optimizer: optimizer states sharded over the data-parallel group
    bool overlapGradReduce = true;  // overlap_grad_reduce: buckets are reduced beside backward
    bool overlapParamGather = true; // overlap_param_gather: all-gathers beside the next forward
    bool fp32GradAccumulation = true; // accumulate_allreduce_grads_in_fp32: main_grad is fp32
    std::int64_t bucketSize =
        40000000;               // ddp_bucket_size in elements, at least; grows with the group as Megatron's does
    bool tpCommOverlap = false; // tp_comm_overlap: Transformer Engine's userbuffers
    // use_precision_aware_optimizer: Transformer Engine's FusedAdam keeps these dtypes, and of fp32 master weights over
    // bf16 parameters only what the parameters lack (store_param_remainders).
    bool precisionAwareOptimizer = false;
    DType mainGradsDtype = DType::Fp32; // main_grads_dtype
    DType expAvgDtype = DType::Fp32;    // exp_avg_dtype
    DType expAvgSqDtype = DType::Fp32;  // exp_avg_sq_dtype

    bool operator==(const MegatronOptions&) const = default;
};

enum class PipelineSchedule : std::uint8_t { GPipe, OneForwardOneBackward, Interleaved };
template <> struct EnumNames<PipelineSchedule> {
    static constexpr std::array<std::pair<PipelineSchedule, std::string_view>, 3> table{
        {{PipelineSchedule::GPipe, "gpipe"},
         {PipelineSchedule::OneForwardOneBackward, "1f1b"},
         {PipelineSchedule::Interleaved, "interleaved"}}};
};

/// Ring and all-gather bring keys and values to the queries; Ulysses (arXiv 2309.14509) gives each rank whole sequences
/// of some heads, by all-to-all.
enum class ContextExchange : std::uint8_t { Ring, AllGather, Ulysses };
template <> struct EnumNames<ContextExchange> {
    static constexpr std::array<std::pair<ContextExchange, std::string_view>, 3> table{
        {{ContextExchange::Ring, "ring"},
         {ContextExchange::AllGather, "all-gather"},
         {ContextExchange::Ulysses, "ulysses"}}};
};

/// How the model itself is split over GPUs, beside the data sharding of the framework. Ranks are laid out tensor
/// innermost, then context, then data, then pipeline, as Megatron-LM does by default ("tp-cp-ep-dp-pp").
struct Parallelism {
    std::int64_t tensor = 1;
    bool sequenceParallel = false; // norms and residual stream split along the sequence over the tensor group
    std::int64_t pipeline = 1;
    PipelineSchedule schedule = PipelineSchedule::OneForwardOneBackward;
    std::int64_t virtualStages = 1; // model chunks a pipeline rank holds; > 1 only when interleaved
    std::int64_t context = 1;
    ContextExchange exchange = ContextExchange::Ring;
    std::int64_t expert = 1;       // experts are spread over this many ranks of the data-parallel (and context) group
    std::int64_t expertTensor = 0; // ranks that share one expert's matrices; 0 = those of the tensor group
    double expertImbalance = 1.0;  // tokens of the busiest expert rank over the mean

    std::int64_t expertTensorRanks() const { return expertTensor == 0 ? tensor : expertTensor; }
    /// GPUs that hold one replica before data sharding.
    std::int64_t modelRanks() const { return tensor * pipeline * context; }
    bool none() const { return modelRanks() == 1 && expert == 1; }

    bool operator==(const Parallelism&) const = default;
};

using StrategyOptions =
    std::variant<DdpOptions, Fsdp1Options, Fsdp2Options, DeepSpeedOptions, NativeOptions, MegatronOptions>;

struct Strategy {
    std::string name; // "fsdp2-full-shard", or a name of the user's own
    StrategyOptions options;
    Parallelism parallelism = {};

    bool operator==(const Strategy&) const = default;
};

/// "ddp", "fsdp1", "fsdp2", "deepspeed", "native", "megatron".
std::string_view frameworkOf(const Strategy& strategy);

} // namespace shardwright
