#pragma once

// The declared space of a search: which values every axis may take. Written as space.json (planner/README.md).

#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/scenario.hpp"

namespace shardwright::search {

enum class Framework : std::uint8_t { Ddp, Fsdp1, Fsdp2, DeepSpeed, Megatron, Native };

/// What data sharding splits over the ranks; each includes those before it. ZeRO's stages 0 to 3.
enum class Sharding : std::uint8_t { None, Optimizer, Gradients, Parameters };

/// What lives outside the GPU. Optimizer: its states, in host memory. Cpu: optimizer and parameters in host memory.
/// Nvme: both on NVMe.
enum class Offload : std::uint8_t { None, Optimizer, Cpu, Nvme };

/// Parts of ZeRO++ (arXiv 2306.10209), as bits: quantised weights, hierarchical partition, quantised gradients.
enum class ZeroPlusPlus : std::uint8_t { None, Qwz, Hpz, QwzHpz, Qgz, QwzQgz, HpzQgz, All };
constexpr bool hasQwz(ZeroPlusPlus parts)
{
    return (static_cast<int>(parts) & 1) != 0;
}
constexpr bool hasHpz(ZeroPlusPlus parts)
{
    return (static_cast<int>(parts) & 2) != 0;
}
constexpr bool hasQgz(ZeroPlusPlus parts)
{
    return (static_cast<int>(parts) & 4) != 0;
}

/// Shard groups that are no number of ranks.
constexpr std::int64_t kWholeGroup = 0; // all data-parallel ranks
constexpr std::int64_t kNodeGroup = -1; // the GPUs of a node

/// What a search is after.
enum class Objective : std::uint8_t {
    TokensPerSecond,
    StepTime,
    GpuHours,
    Cost,
    FewestGpus,
    LargestModel,
    LongestSequence,
    LargestMicroBatch
};

/// Integer values of an axis, or the steps of a range that is searched by halving.
struct Range {
    std::int64_t from = 1;
    std::int64_t to = 1;
    std::int64_t step = 1;
    std::int64_t count() const { return to < from ? 0 : (to - from) / step + 1; }
    std::int64_t at(std::int64_t index) const { return from + index * step; }
};

struct Space {
    std::int64_t globalBatch = 1; // sequences per optimizer step, over all GPUs
    std::vector<std::int64_t> gpus;
    std::vector<Framework> frameworks;
    std::vector<Sharding> sharding;
    std::vector<Offload> offload;
    std::vector<ZeroPlusPlus> zeroPlusPlus;
    std::vector<std::int64_t> shardGroup; // ranks, kWholeGroup or kNodeGroup
    std::vector<std::int64_t> tensor;
    std::vector<bool> sequenceParallel;
    std::vector<std::int64_t> pipeline;
    std::vector<std::int64_t> virtualStages;
    std::vector<std::int64_t> context;
    std::vector<ContextExchange> exchange;
    std::vector<std::int64_t> expert;
    std::vector<std::int64_t> expertTensor; // 0 = the tensor-parallel ranks
    double expertImbalance = 1.0;           // of all candidates: tokens of the busiest expert rank over the mean
    std::vector<Checkpointing> checkpointing;
    std::vector<std::int64_t> checkpointEvery;
    std::vector<std::int64_t> checkpointSegment;
    std::vector<std::int64_t> microBatch;
    // Of the inverse questions alone.
    Range sequence;                  // tokens
    Range layers;                    // blocks of the model
    std::vector<std::int64_t> heads; // attention heads of the model, which its widths follow (model_scaling.hpp)
    Range microBatches;

    /// Whether any candidate splits the model itself.
    bool splitsModels() const;
};

/// The space that is searched when nothing is declared: every way that makes sense for the scenario's model and
/// machines. `globalBatch`: another one than the scenario's, 0 = the scenario's.
Space defaultSpace(const Scenario& scenario, Objective objective, std::int64_t globalBatch = 0);

/// Reads a declared space; axes that are absent or "auto" are as in defaultSpace. InputError with all problems.
Space spaceFromJson(const Json& json, const std::string& file, const Scenario& scenario, Objective objective);

/// Every axis as spaceFromJson reads it.
Json toJson(const Space& space);

} // namespace shardwright::search

namespace shardwright {

template <> struct EnumNames<search::Framework> {
    static constexpr std::array<std::pair<search::Framework, std::string_view>, 6> table{
        {{search::Framework::Ddp, "ddp"},
         {search::Framework::Fsdp1, "fsdp1"},
         {search::Framework::Fsdp2, "fsdp2"},
         {search::Framework::DeepSpeed, "deepspeed"},
         {search::Framework::Megatron, "megatron"},
         {search::Framework::Native, "native"}}};
};
template <> struct EnumNames<search::Sharding> {
    static constexpr std::array<std::pair<search::Sharding, std::string_view>, 4> table{
        {{search::Sharding::None, "none"},
         {search::Sharding::Optimizer, "optimizer"},
         {search::Sharding::Gradients, "gradients"},
         {search::Sharding::Parameters, "parameters"}}};
};
template <> struct EnumNames<search::Offload> {
    static constexpr std::array<std::pair<search::Offload, std::string_view>, 4> table{
        {{search::Offload::None, "none"},
         {search::Offload::Optimizer, "optimizer"},
         {search::Offload::Cpu, "cpu"},
         {search::Offload::Nvme, "nvme"}}};
};
template <> struct EnumNames<search::ZeroPlusPlus> {
    static constexpr std::array<std::pair<search::ZeroPlusPlus, std::string_view>, 8> table{
        {{search::ZeroPlusPlus::None, "none"},
         {search::ZeroPlusPlus::Qwz, "qwz"},
         {search::ZeroPlusPlus::Hpz, "hpz"},
         {search::ZeroPlusPlus::QwzHpz, "qwz+hpz"},
         {search::ZeroPlusPlus::Qgz, "qgz"},
         {search::ZeroPlusPlus::QwzQgz, "qwz+qgz"},
         {search::ZeroPlusPlus::HpzQgz, "hpz+qgz"},
         {search::ZeroPlusPlus::All, "qwz+hpz+qgz"}}};
};
template <> struct EnumNames<search::Objective> {
    static constexpr std::array<std::pair<search::Objective, std::string_view>, 8> table{
        {{search::Objective::TokensPerSecond, "tokens-per-second"},
         {search::Objective::StepTime, "step-time"},
         {search::Objective::GpuHours, "gpu-hours"},
         {search::Objective::Cost, "cost"},
         {search::Objective::FewestGpus, "fewest-gpus"},
         {search::Objective::LargestModel, "largest-model"},
         {search::Objective::LongestSequence, "longest-sequence"},
         {search::Objective::LargestMicroBatch, "largest-micro-batch"}}};
};

} // namespace shardwright
