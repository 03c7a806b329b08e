#include "executor/engine/arena.hpp"

#include <fmt/format.h>

#include "executor/engine/rank_executor.hpp"

namespace shardwright {

void Arena::beginStep()
{
    for (Tally& tally : m_tallies) {
        tally.peak.peak = tally.live;
        tally.peak.atPeak = tally.byCategory;
        tally.peak.peakOp = -1;
    }
}

void Arena::beginOperation(std::int64_t op, const std::string* name)
{
    m_op = op;
    m_opName = name;
    m_operationPeak = at(Place::Gpu).live;
    m_operationCategories = at(Place::Gpu).byCategory;
}

void Arena::take(Place place, Category category, Bytes bytes, std::string_view what)
{
    Tally& tally = at(place);
    if (place == Place::Gpu && m_limit > Bytes(0) && tally.live + bytes > m_limit) {
        std::string held;
        for (const auto& [each, name] : EnumNames<Category>::table)
            if (const Bytes live = tally.byCategory[static_cast<std::size_t>(each)]; live > Bytes(0))
                held += fmt::format("{}{} {}", held.empty() ? "" : ", ", name, formatBinary(live));
        throw OutOfMemory(fmt::format("out of device memory: {} asks for {} ({}) of {}, but {} of the limit of {} are "
                                      "live: {}",
                                      m_opName != nullptr ? *m_opName : "the initialisation", formatBinary(bytes), what,
                                      nameOf(category), formatBinary(tally.live), formatBinary(m_limit),
                                      held.empty() ? "nothing" : held));
    }
    tally.live += bytes;
    tally.byCategory[static_cast<std::size_t>(category)] += bytes;
    if (tally.live > tally.peak.peak) {
        tally.peak.peak = tally.live;
        tally.peak.atPeak = tally.byCategory;
        tally.peak.peakOp = m_op;
    }
    if (place == Place::Gpu && tally.live > m_operationPeak) {
        m_operationPeak = tally.live;
        m_operationCategories = tally.byCategory;
    }
}

void Arena::give(Place place, Category category, Bytes bytes)
{
    Tally& tally = at(place);
    tally.live -= bytes;
    tally.byCategory[static_cast<std::size_t>(category)] -= bytes;
}

MeasuredPlace Arena::measured(Place place) const
{
    MeasuredPlace measured = at(place).peak;
    measured.place = place;
    measured.held = at(place).live;
    measured.heldByCategory = at(place).byCategory;
    return measured;
}

} // namespace shardwright
