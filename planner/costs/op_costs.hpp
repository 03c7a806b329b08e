#pragma once

// Seconds of any operation of a schedule: the layers' computing, collectives and transfers under one roof.

#include <optional>

#include "core/schedule.hpp"
#include "planner/costs/collective_costs.hpp"
#include "planner/costs/host_costs.hpp"
#include "planner/costs/layer_costs.hpp"
#include "planner/costs/transfer_costs.hpp"

namespace shardwright {

struct OpTimes;

/// Whether an optimizer step on the host runs a vectorised, multi-threaded kernel over whole tensors.
bool hasVectorizedHostOptimizer(const PlanInput& input);

class OpCosts {
public:
    /// All must outlive this.
    OpCosts(const PlanInput& input, const ActivationModel& activations, const SizeTable& sizes);

    /// How long `op` keeps its stream busy once it runs.
    double seconds(const Op& op) const;
    /// How long the host needs to issue it.
    double hostSeconds(const Op& op) const;

    /// Worked out when first asked for: they are the dearest part.
    const LayerCosts& layers() const
    {
        if (!m_layers)
            m_layers.emplace(m_input, m_activations);
        return *m_layers;
    }

private:
    bool pinned(const Op& op) const;
    double secondsOfOne(const Op& op) const; // payload
    double runningSeconds(const Op& op) const;

    const PlanInput& m_input;
    const ActivationModel& m_activations;
    const SizeTable& m_sizes;
    mutable std::optional<LayerCosts> m_layers;
    CollectiveCosts m_collectives;
    TransferCosts m_transfers;
    HostCosts m_host;
    bool m_vectorizedHostOptimizer;
    bool m_checkpointsToHost;
    bool m_launchBlocking;
    bool m_statesPinned = true;
    bool m_parametersPinned = true;
};

/// The costs of all operations of a schedule over the sizes that `costs` was built for. Initialisation costs nothing.
OpTimes opTimes(const Schedule& schedule, const OpCosts& costs);

} // namespace shardwright
