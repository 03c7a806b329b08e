#include "planner/search/explorer.hpp"

#include <cmath>

#include "planner/frameworks/rules.hpp"
#include "planner/parallelism/stage_plans.hpp"

namespace shardwright::search {

namespace {

constexpr std::size_t kMostPlans = 256; // kept at a time, some kilobytes each
constexpr std::size_t kStrategyKnown =
    static_cast<std::size_t>(Axis::ShardGroup) + 1; // all but checkpoints and batches

/// Of memory that depends neither on checkpointing, unless it keeps inputs on the host, nor on the micro-batch, nor on
/// how long gradients are accumulated where they are.
bool isOutside(Obstacle obstacle)
{
    return obstacle == Obstacle::HostMemory || obstacle == Obstacle::Nvme;
}

} // namespace

std::optional<Reason> obstacleOf(const Plan& plan)
{
    switch (plan.verdict) {
    case Verdict::Fits: return std::nullopt;
    case Verdict::NotPossible: return Reason{Obstacle::Refused, plan.framework + ": " + plan.reasons.front()};
    case Verdict::Tight:
        return Reason{Obstacle::Allocator, "fits only by the allocator's giving memory back within the step"};
    case Verdict::DoesNotFit: break;
    }
    if (plan.gpu.peakUsed > plan.gpu.capacity)
        return Reason{Obstacle::Allocator, "GPU memory with what the caching allocator holds beside the tensors"};
    return Reason{Obstacle::HostMemory, "host memory or NVMe of a node"};
}

PlanExplorer::PlanExplorer(const Candidates& candidates, Measure measure, std::unique_ptr<Clock> clock,
                           bool everyReason)
    : m_candidates(candidates), m_measure(measure), m_everyReason(everyReason), m_clock(std::move(clock)),
      m_candidate(candidates.start())
{
}

Score PlanExplorer::score(double seconds, Bytes memory, std::int64_t gpus) const
{
    const auto count = static_cast<double>(gpus);
    switch (m_measure) {
    case Measure::Time: return {seconds, memory.asDouble()};
    case Measure::Gpus: return {count, seconds};
    case Measure::GpuTime: return {seconds * count, seconds};
    case Measure::MemoryAndTime: return {memory.asDouble(), seconds};
    case Measure::Fitting:
    case Measure::FittingByFloor: return {memory.asDouble(), 0};
    }
    return {};
}

/// Notes all candidates below the path; the nearest to show is the first of them.
void PlanExplorer::reject(const Reason& reason, const Path& path, double miss)
{
    Path first = path;
    while (!complete(first))
        first.push(0);
    m_tally.add(reason, first, candidatesBelow(*this, path), miss);
}

/// Whether GPUs and global batch divide, as far as the path tells.
bool PlanExplorer::divides(const Path& path, const Assignment& so)
{
    constexpr std::size_t kSplitKnown = static_cast<std::size_t>(Axis::Context) + 1;
    const char* uneven = nullptr;
    if (path.size() == kSplitKnown && so.dataRanks() == 0)
        uneven = "tensor x pipeline x context does not divide the GPUs";
    else if (path.size() == kSplitKnown && m_candidates.space().globalBatch % so.dataRanks() != 0)
        uneven = "the data-parallel ranks do not divide the global batch";
    else if (complete(path) && m_candidates.accumulation(so) == 0)
        uneven = "the micro-batch does not divide a rank's share of the global batch";
    if (uneven != nullptr)
        reject({Obstacle::Divisibility, uneven}, path);
    return uneven == nullptr;
}

/// What all candidates below the path use at least: the model states, which depend neither on checkpointing nor on the
/// micro-batch. Nothing where that is too much. Where the framework refuses the first candidate below the path nothing
/// is known of the others.
std::optional<Bytes> PlanExplorer::leastBelow(const Path& path, const Assignment& so)
{
    m_candidates.apply(so, m_candidate);
    if (!refusals(input()).empty())
        return Bytes(0);
    if (const double miss = statesExcess(input(), so, m_structures, m_everyReason); miss > 0) {
        reject({Obstacle::GpuMemory, "GPU memory for the model states alone"}, path, miss);
        return std::nullopt;
    }
    Bytes least;
    for (const Held& part : m_structures.heldBy(input(), so))
        least = std::max(least, part.duringForward);
    return least;
}

/// Of all candidates that differ from the assignment in checkpointing and micro-batch, the shortest computing.
/// Frameworks that do not split the model all compute alike.
double PlanExplorer::leastSeconds(const Assignment& assignment)
{
    if (assignment.framework == Framework::Megatron || assignment.modelRanks() > 1 || assignment.expert > 1)
        return 0;
    const auto [known, isNew] = m_leastSeconds.try_emplace(assignment.gpus, INFINITY);
    if (!isNew)
        return known->second;
    const Space& space = m_candidates.space();
    Assignment so = assignment;
    for (const Checkpointing checkpointing : space.checkpointing)
        for (const std::int64_t every : space.checkpointEvery)
            for (const std::int64_t microBatch : space.microBatch) {
                so.checkpointing = checkpointing;
                so.checkpointEvery = every;
                so.microBatch = microBatch;
                if (m_candidates.accumulation(so) == 0)
                    continue;
                m_candidates.apply(so, m_candidate);
                known->second = std::min(known->second, m_clock->floor(input(), so, m_structures));
            }
    return known->second;
}

std::optional<Score> PlanExplorer::floor(const Path& path)
{
    constexpr std::size_t kFrameworkKnown = static_cast<std::size_t>(Axis::Framework) + 1;
    const Assignment so = m_candidates.assignment(path);
    if (!divides(path, so))
        return std::nullopt;
    try {
        std::optional<Bytes> memory = Bytes(0);
        if (path.size() == kStrategyKnown)
            memory = leastBelow(path, so);
        if (!memory)
            return std::nullopt;
        if (!complete(path)) {
            const bool computingKnown = path.size() >= kStrategyKnown ||
                                        (path.size() >= kFrameworkKnown && !m_candidates.space().splitsModels());
            const double least = timed() && computingKnown ? leastSeconds(so) : 0;
            return score(least, *memory, path.size() > 0 ? so.gpus : 0);
        }
        m_candidates.apply(so, m_candidate);
        if (const auto reasons = refusals(input()); !reasons.empty()) {
            reject({Obstacle::Refused, std::string(frameworkOf(m_candidate.strategy)) + ": " + reasons.front()}, path);
            return std::nullopt;
        }
        const Bytes least = leastUsed(input(), so, m_structures);
        if (const Bytes capacity = bytesOf(m_candidate.cluster.gpu.memory); least > capacity) {
            reject({Obstacle::GpuMemory, "GPU memory for the model states and what forward passes keep"}, path,
                   (least - capacity).asDouble());
            return std::nullopt;
        }
        return score(timed() ? m_clock->floor(input(), so, m_structures) : 0, least, so.gpus);
    } catch (const NumberTooLarge&) {
        if (!complete(path)) // others below may do
            return score(0, Bytes(0), so.gpus);
        reject({Obstacle::TooLarge, "its numbers leave 64 bits"}, path);
        return std::nullopt;
    }
}

std::optional<Score> PlanExplorer::evaluate(const Path& path, const Archive& archive)
{
    const Assignment so = m_candidates.assignment(path);
    m_candidates.apply(so, m_candidate);
    const std::pair strategy(path.first(kStrategyKnown), m_candidates.accumulation(so) > 1);
    const bool keepsOutside = so.checkpointing == Checkpointing::Cpu;
    if (const auto known = m_outside.find(strategy); known != m_outside.end() && !timed() && !keepsOutside) {
        m_tally.add(*known->second.obstacle, path, 1, known->second.miss);
        return std::nullopt;
    }
    try {
        // Where time comes first, most candidates that have a room are too slow, and that is known sooner.
        const bool timeFirst = timed() && !m_everyReason && m_measure != Measure::MemoryAndTime;
        Bytes used; // as far as it is known
        const auto mayGetIn = [&](double seconds) {
            return archive.admits(score((1 - kSameSeconds) * seconds, used, so.gpus), path);
        };
        Structures::IsWorthIt isWorthIt;
        if (timeFirst)
            isWorthIt = [&](double collectives) {
                return mayGetIn(m_clock->floorWith(input(), so, collectives, m_structures));
            };
        const std::vector<Part>& parts = m_structures.partsOf(input(), so, isWorthIt);
        if (parts.empty())
            return std::nullopt;
        const auto hasRoom = [&] {
            const MemoryVerdict memory = checkMemory(parts);
            used = memory.used;
            if (!memory.obstacle)
                return true;
            if (!timed() && !keepsOutside && isOutside(memory.obstacle->obstacle))
                m_outside.emplace(strategy, memory);
            m_tally.add(*memory.obstacle, path, 1, memory.miss);
            return false;
        };
        if (!timeFirst && !hasRoom())
            return std::nullopt;
        if (m_measure == Measure::FittingByFloor)
            return score(0, used, so.gpus);
        const double seconds = timed() ? m_clock->seconds(input(), parts, m_structures, mayGetIn) : 0;
        if (!std::isfinite(seconds)) {
            m_tally.add({Obstacle::Untimed, "the cluster leaves out what its step time depends on"}, path);
            return std::nullopt;
        }
        if (!mayGetIn(seconds) || (timeFirst && !(hasRoom() && mayGetIn(seconds))))
            return std::nullopt;
        return planned(path, so.gpus);
    } catch (const NumberTooLarge&) {
        m_tally.add({Obstacle::TooLarge, "its numbers leave 64 bits"}, path);
        return std::nullopt;
    }
}

/// The score by the plan itself, allocator and all, so that what is found is what a comparison shows.
std::optional<Score> PlanExplorer::planned(const Path& path, std::int64_t gpus)
{
    Plan plan = m_candidate.strategy.parallelism.pipeline > 1 ? planOfPipeline() : buildPlan(input(), kOfAnswers);
    if (const auto obstacle = obstacleOf(plan)) {
        const bool over = plan.gpu.peakUsed > plan.gpu.capacity;
        m_tally.add(*obstacle, path, 1, over ? (plan.gpu.peakUsed - plan.gpu.capacity).asDouble() : 0);
        return std::nullopt;
    }
    if (m_plans.size() == kMostPlans)
        m_plans.clear();
    const Bytes used = plan.gpu.peakUsed;
    const double seconds = timed() ? m_clock->secondsOf(input(), plan) : 0;
    m_plans.insert_or_assign(path, std::move(plan));
    return score(seconds, used, gpus);
}

Plan PlanExplorer::planOfPipeline()
{
    const Pipeline& pipeline = m_structures.pipeline();
    return buildStagePlans(input(), *pipeline.slices, pipeline.schedules, kOfAnswers);
}

std::optional<Plan> PlanExplorer::planOf(const Path& path) const
{
    const auto known = m_plans.find(path);
    return known != m_plans.end() ? std::optional(known->second) : std::nullopt;
}

} // namespace shardwright::search
