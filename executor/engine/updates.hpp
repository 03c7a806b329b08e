#pragma once

// Clip and Update: what is done to the gradients of the whole step, and the optimizer step.

#include <map>
#include <span>
#include <vector>

#include "core/plan_file.hpp"
#include "executor/comm/transport.hpp"
#include "executor/engine/moves.hpp"
#include "executor/engine/rank_executor.hpp"

namespace shardwright {

class Updates {
public:
    Updates(const ExecutablePlan& plan, const OptimizerSettings& settings, Buffers& buffers, Mover& mover,
            Recorder& recorder, Transport& transport);

    /// Scales `writes` by min(1, limit / norm) as torch.nn.utils.clip_grad_norm_ does. The norm is that of `reads`, of
    /// the writes where there are none: over what the ranks of the action's group hold together, or, without a group,
    /// this rank alone.
    void clip(const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes);
    /// Steps what `reads` hold the gradients of; `step` counts from 1. Without parameters the first moment alone,
    /// without gradients the parameters alone.
    void update(const Action& action, std::span<const BufferId> reads, std::span<const BufferId> writes,
                std::int64_t step);

private:
    /// Elements that the optimizer steps together, as places in buffers.
    struct Stretch {
        BufferId parameter = -1, gradient = -1;
        BufferId moment[2] = {-1, -1};
        std::int64_t parameterAt = 0, gradientAt = 0;
        std::int64_t momentAt[2] = {0, 0};
        std::int64_t count = 0;
        bool decays = false;
    };
    struct Cast {
        BufferId from = -1, to = -1;
    };
    /// What one Update action does.
    struct Steps {
        std::vector<Stretch> stretches;
        std::vector<Cast> casts; // less exact copies, from what was stepped
    };

    Steps stepsOf(std::span<const BufferId> reads, std::span<const BufferId> writes) const;
    /// What `gradients` and `moments` have in common of the first moment.
    void stretchMoments(std::span<const BufferId> gradients, std::span<const BufferId> moments, Steps& steps) const;
    void stretch(BufferId parameter, std::span<const BufferId> gradients, std::span<const BufferId> moments,
                 Steps& steps) const;

    const ExecutablePlan& m_plan;
    OptimizerSettings m_settings;
    Buffers& m_buffers;
    Mover& m_mover;
    Recorder& m_recorder;
    Transport& m_transport;
    std::vector<NamedParameter> m_parameters;
    std::map<const Action*, Steps> m_steps;
};

} // namespace shardwright
