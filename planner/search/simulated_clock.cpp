#include "planner/search/simulated_clock.hpp"

#include <array>
#include <cmath>
#include <map>

#include "planner/activations/activation_model.hpp"
#include "planner/costs/layer_costs.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/parallelism/local_shape.hpp"
#include "planner/parallelism/pipeline_time.hpp"

namespace shardwright::search {

namespace {

/// Computing alone of one micro-batch on one part of the model: forward, and recomputation and backward, of each chunk;
/// the loss where the part has the head. Every schedule has these on its compute stream, one after the other, in every
/// micro-step.
StageSeconds computeSeconds(const PlanInput& part)
{
    const ActivationModel activations(part.model, part.training, computeDtype(part.training.precision),
                                      {false, localShape(part)});
    const LayerCosts costs(part, activations);
    const auto of = [&](OpKind kind, std::size_t layer) {
        Op op;
        op.kind = kind;
        op.layer = static_cast<std::int32_t>(layer);
        return costs.seconds(op);
    };
    const std::size_t chunks = part.slice == nullptr ? 1 : part.slice->chunks.size();
    StageSeconds seconds{std::vector<double>(chunks, 0), std::vector<double>(chunks, 0), 0};
    std::size_t chunk = 0;
    for (std::size_t layer = 0; layer < part.model.layers.size(); ++layer) {
        while (chunk + 1 < chunks && static_cast<int>(layer) >= part.slice->chunks[chunk].end)
            ++chunk;
        seconds.forward[chunk] += of(OpKind::Forward, layer);
        seconds.backward[chunk] += of(OpKind::Recompute, layer) + of(OpKind::Backward, layer);
        if (part.model.layer(layer).kind != LayerKind::Head)
            continue;
        seconds.forward[chunk] += of(OpKind::LossForward, layer);
        seconds.backward[chunk] += of(OpKind::LossBackward, layer);
    }
    return seconds;
}

class SimulatedClock final : public Clock {
public:
    double floor(const PlanInput& input, Structures& structures) override
    {
        const Training& training = input.training;
        const Parallelism& p = input.strategy.parallelism;
        const Key key{training.microBatch,
                      static_cast<std::int64_t>(training.checkpointing),
                      training.checkpointEvery,
                      p.tensor,
                      p.sequenceParallel,
                      p.pipeline,
                      p.virtualStages,
                      p.context,
                      p.expert,
                      needsSlices(input)};
        auto known = m_compute.find(key);
        if (known == m_compute.end())
            known = m_compute.emplace(key, ofMicroStep(input, structures)).first;
        const std::vector<StageSeconds>& stages = known->second;
        if (stages.size() > 1)
            return kRounding * pipelineBound(pipelineShape(p, training.gradientAccumulation), stages, 0);
        return kRounding * stages.front().perMicroBatch() * static_cast<double>(training.gradientAccumulation);
    }

    double seconds(const PlanInput& input, const std::vector<Part>& parts, Structures& structures) override
    {
        if (input.strategy.parallelism.pipeline == 1)
            return parts.front().structure->step().seconds(parts.front().input,
                                                           parts.front().structure->closed.rules());
        const auto step = pipelineStep(input, structures.slicesOf(input));
        return step ? step->seconds : INFINITY;
    }

private:
    using Key = std::array<std::int64_t, 10>;
    // Sums of the same terms in another order differ in their last digits.
    static constexpr double kRounding = 1 - 1e-9;

    /// By pipeline stage.
    static std::vector<StageSeconds> ofMicroStep(const PlanInput& input, Structures& structures)
    {
        if (!needsSlices(input))
            return {computeSeconds(input)};
        std::vector<StageSeconds> stages(static_cast<std::size_t>(input.strategy.parallelism.pipeline));
        for (const ModelSlice& slice : structures.slicesOf(input)) {
            const StageSeconds seconds = computeSeconds(inputOf(input, slice));
            for (const std::int64_t stage : slice.alike)
                stages[static_cast<std::size_t>(stage)] = seconds;
        }
        return stages;
    }

    std::map<Key, std::vector<StageSeconds>> m_compute; // of one micro-step
};

} // namespace

std::unique_ptr<Clock> simulatedClock()
{
    return std::make_unique<SimulatedClock>();
}

} // namespace shardwright::search
