#include "planner/search/archive.hpp"

#include <tuple>

namespace shardwright::search {

namespace {

bool before(const Found& left, const Found& right)
{
    return std::tie(left.score, left.path) < std::tie(right.score, right.path);
}

/// Whether a point rules out another: no figure is above the other's, and where both are equal its path comes first.
bool beats(const Found& point, const Score& score, const Path& path)
{
    if (point.score.first > score.first || point.score.second > score.second)
        return false;
    return point.score != score || point.path.first(path.size()) < path;
}

} // namespace

bool Archive::admits(const Score& floor, const Path& path) const
{
    if (m_wanted.kind == Wanted::Kind::Front)
        return std::none_of(m_found.begin(), m_found.end(),
                            [&](const Found& point) { return beats(point, floor, path); });
    if (m_found.size() < m_wanted.most)
        return true;
    const Found& last = m_found.back();
    return floor != last.score ? floor < last.score : path <= last.path.first(path.size());
}

void Archive::insert(const Found& found)
{
    if (m_wanted.kind == Wanted::Kind::Front) {
        insertInFront(found);
        return;
    }
    const auto place = std::lower_bound(m_found.begin(), m_found.end(), found, before);
    if (place != m_found.end() && place->path == found.path)
        return;
    m_found.insert(place, found);
    if (m_found.size() > m_wanted.most)
        m_found.pop_back();
}

void Archive::insertInFront(const Found& found)
{
    const auto rulesOut = [&](const Found& point) {
        return point.path == found.path || beats(point, found.score, found.path);
    };
    if (std::any_of(m_found.begin(), m_found.end(), rulesOut))
        return;
    m_found.erase(std::remove_if(m_found.begin(), m_found.end(),
                                 [&](const Found& point) { return beats(found, point.score, point.path); }),
                  m_found.end());
    m_found.insert(std::lower_bound(m_found.begin(), m_found.end(), found, before), found);
}

} // namespace shardwright::search
