#include "planner/search/inverse.hpp"

#include <algorithm>
#include <stdexcept>

namespace shardwright::search {

namespace {

class Solver {
public:
    Solver(const Scenario& scenario, const Space& space, const Request& request, const MakeClock& makeClock)
        : m_scenario(scenario), m_space(space), m_request(request), m_makeClock(makeClock), m_range(rangeOf())
    {
    }

    Inverse solve()
    {
        std::vector<Width> widths = widthsByFloor();
        Inverse inverse;
        while (m_proven) {
            // Of what may still fit, the most first. A width of equal size comes after those before it.
            const auto width = std::max_element(widths.begin(), widths.end(), [this](const Width& a, const Width& b) {
                return sizeAt(a, a.last) < sizeAt(b, b.last);
            });
            if (width->last < 0)
                return inverse;
            if (passing(*width, width->last, m_space, Request::Judge::Plan)) {
                answer(*width, inverse);
                return inverse;
            }
            --width->last;
        }
        inverse.proven = false;
        return inverse;
    }

private:
    /// A width of the model, or the one that the scenario has, and the last index of the range that may fit.
    struct Width {
        Model model;
        std::int64_t last = -1;
    };

    Range rangeOf() const
    {
        switch (m_request.objective) {
        case Objective::LargestModel: return m_space.layers;
        case Objective::LongestSequence: return m_space.sequence;
        case Objective::LargestMicroBatch: return m_space.microBatches;
        default: throw std::logic_error("not an inverse question");
        }
    }

    void answer(const Width& width, Inverse& inverse)
    {
        inverse.value = m_range.at(width.last);
        inverse.atEnd = width.last + 1 == m_range.count() && sizeAt(width, width.last) == m_most;
        inverse.space = m_space;
        take(width, *inverse.value, inverse.scenario, inverse.space);
        Request request = m_request;
        request.objective = Objective::StepTime;
        inverse.best = search({inverse.scenario, inverse.space}, request, m_makeClock);
        inverse.proven = inverse.best.proven;
    }

    /// The scenario at a value, and `space` there.
    void take(const Width& width, std::int64_t value, Scenario& scenario, Space& space) const
    {
        scenario = m_scenario;
        if (m_request.objective == Objective::LargestModel) {
            scenario.model = withBlocks(width.model, value);
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

    /// What is to be the largest.
    std::int64_t sizeAt(const Width& width, std::int64_t index) const
    {
        if (index < 0 || m_request.objective != Objective::LargestModel)
            return index;
        return withBlocks(width.model, m_range.at(index)).parameters();
    }

    /// The first index of a width at which it is larger than `size`.
    std::int64_t firstAbove(const Width& width, std::int64_t size) const
    {
        std::int64_t below = -1;
        for (std::int64_t above = m_range.count(); above - below > 1;) {
            const std::int64_t middle = below + (above - below) / 2;
            (sizeAt(width, middle) > size ? above : below) = middle;
        }
        return below + 1;
    }

    /// Every width with the last index at which it may fit: none that is larger does.
    std::vector<Width> widthsByFloor()
    {
        std::vector<Width> widths;
        if (m_request.objective != Objective::LargestModel)
            widths.push_back({m_scenario.model});
        else
            for (const std::int64_t heads : m_space.heads)
                if (auto model = withHeads(m_scenario.model, heads))
                    widths.push_back({std::move(*model)});
        std::int64_t largest = -1;
        for (Width& width : widths) {
            m_most = std::max(m_most, sizeAt(width, m_range.count() - 1));
            width.last = largestByFloor(width, firstAbove(width, largest) - 1);
            largest = std::max(largest, sizeAt(width, width.last));
        }
        return widths;
    }

    /// A candidate of `space` that passes at a value of the range, if there is one.
    std::optional<Assignment> passing(const Width& width, std::int64_t index, Space space, Request::Judge judge)
    {
        Scenario scenario;
        take(width, m_range.at(index), scenario, space);
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

    /// The last index above `best` at which tensors and overheads of any candidate fit; `best` where none do.
    std::int64_t largestByFloor(const Width& width, std::int64_t best)
    {
        for (const Part& part : parts()) {
            std::int64_t next = nextOf(best + 1, part);
            while (next < m_range.count() && m_proven) {
                const auto candidate = passing(width, next, part.space, Request::Judge::Floor);
                if (!candidate)
                    break;
                best = largestOf(width, {only(*candidate, part.space), part.least, part.multipleOf}, next);
                next = nextOf(best + 1, part);
            }
        }
        return best;
    }

    /// The last index from `good` on at which the one candidate of `one` fits: it does at `good`. Doubling first, for
    /// ranges reach far beyond what fits; then halving.
    std::int64_t largestOf(const Width& width, const Part& one, std::int64_t good)
    {
        const auto fits = [&](std::int64_t index) {
            return passing(width, index, one.space, Request::Judge::Floor).has_value();
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

    /// What a candidate takes never falls when the value grows, but depths that do not suit a pipeline or a checkpoint
    /// of several blocks are refused: each way to cut the model is looked through on its own, over the depths that suit
    /// it. Megatron-LM wants equally many blocks in every chunk, others one at least (sliceRefusals).
    std::vector<Part> parts() const
    {
        if (m_request.objective != Objective::LargestModel)
            return {{m_space}};
        std::vector<Part> parts;
        for (const std::int64_t segment : m_space.checkpointSegment)
            for (const std::int64_t pipeline : m_space.pipeline)
                for (const std::int64_t chunks :
                     pipeline > 1 ? m_space.virtualStages : std::vector<std::int64_t>{m_space.virtualStages.front()})
                    for (const Framework framework : m_space.frameworks) {
                        Part part{m_space};
                        part.space.checkpointSegment = {segment};
                        part.space.pipeline = {pipeline};
                        part.space.virtualStages = {chunks};
                        part.space.frameworks = {framework};
                        if (segment > 1)
                            part.space.checkpointing = {Checkpointing::Full};
                        const std::int64_t cuts = pipeline > 1 ? checkedMultiply(pipeline, chunks) : 1;
                        part.least = checkedMultiply(cuts, segment);
                        part.multipleOf = framework == Framework::Megatron || segment > 1 ? part.least : 1;
                        parts.push_back(std::move(part));
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
    std::int64_t m_most = 0; // size of the largest that is declared
    bool m_proven = true;
};

} // namespace

Inverse solveInverse(const Scenario& scenario, const Space& space, const Request& request, const MakeClock& makeClock)
{
    return Solver(scenario, space, request, makeClock).solve();
}

} // namespace shardwright::search
