#include "planner/search/memory_check.hpp"

#include "planner/overheads.hpp"
#include "planner/readers/memory_replay.hpp"

namespace shardwright::search {

namespace {

/// By how many bytes `need` passes `have`; 0 where it does not.
double excess(Bytes need, Bytes have)
{
    return need > have ? (need - have).asDouble() : 0;
}

} // namespace

Bytes bytesOf(const Figure& figure)
{
    return Bytes(static_cast<std::int64_t>(figure.value));
}

namespace {

Bytes overheadOf(const Cluster& cluster, const FrameworkRules& rules)
{
    Bytes overhead;
    for (const Overhead& each : gpuOverheads(cluster, rules.communicators()))
        overhead += each.bytes;
    return overhead;
}

ClosedFormResult figuresOf(const Part& part)
{
    if (part.structure != nullptr)
        return part.structure->closed.figures(part.input); // structureOf resized it
    const MemoryReplay replay = replayMemory(part.stage->schedule, false);
    ClosedFormResult figures;
    figures.peakAllocated = replay.gpu.bytes;
    figures.initPeak = replay.gpuInitPeak;
    figures.hostPinned = replay.hostPinned.bytes;
    figures.hostPageable = replay.hostPageable.bytes;
    figures.nvme = replay.nvme.bytes;
    return figures;
}

MemoryVerdict checkPart(const Part& part)
{
    const ClosedFormResult figures = figuresOf(part);
    const FrameworkRules& rules = part.structure != nullptr ? part.structure->closed.rules() : *part.stage->rules;
    const Cluster& cluster = part.input.cluster;
    const Bytes overhead = overheadOf(cluster, rules);
    MemoryVerdict result;
    result.used = figures.peakAllocated + overhead;
    const auto refuse = [&](Obstacle obstacle, const char* text, double miss) {
        if (miss <= 0 || result.obstacle)
            return;
        result.obstacle = Reason{obstacle, text};
        result.miss = miss;
    };
    const Bytes capacity = bytesOf(cluster.gpu.memory);
    refuse(Obstacle::GpuMemory, "GPU memory over the step", excess(result.used, capacity));
    refuse(Obstacle::GpuMemory, "GPU memory at initialisation", excess(figures.initPeak + overhead, capacity));
    const Bytes host = bytesOf(cluster.hostMemory);
    refuse(Obstacle::HostMemory, "host memory of a node",
           excess((figures.hostPinned + figures.hostPageable) * cluster.gpusPerNode, host));
    refuse(Obstacle::HostMemory, "host memory of a node while the model is loaded",
           excess(rules.hostInitPeakPerNode(), host));
    refuse(Obstacle::Nvme, "NVMe of a node", excess(figures.nvme * cluster.gpusPerNode, bytesOf(cluster.nvmeCapacity)));
    return result;
}

} // namespace

double statesExcess(const PlanInput& input, const Assignment& assignment, Structures& structures, bool exactly)
{
    double most = 0;
    for (std::size_t slice = 0; exactly || most <= 0; ++slice) {
        const std::vector<Held>& held = structures.heldBy(input, assignment, slice + 1);
        if (slice >= held.size())
            break;
        most = std::max(most, excess(held[slice].states, bytesOf(input.cluster.gpu.memory)));
    }
    return most;
}

Bytes leastUsed(const PlanInput& input, const Assignment& assignment, Structures& structures)
{
    const std::vector<Held>& held = structures.heldBy(input, assignment);
    const std::vector<std::int64_t>& kept = structures.floorsOf(input, assignment).kept;
    Bytes most;
    for (std::size_t part = 0; part < held.size(); ++part)
        most = std::max(most, held[part].duringForward + Bytes(kept[part]));
    return most;
}

MemoryVerdict checkMemory(const std::vector<Part>& parts)
{
    MemoryVerdict worst;
    for (const Part& part : parts) {
        MemoryVerdict verdict = checkPart(part);
        verdict.used = std::max(verdict.used, worst.used);
        const bool worse = verdict.obstacle && (!worst.obstacle || verdict.miss > worst.miss);
        if (!worse) {
            verdict.obstacle = worst.obstacle;
            verdict.miss = worst.miss;
        }
        worst = std::move(verdict);
    }
    return worst;
}

} // namespace shardwright::search
