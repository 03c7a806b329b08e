#pragma once

// Whether candidates fit, by the closed form: in microseconds where the structure is known, without the allocator.

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "planner/plan_input.hpp"
#include "planner/readers/closed_form.hpp"
#include "planner/search/tally.hpp"

namespace shardwright::search {

/// Not thread-safe: one per thread. All candidates are of one model.
class MemoryCheck {
public:
    struct Result {
        Bytes used; // allocated at the peak and overheads: the allocator can only add to it
        std::optional<Reason> obstacle;
        double miss = 0; // bytes too many
    };

    /// The candidate must not be refused. Candidates of equal `setting` differ in the micro-batch alone, and not in
    /// whether they accumulate.
    Result check(const PlanInput& input, const std::pair<Path, int>& setting);

private:
    ClosedForm& formOf(const PlanInput& input, const std::pair<Path, int>& setting);

    std::map<std::string, std::unique_ptr<ClosedForm>> m_forms; // by structure
    std::map<std::pair<Path, int>, ClosedForm*> m_settings;
};

/// Bytes of a cluster's figure.
Bytes bytesOf(const Figure& figure);

} // namespace shardwright::search
