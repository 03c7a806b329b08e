#include "planner/search/tally.hpp"

#include <tuple>

#include "core/units.hpp"

namespace shardwright::search {

namespace {

void merge(Rejected& into, const Rejected& more)
{
    if (into.candidates == 0 || std::tie(more.miss, more.nearest) < std::tie(into.miss, into.nearest)) {
        into.miss = more.miss;
        into.nearest = more.nearest;
    }
    into.candidates = checkedAdd(into.candidates, more.candidates);
}

} // namespace

void Tally::add(const Reason& reason, const Path& path, std::int64_t candidates, double miss)
{
    if (candidates > 0)
        merge(m_reasons[reason], {candidates, miss, path});
}

void Tally::add(const Tally& other)
{
    for (const auto& [reason, rejected] : other.m_reasons)
        merge(m_reasons[reason], rejected);
}

std::int64_t Tally::total() const
{
    std::int64_t sum = 0;
    for (const auto& [reason, rejected] : m_reasons)
        sum = checkedAdd(sum, rejected.candidates);
    return sum;
}

} // namespace shardwright::search
