#pragma once

// Candidates that are not possible, counted by reason, with the nearest miss of each.

#include <map>
#include <string>

#include "core/enum_names.hpp"
#include "planner/search/path.hpp"

namespace shardwright::search {

/// Allocator: the tensors fit, what PyTorch's allocator holds beside them does not.
enum class Obstacle : std::uint8_t { Divisibility, Refused, GpuMemory, HostMemory, Nvme, Allocator, Untimed, TooLarge };

struct Reason {
    Obstacle obstacle = Obstacle::Refused;
    std::string text; // of a refusal, the framework's own words
    auto operator<=>(const Reason&) const = default;
};

struct Rejected {
    std::int64_t candidates = 0;
    double miss = 0; // of the nearest: bytes too many; 0 where that has no meaning
    Path nearest;
};

/// What it holds depends on what was added, not on the order.
class Tally {
public:
    void add(const Reason& reason, const Path& path, std::int64_t candidates = 1, double miss = 0);
    void add(const Tally& other);
    const std::map<Reason, Rejected>& reasons() const { return m_reasons; }
    std::int64_t total() const;

private:
    std::map<Reason, Rejected> m_reasons;
};

} // namespace shardwright::search

namespace shardwright {

template <> struct EnumNames<search::Obstacle> {
    static constexpr std::array<std::pair<search::Obstacle, std::string_view>, 8> table{
        {{search::Obstacle::Divisibility, "divisibility"},
         {search::Obstacle::Refused, "refused"},
         {search::Obstacle::GpuMemory, "gpu-memory"},
         {search::Obstacle::HostMemory, "host-memory"},
         {search::Obstacle::Nvme, "nvme"},
         {search::Obstacle::Allocator, "allocator"},
         {search::Obstacle::Untimed, "untimed"},
         {search::Obstacle::TooLarge, "too-large"}}};
};

} // namespace shardwright
