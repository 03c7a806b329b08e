#pragma once

// What a search found, for people and for programs. The JSON form is documented in planner/README.md.

#include <string>

#include "planner/report/table.hpp"
#include "planner/search/inverse.hpp"

namespace shardwright::search {

/// What was asked, as the report tells it.
struct Asked {
    const Scenario& scenario; // as it was found to be, for an inverse question
    const Space& space;
    const Request& request;
    bool explainRejected = false;
};

/// The found candidates, one a row.
Table answersTable(const Asked& asked, const Result& result);

std::string searchText(const Asked& asked, const Result& result, const OutputStyle& style);
std::string inverseText(const Asked& asked, const Inverse& inverse, const OutputStyle& style);

Json searchJson(const Asked& asked, const Result& result);
Json inverseJson(const Asked& asked, const Inverse& inverse);

/// One line per found candidate: its settings and the columns of its plan.
std::string searchCsv(const Asked& asked, const Result& result);

} // namespace shardwright::search
