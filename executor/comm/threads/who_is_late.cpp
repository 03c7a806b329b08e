#include "executor/comm/threads/who_is_late.hpp"

#include <fmt/format.h>

namespace shardwright {

std::string whoIsLate(const SharedGroup& group, int rank, int awaited)
{
    const Member& own = group.members[static_cast<std::size_t>(rank)];
    std::vector<int> late;
    for (std::size_t place = 0; place < group.members.size(); ++place)
        if (group.members[place].calls.load() < own.calls.load())
            late.push_back(group.ranks[place]);
    if (late.empty() && awaited < 0)
        return fmt::format("the ranks of group {} did not all go on with {}: their calls differ", group.name,
                           own.call.name);
    if (late.empty())
        return fmt::format("rank {} did not go on with {} of group {}", group.ranks[static_cast<std::size_t>(awaited)],
                           own.call.name, group.name);
    std::string names;
    for (std::size_t i = 0; i < late.size(); ++i)
        names += (i == 0 ? "" : i + 1 == late.size() ? " and " : ", ") + std::to_string(late[i]);
    return fmt::format("{} {} did not come to {} of group {}", late.size() == 1 ? "rank" : "ranks", names,
                       own.call.name, group.name);
}

} // namespace shardwright
