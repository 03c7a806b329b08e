#pragma once

// The committed accuracy: scenarios/ledger/baseline.json. A test holds the ledger to it.

#include <optional>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "planner/published/ledger.hpp"

namespace shardwright {

/// Errors are rounded up to hundredths of a per cent, so that the ledger they were taken from meets them.
struct BaselineErrors {
    std::int64_t compared = 0;
    double median = 0; // of absolute errors
    double worst = 0;  // largest absolute error
};

struct BaselineSource {
    std::string name;
    std::optional<BaselineErrors> memory; // nothing: no figure was compared
    std::optional<BaselineErrors> time;
    std::int64_t verdictsRight = 0;
};

using Baseline = std::vector<BaselineSource>;

Baseline baselineOf(const Ledger& ledger);

Json toJson(const Baseline& baseline);

/// InputError when the text is not a baseline.
Baseline baselineFromJson(const Json& json, const std::string& file);

/// Where it stands in the catalogue.
std::string baselineFile();

/// What is worse than committed, one line each: a larger median or worst error, fewer figures compared, fewer verdicts
/// right, a source that is gone. Sources that the baseline does not know are not worse.
std::vector<std::string> worseThan(const Baseline& baseline, const Ledger& ledger);

} // namespace shardwright
