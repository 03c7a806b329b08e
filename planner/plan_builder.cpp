#include "planner/plan_builder.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "planner/frameworks/rules.hpp"
#include "planner/overheads.hpp"
#include "planner/parallelism/model_slice.hpp"
#include "planner/parallelism/stage_plans.hpp"
#include "planner/readers/caching_allocator.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"
#include "planner/step_cost.hpp"
#include "planner/step_time.hpp"
#include "planner/suggestions.hpp"

namespace shardwright {

namespace {

/// "backward of block 31 of 32", "loss", "optimizer step".
std::string describeMoment(const Model& model, const Op& op)
{
    if (op.kind == OpKind::LossForward || op.kind == OpKind::LossBackward)
        return op.kind == OpKind::LossForward ? "the loss (forward)" : "the loss (backward)";
    std::string what(nameOf(op.phase));
    if (op.kind == OpKind::Recompute)
        what = "recomputation in backward";
    if (op.layer < 0)
        return what;
    const auto position = static_cast<std::size_t>(op.layer);
    switch (model.layer(position).kind) {
    case LayerKind::Embedding: return what + " of the embedding";
    case LayerKind::FinalNorm: return what + " of the final norm";
    case LayerKind::Head: return what + " of the head";
    case LayerKind::Block: break;
    }
    std::int64_t block = 0;
    std::int64_t blocks = 0;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const bool isBlock = model.layer(i).kind == LayerKind::Block;
        blocks += isBlock ? 1 : 0;
        block += isBlock && i <= position ? 1 : 0;
    }
    return fmt::format("{} of block {} of {}", what, block, blocks);
}

Bytes figureBytes(const Figure& figure)
{
    constexpr double kLargest = 9.0e18; // below 2^63
    if (figure.value >= kLargest)
        throw NumberTooLarge("a memory size of the cluster does not fit in 64 bits of bytes");
    return Bytes(static_cast<std::int64_t>(figure.value));
}

void fillNvmeTraffic(const Schedule& schedule, int gpusPerNode, NvmeUse& nvme)
{
    for (const Segment& segment : schedule.segments)
        for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
            const Op& op = schedule.ops[i];
            if (op.payload < 0 || op.phase == Phase::Init ||
                (op.kind != OpKind::NvmeRead && op.kind != OpKind::NvmeWrite))
                continue;
            const Bytes bytes = schedule.sizes.payloads[static_cast<std::size_t>(op.payload)].bytes *
                                checkedMultiply(checkedMultiply(segment.repeat, op.payloadCount), gpusPerNode);
            (op.kind == OpKind::NvmeRead ? nvme.readBytesPerStep : nvme.writeBytesPerStep) += bytes;
        }
}

class Builder {
public:
    Builder(const PlanInput& input, const PlanDetail& detail) : m_input(input), m_detail(detail) {}

    Plan build()
    {
        begin();
        if (m_input.slice == nullptr) // of a slice it is known
            m_plan.reasons = refusals(m_input);
        if (!m_plan.reasons.empty()) {
            m_plan.verdict = Verdict::NotPossible;
            return std::move(m_plan);
        }
        if (needsSlices(m_input)) {
            m_plan = buildStagePlans(m_input, m_detail);
            suggest();
            return std::move(m_plan);
        }
        const auto rules = makeRules(m_input);
        fillFrom(*rules, rules->emit());
        suggest();
        return std::move(m_plan);
    }

    Plan build(const FrameworkRules& rules, const Schedule& schedule)
    {
        begin();
        fillFrom(rules, schedule);
        return std::move(m_plan);
    }

private:
    void begin()
    {
        m_plan.strategy = m_input.strategy.name;
        m_plan.framework = frameworkOf(m_input.strategy);
        m_plan.gpu.capacity = figureBytes(m_input.cluster.gpu.memory);
        m_plan.host.capacity = figureBytes(m_input.cluster.hostMemory);
        m_plan.nvme.capacity = figureBytes(m_input.cluster.nvmeCapacity);
    }

    void fillFrom(const FrameworkRules& rules, const Schedule& schedule)
    {
        const MemoryReplay replay = replayMemory(schedule, m_detail.curve);
        fillFromRules(rules);
        fillGpu(schedule, replay, rules.communicators());
        fillHost(schedule, replay, rules);
        fillTraffic(schedule, rules);
        if (m_detail.time)
            fillTime(schedule, rules);
        judge(schedule);
    }

    void suggest()
    {
        if (m_detail.suggest && m_plan.verdict == Verdict::DoesNotFit)
            m_plan.smallestChange = smallestChangeThatFits(m_input);
    }

    void fillFromRules(const FrameworkRules& rules)
    {
        m_plan.states = rules.modelStates();
        m_plan.checkpoint = rules.checkpoint();
        m_plan.assumptions = rules.assumptions();
        m_plan.excluded = rules.excluded();
    }

    AllocatorOptions allocatorOptions() const { return {m_input.training.expandableSegments}; }

    void fillGpu(const Schedule& schedule, const MemoryReplay& replay, int communicators)
    {
        GpuMemory& gpu = m_plan.gpu;
        gpu.modelStates = m_plan.states.total();
        gpu.peakAllocated = replay.gpu.bytes;
        gpu.held = replay.gpuHeld;
        gpu.initPeak = replay.gpuInitPeak;
        gpu.peakBeforeFirstStep = replay.gpuPeakBeforeFirstStep;
        gpu.heldBeforeFirstStep = replay.gpuHeldBeforeFirstStep;
        gpu.byCategory = replay.gpuByCategory;
        if (replay.gpu.op >= 0)
            gpu.peakMoment = describeMoment(m_input.model, schedule.ops[static_cast<std::size_t>(replay.gpu.op)]);
        gpu.peakItems = liveItems(schedule.sizes, replay.gpu.liveCounts, Place::Gpu);
        gpu.curve = replay.curve;
        gpu.overheads = gpuOverheads(m_input.cluster, communicators);
        for (const Overhead& overhead : gpu.overheads)
            m_overhead += overhead.bytes;
        gpu.peakReserved = gpu.peakAllocated;
        if (m_detail.allocator)
            gpu.peakReserved = replayAllocator(schedule, kUnlimited, allocatorOptions()).peakReserved;
        gpu.peakUsed = gpu.peakReserved + m_overhead;
    }

    void fillHost(const Schedule& schedule, const MemoryReplay& replay, const FrameworkRules& rules)
    {
        const int perNode = m_input.cluster.gpusPerNode;
        HostMemory& host = m_plan.host;
        host.pinnedPerRank = replay.hostPinned.bytes;
        host.pageablePerRank = replay.hostPageable.bytes;
        host.bytesPerRank = host.pinnedPerRank + host.pageablePerRank;
        host.bytesPerNode = host.bytesPerRank * perNode;
        host.initPeakPerNode = rules.hostInitPeakPerNode();
        host.items = liveItems(schedule.sizes, replay.hostPinned.liveCounts, Place::HostPinned);
        const auto pageable = liveItems(schedule.sizes, replay.hostPageable.liveCounts, Place::HostPageable);
        host.items.insert(host.items.end(), pageable.begin(), pageable.end());
        m_plan.nvme.bytesPerNode = replay.nvme.bytes * perNode;
        fillNvmeTraffic(schedule, perNode, m_plan.nvme);
    }

    void fillTraffic(const Schedule& schedule, const FrameworkRules& rules)
    {
        const std::int64_t unit = std::max<std::int64_t>(1, m_input.model.parameters());
        m_plan.traffic = sumTraffic(schedule, unit, m_input.cluster.gpusPerNode);
        m_plan.traffic.psiTextbook = m_input.ranks() > 1 ? rules.textbookPsi() : 0;
        constexpr double kSame = 1e-3; // padding alone makes no difference worth words
        if (std::abs(m_plan.traffic.psi - m_plan.traffic.psiTextbook) > kSame)
            m_plan.traffic.psiDifference = rules.psiDifference();
        const std::int64_t trainable = m_input.model.trainableParameters();
        if (!m_plan.traffic.psiDifference.empty() || trainable == m_input.model.parameters())
            return;
        if (m_plan.traffic.psi < m_plan.traffic.psiTextbook)
            m_plan.traffic.psiDifference =
                fmt::format("{} of {} parameters are trained: only they have gradients to reduce", trainable,
                            m_input.model.parameters());
    }

    void fillTime(const Schedule& schedule, const FrameworkRules& rules)
    {
        m_plan.step = stepTime(m_input, rules, schedule);
        fillStepCost(m_input, m_plan);
    }

    void judge(const Schedule& schedule)
    {
        GpuMemory& gpu = m_plan.gpu;
        m_plan.headroom = (gpu.capacity.asDouble() - gpu.peakUsed.asDouble()) / gpu.capacity.asDouble();
        const auto refuse = [this](std::string reason) {
            m_plan.verdict = Verdict::DoesNotFit;
            m_plan.reasons.push_back(std::move(reason));
        };
        if (gpu.peakUsed > gpu.capacity)
            judgeFullGpu(schedule, refuse);
        if (gpu.initPeak + m_overhead > gpu.capacity)
            refuse(fmt::format("initialisation needs {} on a GPU that has {}", formatBinary(gpu.initPeak + m_overhead),
                               formatBinary(gpu.capacity)));
        const HostMemory& host = m_plan.host;
        if (host.bytesPerNode > host.capacity)
            refuse(fmt::format("{} of host memory a node ({} a rank), the node has {}", formatBinary(host.bytesPerNode),
                               formatBinary(host.bytesPerRank), formatBinary(host.capacity)));
        else if (host.initPeakPerNode > host.capacity)
            refuse(fmt::format("loading the model needs {} of host memory a node, the node has {}",
                               formatBinary(host.initPeakPerNode), formatBinary(host.capacity)));
        if (m_plan.nvme.bytesPerNode > m_plan.nvme.capacity)
            refuse(m_plan.nvme.capacity == Bytes(0)
                       ? "the cluster has no NVMe"
                       : fmt::format("{} on NVMe a node, the node has {}", formatDecimal(m_plan.nvme.bytesPerNode),
                                     formatDecimal(m_plan.nvme.capacity)));
    }

    template <typename Refuse> void judgeFullGpu(const Schedule& schedule, Refuse refuse)
    {
        GpuMemory& gpu = m_plan.gpu;
        const Bytes left = gpu.capacity > m_overhead ? gpu.capacity - m_overhead : Bytes(0);
        const bool hopeless = gpu.peakAllocated > left || !m_detail.allocator;
        const AllocatorReplay limited =
            hopeless ? AllocatorReplay{} : replayAllocator(schedule, left, allocatorOptions());
        if (!hopeless && !limited.outOfMemory) {
            m_plan.verdict = Verdict::Tight;
            gpu.allocatorFlushes = true;
            gpu.peakReserved = limited.peakReserved;
            gpu.peakUsed = limited.peakReserved + m_overhead;
            m_plan.headroom = (gpu.capacity.asDouble() - gpu.peakUsed.asDouble()) / gpu.capacity.asDouble();
            m_plan.reasons.push_back(
                std::string("the allocator has to give cached blocks back to the driver within a step (cudaMalloc "
                            "retries), which is slow") +
                (m_input.training.expandableSegments ? ""
                                                     : "; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True helps"));
            return;
        }
        if (gpu.modelStates + m_overhead > gpu.capacity)
            refuse(fmt::format("model states alone are {} on a GPU that has {}", formatBinary(gpu.modelStates),
                               formatBinary(gpu.capacity)));
        refuse(fmt::format("{} used at the peak ({}) on a GPU that has {}", formatBinary(gpu.peakUsed), gpu.peakMoment,
                           formatBinary(gpu.capacity)));
    }

    static constexpr Bytes kUnlimited = Bytes(std::int64_t{1} << 62);

    const PlanInput& m_input;
    const PlanDetail& m_detail;
    Plan m_plan;
    Bytes m_overhead;
};

} // namespace

Plan buildPlan(const PlanInput& input, const PlanDetail& detail)
{
    return Builder(input, detail).build();
}

Plan buildPlan(const PlanInput& part, const PlanDetail& detail, const FrameworkRules& rules, const Schedule& schedule)
{
    return Builder(part, detail).build(rules, schedule);
}

Plan buildPlan(const Scenario& scenario, const Strategy& strategy, const PlanDetail& detail)
{
    return buildPlan(PlanInput{scenario.model, scenario.cluster, scenario.training, strategy}, detail);
}

namespace {

/// The categories in which `more` holds most more than `less` at their peaks: "communication buffers +0.93 GiB".
std::string whereItIsMore(const Plan& more, const Plan& less)
{
    constexpr Bytes kWorthAWord = 64_MiB;
    std::string text;
    for (std::size_t i = 0; i < kCategoryCount; ++i) {
        const Bytes here = more.gpu.byCategory[i];
        const Bytes there = less.gpu.byCategory[i];
        if (here < there + kWorthAWord)
            continue;
        std::string name(nameOf(static_cast<Category>(i)));
        std::replace(name.begin(), name.end(), '_', ' ');
        text += fmt::format("{}{} +{}", text.empty() ? "" : ", ", name, formatBinary(here - there));
    }
    return text;
}

/// A higher ZeRO stage is expected to use less. Where buckets or step temporaries turn that round, say so (DeepSpeed
/// issue 1302).
void remarkOnStages(const std::vector<Strategy>& strategies, std::vector<Plan>& plans)
{
    for (std::size_t high = 0; high < plans.size(); ++high)
        for (std::size_t low = 0; low < plans.size(); ++low) {
            const auto* upper = std::get_if<DeepSpeedOptions>(&strategies[high].options);
            const auto* lower = std::get_if<DeepSpeedOptions>(&strategies[low].options);
            const bool ran = plans[high].verdict != Verdict::NotPossible && plans[low].verdict != Verdict::NotPossible;
            if (upper == nullptr || lower == nullptr || !ran || upper->stage <= lower->stage)
                continue;
            DeepSpeedOptions same = *upper;
            same.stage = lower->stage;
            same.contiguousGradients = lower->contiguousGradients;
            same.overlapComm = lower->overlapComm;
            same.reduceBucketSize = lower->reduceBucketSize;
            const Bytes more = plans[high].gpu.peakAllocated;
            const Bytes less = plans[low].gpu.peakAllocated;
            if (!(same == *lower) || more <= less)
                continue;
            plans[high].remarks.push_back(fmt::format(
                "allocates {} more than {} although it shards more: its peak is at {}, with {}; that of {} is at {}",
                formatBinary(more - less), plans[low].strategy, plans[high].gpu.peakMoment,
                whereItIsMore(plans[high], plans[low]), plans[low].strategy, plans[low].gpu.peakMoment));
        }
}

} // namespace

std::vector<Plan> buildPlans(const Scenario& scenario, const PlanDetail& detail)
{
    std::vector<Plan> plans;
    plans.reserve(scenario.strategies.size());
    for (const Strategy& strategy : scenario.strategies)
        plans.push_back(buildPlan(scenario, strategy, detail));
    remarkOnStages(scenario.strategies, plans);
    return plans;
}

} // namespace shardwright
