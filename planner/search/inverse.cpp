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
        std::int64_t index = largestByFloor();
        while (index >= 0 && m_proven && passing(index, m_space, Request::Judge::Plan) == std::nullopt)
            --index;
        Inverse inverse;
        inverse.proven = m_proven;
        if (index < 0 || !m_proven)
            return inverse;
        inverse.value = m_range.at(index);
        inverse.atEnd = index + 1 == m_range.count();
        inverse.space = m_space;
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

    /// The scenario at a value, and `space` there.
    void take(std::int64_t value, Scenario& scenario, Space& space) const
    {
        scenario = m_scenario;
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

    /// A candidate of `space` that passes at a value of the range, if there is one.
    std::optional<Assignment> passing(std::int64_t index, Space space, Request::Judge judge)
    {
        Scenario scenario;
        take(m_range.at(index), scenario, space);
        Request request = m_request;
        request.judge = judge;
        request.top = 1;
        request.front = false;
        request.judgeAll = false;
        const Result result = search({scenario, space}, request, m_makeClock);
        m_proven &= result.proven;
        return result.passed.empty() ? std::nullopt : std::optional(result.passed.front());
    }

    /// A part of the space, and the values at which its candidates are not refused.
    struct Part {
        Space space;
        std::int64_t least = 0;
        std::int64_t multipleOf = 1;
    };

    /// The last index at which tensors and overheads of any candidate fit; -1: none.
    std::int64_t largestByFloor()
    {
        std::int64_t best = -1;
        for (const Part& part : parts()) {
            std::int64_t next = nextOf(best + 1, part);
            while (next < m_range.count() && m_proven) {
                const auto candidate = passing(next, part.space, Request::Judge::Floor);
                if (!candidate)
                    break;
                best = largestOf({only(*candidate, part.space), part.least, part.multipleOf}, next);
                next = nextOf(best + 1, part);
            }
        }
        return best;
    }

    /// The last index from `good` on at which the one candidate of `one` fits: it does at `good`. Doubling first, for
    /// ranges reach far beyond what fits; then halving.
    std::int64_t largestOf(const Part& one, std::int64_t good)
    {
        const auto fits = [&](std::int64_t index) {
            return passing(index, one.space, Request::Judge::Floor).has_value();
        };
        std::int64_t bad = m_range.count();
        for (std::int64_t stride = 1; m_proven; stride *= 2) {
            const std::int64_t probe = nextOf(good + stride, one);
            if (probe >= bad)
                break;
            if (!fits(probe)) {
                bad = probe;
                break;
            }
            good = probe;
        }
        while (m_proven) {
            std::int64_t middle = nextOf(good + 1 + (bad - good - 1) / 2, one);
            if (middle >= bad)
                middle = nextOf(good + 1, one);
            if (middle >= bad)
                break;
            (fits(middle) ? good : bad) = middle;
        }
        return good;
    }

    /// What a candidate takes never falls when the value grows, but depths that do not suit a pipeline are refused:
    /// each way to cut the model is looked through on its own, over the depths that suit it. Megatron-LM wants equally
    /// many blocks in every chunk, others one at least (sliceRefusals).
    std::vector<Part> parts() const
    {
        if (m_request.objective != Objective::LargestModel)
            return {{m_space}};
        std::vector<Part> parts;
        for (const std::int64_t pipeline : m_space.pipeline) {
            if (pipeline == 1) {
                parts.push_back({m_space});
                parts.back().space.pipeline = {1};
                continue;
            }
            for (const std::int64_t chunks : m_space.virtualStages)
                for (const Framework framework : m_space.frameworks) {
                    const std::int64_t all = checkedMultiply(pipeline, chunks);
                    parts.push_back({m_space, all, framework == Framework::Megatron ? all : 1});
                    parts.back().space.pipeline = {pipeline};
                    parts.back().space.virtualStages = {chunks};
                    parts.back().space.frameworks = {framework};
                }
        }
        return parts;
    }

    /// The first index from `index` on that is not refused in the part; the end of the range where none is.
    std::int64_t nextOf(std::int64_t index, const Part& part) const
    {
        if (index < m_range.count() && m_range.at(index) < part.least)
            index += ceilDivide(part.least - m_range.at(index), m_range.step);
        for (std::int64_t tried = 0; tried < part.multipleOf && index < m_range.count(); ++tried, ++index)
            if (m_range.at(index) % part.multipleOf == 0)
                return index;
        return m_range.count();
    }

    static Space only(const Assignment& so, Space space)
    {
        space.gpus = {so.gpus};
        space.frameworks = {so.framework};
        space.sharding = {so.sharding};
        space.offload = {so.offload};
        space.zeroPlusPlus = {so.zeroPlusPlus};
        space.shardGroup = {so.shardGroup};
        space.tensor = {so.tensor};
        space.sequenceParallel = {so.sequenceParallel};
        space.context = {so.context};
        if (so.context > 1)
            space.exchange = {so.exchange};
        space.expert = {so.expert};
        space.expertTensor = {so.expertTensor};
        space.checkpointing = {so.checkpointing};
        space.checkpointEvery = {so.checkpointEvery};
        space.checkpointSegment = {so.checkpointSegment};
        space.microBatch = {so.microBatch};
        return space;
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
