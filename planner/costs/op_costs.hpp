#pragma once

// Seconds of any operation of a schedule: the layers' computing, collectives and transfers under one roof.

#include "core/schedule.hpp"
#include "planner/costs/collective_costs.hpp"
#include "planner/costs/layer_costs.hpp"
#include "planner/costs/transfer_costs.hpp"

namespace shardwright {

class OpCosts {
public:
    /// All must outlive this.
    OpCosts(const PlanInput& input, const ActivationModel& activations, const SizeTable& sizes);

    /// How long `op` keeps its stream busy once it runs.
    double seconds(const Op& op) const;
    /// How long the host needs to issue it.
    double hostSeconds(const Op& op) const;

    const LayerCosts& layers() const { return m_layers; }

private:
    const PlanInput& m_input;
    const SizeTable& m_sizes;
    LayerCosts m_layers;
    CollectiveCosts m_collectives;
    TransferCosts m_transfers;
};

} // namespace shardwright
