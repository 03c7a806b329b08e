#include "planner/recommendation.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "planner/plan_builder.hpp"

namespace shardwright {

namespace {

enum class SlowMemory : std::uint8_t { None, Host, Nvme };

SlowMemory slowMemoryOf(const Plan& plan)
{
    if (plan.nvme.bytesPerNode > 0_B)
        return SlowMemory::Nvme;
    return plan.host.bytesPerRank > 0_B ? SlowMemory::Host : SlowMemory::None;
}

std::string whereItLives(SlowMemory memory)
{
    switch (memory) {
    case SlowMemory::None: return "keep everything on the GPUs";
    case SlowMemory::Host: return "need host memory but no NVMe";
    case SlowMemory::Nvme: return "need NVMe";
    }
    return {};
}

std::string whatItMoves(const Plan& plan, const Cluster& cluster)
{
    std::vector<std::string> parts;
    const Traffic& traffic = plan.traffic;
    if (cluster.nodes > 1)
        parts.push_back(fmt::format("{} between nodes per node", formatDecimal(traffic.interNodeBytesPerNode)));
    if (cluster.gpusPerNode > 1)
        parts.push_back(fmt::format("{} within the node per GPU", formatDecimal(traffic.intraNodeBytesPerGpu)));
    if (const Bytes pcie = traffic.hostToDeviceBytes + traffic.deviceToHostBytes; pcie > 0_B)
        parts.push_back(fmt::format("{} over PCIe per GPU", formatDecimal(pcie)));
    return parts.empty() ? "nothing" : fmt::format("{}", fmt::join(parts, " and "));
}

} // namespace

std::optional<Recommendation> recommendation(const Scenario& scenario, const std::vector<Plan>& plans)
{
    const auto index = recommend(scenario, plans);
    if (!index)
        return std::nullopt;
    const Plan& chosen = plans[*index];
    const SlowMemory memory = slowMemoryOf(chosen);
    const auto fitting = std::count_if(plans.begin(), plans.end(), [](const Plan& plan) { return plan.fits(); });
    const auto alike = std::count_if(
        plans.begin(), plans.end(), [memory](const Plan& plan) { return plan.fits() && slowMemoryOf(plan) == memory; });
    std::string reason;
    if (fitting == 1)
        reason = fmt::format("the only one of {} that fits, ", plans.size());
    else if (alike == 1)
        reason = fmt::format("of the {} that fit, the only one to {}, ", fitting, whereItLives(memory));
    else
        reason = fmt::format("of the {} that fit, {} {}; of these it spends the least time on links: ", fitting, alike,
                             whereItLives(memory));
    reason += fmt::format("{}moves {} per step; {:.0f} % of the GPU stay free", alike > 1 ? "it " : "",
                          whatItMoves(chosen, scenario.cluster), chosen.headroom * 100);
    if (chosen.verdict == Verdict::Tight)
        reason += ", which is tight";
    return Recommendation{chosen.strategy, reason + "."};
}

} // namespace shardwright
