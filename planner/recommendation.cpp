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

/// "23.58 GB within the node per GPU"; empty when it moves nothing.
std::string whatItMoves(const Plan& plan)
{
    std::vector<std::string> parts;
    const auto add = [&parts](Bytes bytes, const char* where) {
        if (bytes > 0_B)
            parts.push_back(fmt::format("{} {}", formatDecimal(bytes), where));
    };
    const Traffic& traffic = plan.traffic;
    add(traffic.interNodeBytesPerNode, "between nodes per node");
    add(traffic.intraNodeBytesPerGpu, "within the node per GPU");
    add(traffic.hostToDeviceBytes + traffic.deviceToHostBytes, "over PCIe per GPU");
    add(plan.nvme.readBytesPerStep + plan.nvme.writeBytesPerStep, "to and from NVMe per node");
    return fmt::format("{}", fmt::join(parts, " and "));
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
    const std::string moves = whatItMoves(chosen);
    const auto alike = std::count_if(plans.begin(), plans.end(), [&](const Plan& plan) {
        return plan.fits() && slowMemoryOf(plan) == memory && (!moves.empty() || whatItMoves(plan).empty());
    });
    const std::string what = whereItLives(memory) + (moves.empty() ? " and move nothing" : "");
    const std::string perStep = moves.empty() ? std::string() : fmt::format(": it moves {} per step", moves);
    std::string reason;
    if (fitting == 1)
        reason = fmt::format("the only one of {} that fits{}", plans.size(), perStep);
    else if (alike == 1)
        reason = fmt::format("of the {} that fit, the only one to {}{}", fitting, what, perStep);
    else
        reason = fmt::format("of the {} that fit, {} {}; of these it {}{}", fitting, alike, what,
                             moves.empty() ? "leaves the most memory free" : "spends the least time on links", perStep);
    reason += fmt::format("; {:.0f} % of the GPU stay free", chosen.headroom * 100);
    if (chosen.verdict == Verdict::Tight)
        reason += ", which is tight";
    return Recommendation{chosen.strategy, reason + "."};
}

} // namespace shardwright
