#include "planner/search/inverse.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace shardwright::search {

Model withBlocks(const Model& model, std::int64_t blocks)
{
    Model changed = model;
    changed.layers.clear();
    std::int64_t made = 0;
    int lastBlock = -1;
    const auto addMissing = [&] {
        for (; lastBlock >= 0 && made < blocks; ++made)
            changed.layers.push_back(lastBlock);
    };
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        if (model.layer(i).kind == LayerKind::Block) {
            lastBlock = model.layers[i];
            if (made < blocks) {
                changed.layers.push_back(lastBlock);
                ++made;
            }
            continue;
        }
        addMissing();
        changed.layers.push_back(model.layers[i]);
    }
    addMissing();
    changed.architecture.layers = blocks;
    if (blocks != model.architecture.layers)
        changed.id = fmt::format("{} with {} blocks", model.id, blocks);
    return changed;
}

namespace {

class Solver {
public:
    Solver(const Scenario& scenario, const Space& space, const Request& request, const MakeClock& makeClock)
        : m_scenario(scenario), m_space(space), m_request(request), m_makeClock(makeClock), m_range(rangeOf())
    {
    }

    Inverse solve()
    {
        const std::int64_t last = largestByFloor();
        std::int64_t index = last;
        while (index >= 0 && !fits(index, Request::Judge::Plan))
            --index;
        Inverse inverse;
        inverse.proven = m_proven;
        if (index < 0 || !m_proven)
            return inverse;
        inverse.value = m_range.at(index);
        inverse.atEnd = index + 1 == m_range.count();
        take(*inverse.value, inverse.scenario, inverse.space);
        Request request = m_request;
        request.objective = Objective::StepTime;
        inverse.best = search({inverse.scenario, inverse.space}, request, m_makeClock);
        inverse.proven = inverse.best.proven;
        return inverse;
    }

private:
    Range rangeOf() const
    {
        switch (m_request.objective) {
        case Objective::LargestModel: return m_space.layers;
        case Objective::LongestSequence: return m_space.sequence;
        case Objective::LargestMicroBatch: return m_space.microBatches;
        default: throw std::logic_error("not an inverse question");
        }
    }

    /// The scenario and the space at a value.
    void take(std::int64_t value, Scenario& scenario, Space& space) const
    {
        scenario = m_scenario;
        space = m_space;
        if (m_request.objective == Objective::LargestModel) {
            scenario.model = withBlocks(m_scenario.model, value);
            scenario.modelConfig.clear();
        } else if (m_request.objective == Objective::LongestSequence) {
            scenario.training.sequenceLength = value;
        } else {
            scenario.training.microBatch = value;
            space.microBatch = {value};
            space.globalBatch = checkedMultiply(checkedMultiply(value, m_scenario.training.gradientAccumulation),
                                                m_scenario.cluster.gpus());
        }
    }

    bool fits(std::int64_t index, Request::Judge judge)
    {
        Scenario scenario;
        Space space;
        take(m_range.at(index), scenario, space);
        Request request = m_request;
        request.judge = judge;
        request.top = 1;
        request.front = false;
        request.judgeAll = false;
        const Result result = search({scenario, space}, request, m_makeClock);
        m_proven &= result.proven;
        return result.found > 0;
    }

    /// The last index at which tensors and overheads fit; -1: none. Doubling first: ranges reach far beyond what fits.
    std::int64_t largestByFloor()
    {
        std::int64_t good = -1;
        std::int64_t bad = m_range.count();
        for (std::int64_t probe = 0; probe < bad && m_proven; probe = 2 * probe + 1) {
            if (!fits(probe, Request::Judge::Floor)) {
                bad = probe;
                break;
            }
            good = probe;
        }
        while (good + 1 < bad && m_proven) {
            const std::int64_t middle = good + (bad - good) / 2;
            (fits(middle, Request::Judge::Floor) ? good : bad) = middle;
        }
        return good;
    }

    const Scenario& m_scenario;
    const Space& m_space;
    const Request& m_request;
    const MakeClock& m_makeClock;
    Range m_range;
    bool m_proven = true;
};

} // namespace

Inverse solveInverse(const Scenario& scenario, const Space& space, const Request& request, const MakeClock& makeClock)
{
    return Solver(scenario, space, request, makeClock).solve();
}

} // namespace shardwright::search
