// Written by build/bin/tools/update_ledger from the residuals of the published step times; not by hand.

#include "planner/step_band.hpp"

namespace shardwright {

const std::array<StepBand, kStepSettings> kStepBandTable{};

} // namespace shardwright
