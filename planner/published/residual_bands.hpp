#pragma once

// From the ledger's residuals to the bands that step times are given with.

#include <array>
#include <string>
#include <vector>

#include "planner/published/ledger.hpp"
#include "planner/step_band.hpp"

namespace shardwright {

/// By indexOf() of the setting. A band spans the 5 % and 95 % quantiles of measured over predicted seconds and the
/// prediction itself. Where a setting has few runs it also spans the band of similar ones; where it has none it is
/// that band, stretched; where there are none of these either, that of all runs, stretched further.
std::array<StepBand, kStepSettings> learnStepBands(const std::vector<LedgerRow>& rows);

/// planner/step_band_table.cpp. Bands are rounded outwards.
std::string stepBandSource(const std::array<StepBand, kStepSettings>& bands);

} // namespace shardwright
