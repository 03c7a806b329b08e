#pragma once

// Counts live bytes by place and category while buffers come and go, and remembers the highest moments.

#include <array>
#include <cstdint>
#include <string>

#include "core/measurement.hpp"

namespace shardwright {

class Arena {
public:
    /// `deviceLimit`: most live bytes of Place::Gpu; 0 = no limit.
    explicit Arena(Bytes deviceLimit) : m_limit(deviceLimit) {}

    /// Peaks are those since here.
    void beginStep();
    /// What follows happens during this operation. `name` is for OutOfMemory; it must live until the next call.
    void beginOperation(std::int64_t op, const std::string* name);

    /// A buffer comes to be. OutOfMemory names the categories, the operation and `what` was asked for.
    void take(Place place, Category category, Bytes bytes, std::string_view what);
    void give(Place place, Category category, Bytes bytes);

    /// Peak and holdings of one place since beginStep().
    MeasuredPlace measured(Place place) const;
    Bytes live(Place place) const { return at(place).live; }
    /// Device memory at its highest within the operation.
    Bytes operationPeak() const { return m_operationPeak; }
    const CategoryBytes& operationCategories() const { return m_operationCategories; }

private:
    struct Tally {
        Bytes live;
        CategoryBytes byCategory{};
        MeasuredPlace peak;
    };

    const Tally& at(Place place) const { return m_tallies[static_cast<std::size_t>(place)]; }
    Tally& at(Place place) { return m_tallies[static_cast<std::size_t>(place)]; }

    Bytes m_limit;
    std::array<Tally, EnumNames<Place>::table.size()> m_tallies;
    std::int64_t m_op = -1;
    const std::string* m_opName = nullptr;
    Bytes m_operationPeak;
    CategoryBytes m_operationCategories{};
};

} // namespace shardwright
