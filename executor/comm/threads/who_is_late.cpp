#include "executor/comm/threads/who_is_late.hpp"

#include <fmt/format.h>

namespace shardwright {

namespace {

std::string listOf(const std::vector<int>& ranks)
{
    std::string names = ranks.size() == 1 ? "rank " : "ranks ";
    for (std::size_t i = 0; i < ranks.size(); ++i)
        names += (i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ") + std::to_string(ranks[i]);
    return names;
}

} // namespace

std::string whoIsLate(const Hub& hub, const SharedGroup& group, int rank, int awaited)
{
    const Member& own = group.members[static_cast<std::size_t>(rank)];
    const std::string call = fmt::format("{} of group {}", own.call.name, group.name);
    std::vector<int> late;
    std::vector<int> still; // of those, the ones that wait for nobody
    for (std::size_t place = 0; place < group.members.size(); ++place)
        if (group.members[place].calls.load() < own.calls.load()) {
            late.push_back(group.ranks[place]);
            if (!hub.waits(group.ranks[place]))
                still.push_back(group.ranks[place]);
        }
    if (!still.empty())
        return fmt::format("{} did not come to {}", listOf(still), call);
    for (int each = 0; each < hub.ranks(); ++each)
        if (!hub.waits(each) && each != group.ranks[static_cast<std::size_t>(rank)])
            still.push_back(each);
    if (!late.empty() && !still.empty())
        return fmt::format("{} did not come to {}, but wait elsewhere; {} did not come to the transport", listOf(late),
                           call, listOf(still));
    if (awaited >= 0)
        return fmt::format("rank {} did not go on with {}", group.ranks[static_cast<std::size_t>(awaited)], call);
    return fmt::format("the ranks of group {} did not all go on with {}: their calls differ", group.name,
                       own.call.name);
}

} // namespace shardwright
