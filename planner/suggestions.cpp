#include "planner/suggestions.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "planner/frameworks/rules.hpp"
#include "planner/plan_builder.hpp"

namespace shardwright {

namespace {

// How much a change slows a step, as a share of compute: the order to try pairs of changes in, and single ones before
// their steps are simulated. Full recomputation repeats the forward pass, a third of the work (arXiv 2205.05198 sec.
// 5); the rest are rules of thumb.
constexpr double kFree = 0.0;
constexpr double kSlightly = 0.02;
constexpr double kSelectiveRecomputation = 0.05;
constexpr double kSmallerMicroBatch = 0.06;
constexpr double kMoreCommunication = 0.1;
constexpr double kFullRecomputation = 0.33;
constexpr double kOptimizerOnHost = 0.5;
constexpr double kEverythingOnHost = 0.8;
constexpr double kNvme = 3.0;

Fsdp2Options fsdp2(bool reshard, bool offload)
{
    Fsdp2Options options;
    options.reshardAfterForward = reshard;
    options.offloadParams = offload;
    return options;
}

class Changes {
public:
    explicit Changes(const PlanInput& input) : m_input(input) {}

    std::vector<Change> list()
    {
        forTraining();
        std::visit([this](const auto& options) { forFramework(options); }, m_input.strategy.options);
        std::stable_sort(m_changes.begin(), m_changes.end(),
                         [](const Change& a, const Change& b) { return a.slowdown < b.slowdown; });
        return std::move(m_changes);
    }

private:
    template <typename Edit> void training(std::string text, double slowdown, Edit edit)
    {
        Change change{std::move(text), slowdown, m_input.training, m_input.strategy};
        edit(change.training);
        m_changes.push_back(std::move(change));
    }
    template <typename Options, typename Edit>
    void strategy(std::string text, double slowdown, const Options& options, Edit edit)
    {
        Options edited = options;
        edit(edited);
        m_changes.push_back({std::move(text), slowdown, m_input.training, {m_input.strategy.name, edited}});
    }

    void forTraining()
    {
        const Training& now = m_input.training;
        if (now.attention == Attention::Eager || now.attention == Attention::MaskedSdpa)
            training("attention: flash", kFree, [](Training& t) { t.attention = Attention::Flash; });
        if (now.loss == LossKind::Default || now.loss == LossKind::ShiftedCopy)
            training("fused cross entropy (no fp32 logits of the whole batch)", kFree,
                     [](Training& t) { t.loss = LossKind::Fused; });
        if (now.checkpointing == Checkpointing::None && now.implementation == Implementation::Torchtitan)
            training("activation checkpointing: selective", kSelectiveRecomputation,
                     [](Training& t) { t.checkpointing = Checkpointing::Selective; });
        if (now.checkpointing == Checkpointing::None || now.checkpointing == Checkpointing::Selective ||
            now.checkpointEvery > 1)
            training("activation checkpointing: full", kFullRecomputation, [](Training& t) {
                t.checkpointing = Checkpointing::Full;
                t.checkpointEvery = 1;
            });
        for (std::int64_t smaller = now.microBatch / 2, factor = 2; smaller >= 1; smaller /= 2, factor *= 2) {
            if (now.microBatch % factor != 0)
                break;
            training(
                fmt::format("micro-batch {} with gradient accumulation {}", smaller, now.gradientAccumulation * factor),
                kSmallerMicroBatch * static_cast<double>(factor) / 2, [&](Training& t) {
                    t.microBatch = smaller;
                    t.gradientAccumulation = now.gradientAccumulation * factor;
                });
        }
    }

    void forFramework(const DdpOptions& options)
    {
        if (m_input.ranks() > 1) {
            m_changes.push_back({"FSDP2 SHARD_GRAD_OP instead of DDP",
                                 kSlightly,
                                 m_input.training,
                                 {m_input.strategy.name, fsdp2(false, false)}});
            m_changes.push_back({"FSDP2 FULL_SHARD instead of DDP",
                                 kMoreCommunication,
                                 m_input.training,
                                 {m_input.strategy.name, Fsdp2Options{}}});
        }
        if (!options.gradientAsBucketView)
            strategy("gradient_as_bucket_view: true", kFree, options,
                     [](DdpOptions& o) { o.gradientAsBucketView = true; });
        m_changes.push_back({"FSDP2 FULL_SHARD with CPU offload instead of DDP",
                             kEverythingOnHost,
                             m_input.training,
                             {m_input.strategy.name, fsdp2(true, true)}});
    }

    void forFramework(const Fsdp1Options& options)
    {
        if (m_input.training.lora && options.useOrigParams)
            strategy("fsdp_use_orig_params: false with PEFT's fsdp_auto_wrap_policy", kFree, options,
                     [](Fsdp1Options& o) { o.useOrigParams = false; });
        if (options.sharding != ShardingStrategy::FullShard)
            strategy("fsdp_sharding_strategy: FULL_SHARD", kMoreCommunication, options,
                     [](Fsdp1Options& o) { o.sharding = ShardingStrategy::FullShard; });
        if (options.wrap != WrapPolicy::Transformer)
            strategy("fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP", kFree, options,
                     [](Fsdp1Options& o) { o.wrap = WrapPolicy::Transformer; });
        if (options.backwardPrefetch == BackwardPrefetch::Pre)
            strategy("fsdp_backward_prefetch: BACKWARD_POST", kSlightly, options,
                     [](Fsdp1Options& o) { o.backwardPrefetch = BackwardPrefetch::Post; });
        if (!options.limitAllGathers)
            strategy("limit_all_gathers: true", kFree, options, [](Fsdp1Options& o) { o.limitAllGathers = true; });
        if (options.noSync && m_input.training.gradientAccumulation > 1 && !options.offloadParams)
            strategy("reduce gradients in every micro-step (sync_each_batch)", kMoreCommunication, options,
                     [](Fsdp1Options& o) { o.noSync = false; });
        if (!options.offloadParams)
            strategy("fsdp_offload_params: true", kEverythingOnHost, options,
                     [](Fsdp1Options& o) { o.offloadParams = true; });
    }

    void forFramework(const Fsdp2Options& options)
    {
        if (!options.reshardAfterForward)
            strategy("fsdp_reshard_after_forward: true", kMoreCommunication, options,
                     [](Fsdp2Options& o) { o.reshardAfterForward = true; });
        if (options.replicate != 1 || options.noShard)
            strategy("shard over all ranks (dp_replicate_size: 1)", kMoreCommunication, options, [](Fsdp2Options& o) {
                o.replicate = 1;
                o.noShard = false;
            });
        if (options.wrap != WrapPolicy::Transformer)
            strategy("fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP", kFree, options,
                     [](Fsdp2Options& o) { o.wrap = WrapPolicy::Transformer; });
        if (options.noSync && m_input.training.gradientAccumulation > 1)
            strategy("reduce gradients in every micro-step (sync_each_batch)", kMoreCommunication, options,
                     [](Fsdp2Options& o) { o.noSync = false; });
        if (!options.offloadParams)
            strategy("fsdp_offload_params: true", kEverythingOnHost, options,
                     [](Fsdp2Options& o) { o.offloadParams = true; });
    }

    void forFramework(const DeepSpeedOptions& options)
    {
        constexpr std::int64_t kSmallBucket = 50000000;
        if (options.reduceBucketSize > kSmallBucket)
            strategy(fmt::format("reduce_bucket_size: {}", kSmallBucket), kSlightly, options,
                     [](DeepSpeedOptions& o) { o.reduceBucketSize = kSmallBucket; });
        if (options.stage < 3 && options.offloadOptimizer == OffloadDevice::None)
            for (int stage = options.stage + 1; stage <= 3; ++stage)
                strategy(fmt::format("zero_optimization.stage: {}", stage), stage == 3 ? kMoreCommunication : kSlightly,
                         options, [stage](DeepSpeedOptions& o) { o.stage = stage; });
        if (options.stage == 3 && options.maxReuseDistance > 0)
            strategy("stage3_max_reuse_distance: 0", kSlightly, options,
                     [](DeepSpeedOptions& o) { o.maxReuseDistance = 0; });
        if (options.micsShardSize > 0)
            strategy("ZeRO-3 over all ranks instead of MiCS", kMoreCommunication, options,
                     [](DeepSpeedOptions& o) { o.micsShardSize = 0; });
        if (options.hpzPartitionSize > 1)
            strategy("zero_hpz_partition_size: 1", kMoreCommunication, options,
                     [](DeepSpeedOptions& o) { o.hpzPartitionSize = 1; });
        if (options.offloadOptimizer == OffloadDevice::None && options.micsShardSize == 0)
            strategy(options.stage == 0 ? "ZeRO-2 with offload_optimizer.device: cpu" : "offload_optimizer.device: cpu",
                     kOptimizerOnHost, options, [](DeepSpeedOptions& o) {
                         o.stage = std::max(o.stage, 2);
                         o.offloadOptimizer = OffloadDevice::Cpu;
                     });
        if (options.micsShardSize == 0 && (options.stage < 3 || options.offloadParam == OffloadDevice::None))
            strategy("ZeRO-3 with offload_optimizer and offload_param on the CPU", kEverythingOnHost, options,
                     [](DeepSpeedOptions& o) {
                         o.stage = 3;
                         o.offloadOptimizer = OffloadDevice::Cpu;
                         o.offloadParam = OffloadDevice::Cpu;
                     });
        if (m_input.cluster.nvmeCapacity.value > 0 && options.offloadOptimizer != OffloadDevice::Nvme &&
            options.micsShardSize == 0)
            strategy("ZeRO-3 with offload_optimizer and offload_param on NVMe", kNvme, options,
                     [](DeepSpeedOptions& o) {
                         o.stage = 3;
                         o.offloadOptimizer = OffloadDevice::Nvme;
                         o.offloadParam = OffloadDevice::Nvme;
                     });
    }

    void forFramework(const NativeOptions& options)
    {
        for (int stage = options.stage + 1; stage <= 3; ++stage)
            strategy(fmt::format("native stage {}", stage), stage == 3 ? kMoreCommunication : kSlightly, options,
                     [stage](NativeOptions& o) { o.stage = stage; });
        if (!options.offloadOptimizer)
            strategy("optimizer on the host", kOptimizerOnHost, options,
                     [](NativeOptions& o) { o.offloadOptimizer = true; });
    }

    void forFramework(const MegatronOptions& options)
    {
        if (!options.distributedOptimizer)
            strategy("the distributed optimizer", kSlightly, options,
                     [](MegatronOptions& o) { o.distributedOptimizer = true; });
    }

    const PlanInput& m_input;
    std::vector<Change> m_changes;
};

constexpr PlanDetail kMemoryOnly{.curve = false, .allocator = false, .time = false, .suggest = false};

/// Whether it may fit: without the allocator, which costs most and only adds memory.
bool mayFit(const PlanInput& input)
{
    return buildPlan(input, kMemoryOnly).fits();
}

/// The plan of an input when it fits.
std::optional<Plan> planIfFits(const PlanInput& input)
{
    if (!mayFit(input))
        return std::nullopt;
    PlanDetail detail = kMemoryOnly;
    detail.allocator = true;
    Plan plan = buildPlan(input, detail);
    if (plan.verdict != Verdict::Fits)
        return std::nullopt;
    return plan;
}

/// Seconds of a step for every token of it, so that smaller micro-batches compare.
double secondsPerToken(const PlanInput& input)
{
    PlanDetail detail = kMemoryOnly;
    detail.time = true;
    const Plan plan = buildPlan(input, detail);
    return plan.step && plan.step->tokensPerSecond > 0 ? 1 / plan.step->tokensPerSecond
                                                       : std::numeric_limits<double>::infinity();
}

/// The single change after which the input fits and loses least speed; of changes as fast the first.
std::optional<Suggestion> fastestSingle(const PlanInput& input, const std::vector<Change>& singles)
{
    std::vector<std::pair<double, const Change*>> candidates;
    for (const Change& change : singles)
        if (const PlanInput changed{input.model, input.cluster, change.training, change.strategy}; mayFit(changed))
            candidates.emplace_back(secondsPerToken(changed), &change);
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [seconds, change] : candidates)
        if (const auto plan = planIfFits({input.model, input.cluster, change->training, change->strategy}))
            return Suggestion{change->text, {change->text}, plan->gpu.peakUsed};
    return std::nullopt;
}

} // namespace

std::vector<Change> possibleChanges(const PlanInput& input)
{
    return Changes(input).list();
}

std::optional<Suggestion> smallestChangeThatFits(const PlanInput& input)
{
    const std::vector<Change> singles = possibleChanges(input);
    if (auto single = fastestSingle(input, singles))
        return single;
    struct Pair {
        const Change* first;
        Change second;
        double slowdown;
    };
    std::vector<Pair> pairs;
    for (const Change& first : singles) {
        const PlanInput changed{input.model, input.cluster, first.training, first.strategy};
        for (Change& second : Changes(changed).list())
            if (second.text != first.text)
                pairs.push_back({&first, second, first.slowdown + second.slowdown});
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.slowdown < b.slowdown; });
    for (const Pair& pair : pairs) {
        const PlanInput changed{input.model, input.cluster, pair.second.training, pair.second.strategy};
        if (const auto plan = planIfFits(changed))
            return Suggestion{pair.first->text + ", and " + pair.second.text,
                              {pair.first->text, pair.second.text},
                              plan->gpu.peakUsed};
    }
    return std::nullopt;
}

} // namespace shardwright
