#include "planner/search/simulated_clock.hpp"

#include <cmath>
#include <map>
#include <tuple>

#include "planner/costs/op_costs.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/frameworks/sharding.hpp"
#include "planner/step_form.hpp"

namespace shardwright::search {

namespace {

/// Seconds of all layers of the model, once forward and once backward, recomputation and loss included: every schedule
/// has them on its compute stream, one after the other, in every micro-step.
double computeSeconds(const PlanInput& input)
{
    const ActivationModel activations(input.model, input.training, computeDtype(input.training.precision));
    const LayerCosts costs(input, activations);
    double seconds = 0;
    const auto add = [&](OpKind kind, std::int32_t layer) {
        Op op;
        op.kind = kind;
        op.layer = layer;
        seconds += costs.seconds(op);
    };
    for (std::size_t layer = 0; layer < input.model.layers.size(); ++layer)
        for (const OpKind pass : {OpKind::Forward, OpKind::Recompute, OpKind::Backward})
            add(pass, static_cast<std::int32_t>(layer));
    add(OpKind::LossForward, -1);
    add(OpKind::LossBackward, -1);
    return seconds;
}

/// Compiled schedules kept at a time: some 100 kB each for the deepest models.
constexpr std::size_t kMostSchedules = 256;

class SimulatedClock final : public Clock {
public:
    double floor(const PlanInput& input) override
    {
        const Training& training = input.training;
        const Key key{training.microBatch, static_cast<int>(training.checkpointing), training.checkpointEvery};
        const auto known = m_compute.find(key);
        const double once = known != m_compute.end() ? known->second : (m_compute[key] = computeSeconds(input));
        return once * static_cast<double>(training.gradientAccumulation) * kRounding;
    }

    double seconds(const PlanInput& input, const std::pair<Path, int>& setting) override
    {
        Structure& structure = structureOf(input, setting);
        structure.rules->resize(input);
        return structure.form.seconds(input, *structure.rules);
    }

private:
    using Key = std::tuple<std::int64_t, int, int>;
    // Sums of the same terms in another order differ in their last digits.
    static constexpr double kRounding = 1 - 1e-9;

    struct Structure {
        explicit Structure(std::unique_ptr<FrameworkRules> made) : rules(std::move(made)), form(*rules) {}
        std::unique_ptr<FrameworkRules> rules;
        StepForm form;
    };

    Structure& structureOf(const PlanInput& input, const std::pair<Path, int>& setting)
    {
        if (const auto known = m_settings.find(setting); known != m_settings.end())
            return *known->second;
        auto rules = makeRules(input);
        const std::string key = rules->structureKey();
        auto structure = m_structures.find(key);
        if (structure == m_structures.end()) {
            if (m_structures.size() >= kMostSchedules) {
                m_settings.clear();
                m_structures.clear();
            }
            structure = m_structures.emplace(key, std::make_unique<Structure>(std::move(rules))).first;
        }
        return *(m_settings[setting] = structure->second.get());
    }

    std::map<Key, double> m_compute; // seconds of one micro-step
    std::map<std::string, std::unique_ptr<Structure>> m_structures;
    std::map<std::pair<Path, int>, Structure*> m_settings;
};

} // namespace

std::unique_ptr<Clock> simulatedClock()
{
    return std::make_unique<SimulatedClock>();
}

} // namespace shardwright::search
