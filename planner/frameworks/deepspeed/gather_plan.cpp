#include "planner/frameworks/deepspeed/gather_plan.hpp"

#include <algorithm>
#include <map>

#include "planner/frameworks/deepspeed/gather_steps.hpp"

namespace shardwright {

namespace {

std::int64_t elementsOf(const TensorRuns& runs)
{
    std::int64_t total = 0;
    for (const TensorRun& run : runs)
        total = checkedAdd(total, checkedMultiply(run.numel, run.count));
    return total;
}

/// Gives equal lists of tensors one number.
class Kinds {
public:
    explicit Kinds(std::vector<TensorRuns>& kinds) : m_kinds(kinds) {}
    int of(const TensorRuns& runs)
    {
        const auto [known, fresh] = m_known.emplace(runs, static_cast<int>(m_kinds.size()));
        if (fresh)
            m_kinds.push_back(runs);
        return known->second;
    }

private:
    std::vector<TensorRuns>& m_kinds;
    std::map<TensorRuns, int> m_known;
};

class Planner {
public:
    Planner(const ActivationModel& activations, const std::vector<Visit>& visits, const DeepSpeedOptions& options,
            bool namesTensors)
        : m_options(options), m_namesTensors(namesTensors), m_units(gatherUnits(activations, options, namesTensors)),
          m_trail(gatherSteps(activations, visits, m_units)), m_visits(visits.size()), m_callKinds(m_plan.callKinds),
          m_pieceKinds(m_plan.pieceKinds)
    {
    }

    GatherPlan run()
    {
        std::vector<bool> secondary(m_units.units.size(), false);
        m_plan.first = trace(secondary);
        m_plan.later = m_options.hpzPartitionSize > 1 ? trace(secondary) : m_plan.first;
        for (std::size_t visit = 0; visit < m_visits; ++visit)
            m_plan.endsUnit.push_back(m_trail.endsUnit(visit));
        m_plan.types = std::move(m_units.types);
        m_plan.units = std::move(m_units.units);
        m_plan.persistent = std::move(m_units.persistent);
        m_plan.persistentTensors = std::move(m_units.persistentTensors);
        return std::move(m_plan);
    }

private:
    /// A tensor in the coordinator's queue, in order of the trace.
    struct QueuePosition {
        std::size_t step = 0;
        std::size_t tensor = 0; // within the unit
    };

    GatherTrace trace(std::vector<bool>& secondary)
    {
        m_trace = {};
        m_secondary = &secondary;
        m_gathered.assign(m_units.tensors(), false);
        m_fetchedFor.assign(m_units.tensors(), -1);
        m_piecesOf.assign(m_units.units.size(), {});
        m_savedOf.assign(m_units.units.size(), {});
        m_waitingFor.assign(m_units.units.size(), {});
        m_callState.clear();
        m_queue = {};
        m_available = 0;
        m_live = 0;
        std::size_t step = 0;
        for (std::size_t visit = 0; visit < m_visits; ++visit) {
            for (; step <= m_trail.stepOfVisit[visit]; ++step)
                fetch(step);
            m_trace.beforeEnd.push_back(static_cast<std::uint32_t>(m_trace.commands.size()));
            if (m_trail.endsUnit(visit))
                release(m_trail.stepOfVisit[visit]);
            m_trace.afterEnd.push_back(static_cast<std::uint32_t>(m_trace.commands.size()));
        }
        return std::move(m_trace);
    }

    void command(GatherCommand::Kind kind, std::size_t index)
    {
        m_trace.commands.push_back({kind, static_cast<std::int32_t>(index)});
    }

    /// Tensors of one unit that a gather call brings.
    struct Wanted {
        int unit = -1;
        TensorRuns tensors;
        std::vector<std::int32_t> names;
    };

    /// coordinator fetch_sub_module
    void fetch(std::size_t step)
    {
        const int unit = m_trail.steps[step].unit;
        if (unit >= 0) {
            std::vector<Wanted> wanted;
            for (std::size_t tensor = 0; tensor < m_units.tensorsOf(unit); ++tensor)
                want(wanted, unit, tensor);
            gather(wanted);
            waitFor(unit);
            takeFromQueue(step, unit);
        }
        prefetch();
    }

    bool want(std::vector<Wanted>& wanted, int unit, std::size_t tensor)
    {
        const std::size_t id = m_units.tensorId(unit, tensor);
        if (m_gathered[id])
            return false;
        m_gathered[id] = true;
        if (wanted.empty() || wanted.back().unit != unit)
            wanted.push_back({unit, {}, {}});
        TensorRun one = m_units.tensorRun(unit, tensor);
        one.count = 1;
        append(wanted.back().tensors, one);
        if (m_namesTensors)
            wanted.back().names.push_back(m_units.names[id]);
        return true;
    }

    /// Tensors with a secondary shard are gathered apart from those without (coordinator __all_gather_params_).
    void gather(const std::vector<Wanted>& wanted)
    {
        for (const bool secondary : {true, false}) {
            TensorRuns all;
            const std::size_t firstPiece = m_trace.pieces.size();
            for (const Wanted& one : wanted) {
                if ((*m_secondary)[static_cast<std::size_t>(one.unit)] != secondary)
                    continue;
                for (const TensorRun& run : one.tensors)
                    append(all, run);
                const std::size_t piece = m_trace.pieces.size();
                m_trace.pieces.push_back({m_pieceKinds.of(one.tensors), one.unit, one.names});
                m_piecesOf[static_cast<std::size_t>(one.unit)].push_back(piece);
                m_waitingFor[static_cast<std::size_t>(one.unit)].push_back(m_trace.calls.size());
            }
            if (all.empty())
                continue;
            const std::int64_t elements = elementsOf(all);
            m_available = checkedAdd(m_available, elements);
            m_live = checkedAdd(m_live, elements);
            m_trace.mostLiveElements = std::max(m_trace.mostLiveElements, m_live);
            m_trace.gatheredElements = checkedAdd(m_trace.gatheredElements, elements);
            command(GatherCommand::Kind::Gather, m_trace.calls.size());
            m_callState.push_back({false, static_cast<int>(m_trace.pieces.size() - firstPiece)});
            m_trace.calls.push_back({m_callKinds.of(all), static_cast<std::int32_t>(firstPiece),
                                     static_cast<std::int32_t>(m_trace.pieces.size()), secondary});
        }
    }

    void waitFor(int unit)
    {
        std::vector<std::size_t>& calls = m_waitingFor[static_cast<std::size_t>(unit)];
        for (const std::size_t call : calls) {
            CallState& state = m_callState[call];
            if (!state.waited)
                command(GatherCommand::Kind::Wait, call);
            state.waited = true;
            if (--state.unitsLeft == 0)
                command(GatherCommand::Kind::DropFlat, call);
        }
        calls.clear();
    }

    bool queueHasMore() const { return m_queue.step < m_trail.steps.size(); }

    /// Skips steps without tensors.
    void settleQueue()
    {
        while (queueHasMore() && (m_trail.steps[m_queue.step].unit < 0 ||
                                  m_queue.tensor >= m_units.tensorsOf(m_trail.steps[m_queue.step].unit)))
            m_queue = {m_queue.step + 1, 0};
    }

    void takeFromQueue(std::size_t step, int unit)
    {
        std::size_t missing = 0;
        for (std::size_t tensor = 0; tensor < m_units.tensorsOf(unit); ++tensor)
            if (m_fetchedFor[m_units.tensorId(unit, tensor)] < static_cast<std::int64_t>(step))
                ++missing;
        for (; missing > 0; --missing) {
            settleQueue();
            if (!queueHasMore())
                return;
            mark();
            ++m_queue.tensor;
        }
    }

    void mark()
    {
        std::int64_t& fetchedFor = m_fetchedFor[m_units.tensorId(m_trail.steps[m_queue.step].unit, m_queue.tensor)];
        fetchedFor = std::max(fetchedFor, static_cast<std::int64_t>(m_queue.step));
    }

    void prefetch()
    {
        if (m_options.prefetchBucketSize <= 0)
            return;
        const std::int64_t budget =
            std::min(checkedSubtract(m_options.maxLiveParameters, m_available), m_options.prefetchBucketSize);
        std::vector<Wanted> wanted;
        std::int64_t elements = 0;
        while (elements < budget) {
            settleQueue();
            if (!queueHasMore())
                break;
            const int unit = m_trail.steps[m_queue.step].unit;
            mark();
            if (want(wanted, unit, m_queue.tensor))
                elements += m_units.tensorRun(unit, m_queue.tensor).numel;
            ++m_queue.tensor;
        }
        gather(wanted);
    }

    /// coordinator release_sub_module, __params_to_release: kept when the prefetcher has passed over a later use, or
    /// when the next use is less than max_reuse_distance elements of the trace away.
    void release(std::size_t step)
    {
        const int unit = m_trail.steps[step].unit;
        const auto index = static_cast<std::size_t>(unit);
        const std::size_t next = m_trail.nextUse[step];
        const bool reused =
            next < m_trail.steps.size() && m_trail.traced[next] - m_trail.traced[step + 1] < m_options.maxReuseDistance;
        bool passedOver = false;
        for (std::size_t tensor = 0; tensor < m_units.tensorsOf(unit); ++tensor)
            passedOver |= m_fetchedFor[m_units.tensorId(unit, tensor)] > static_cast<std::int64_t>(step) + 1;
        if (!reused && !passedOver && !m_piecesOf[index].empty()) {
            const std::int64_t elements = m_units.typeOf(unit).elements;
            if (m_options.hpzPartitionSize > 1 && !(*m_secondary)[index]) {
                command(GatherCommand::Kind::MakeSecondary, index);
                (*m_secondary)[index] = true;
            }
            for (const std::size_t piece : m_piecesOf[index])
                if (savesWeights(step))
                    m_savedOf[index].push_back(piece);
                else
                    command(GatherCommand::Kind::Free, piece);
            m_piecesOf[index].clear();
            for (std::size_t tensor = 0; tensor < m_units.tensorsOf(unit); ++tensor)
                m_gathered[m_units.tensorId(unit, tensor)] = false;
            m_available -= elements;
            m_live -= elements;
        }
        if (m_trail.steps[step].pass != Pass::Backward)
            return;
        for (const std::size_t piece : m_savedOf[index])
            command(GatherCommand::Kind::Free, piece);
        m_savedOf[index].clear();
    }

    /// zero.Init replaces torch.nn.functional.linear (memory_efficient_linear) by one that does not keep the gathered
    /// weight for backward.
    /// A model that was built outside zero.Init runs torch's own, whose saved weight keeps the memory alive although
    /// the parameter has been released.
    bool savesWeights(std::size_t step) const
    {
        const bool replaced = m_options.zero3Init && m_options.memoryEfficientLinear;
        if (replaced || !m_units.typeOf(m_trail.steps[step].unit).linear)
            return false;
        const int layer = m_units.units[static_cast<std::size_t>(m_trail.steps[step].unit)].layer;
        return m_trail.steps[step].pass == Pass::Recompute ||
               (m_trail.steps[step].pass == Pass::Forward && !m_trail.recomputes[static_cast<std::size_t>(layer)]);
    }

    struct CallState {
        bool waited = false;
        int unitsLeft = 0;
    };

    const DeepSpeedOptions& m_options;
    bool m_namesTensors;
    GatherUnits m_units;
    GatherSteps m_trail;
    std::size_t m_visits;
    GatherPlan m_plan;
    Kinds m_callKinds;
    Kinds m_pieceKinds;

    GatherTrace m_trace;
    std::vector<bool>* m_secondary = nullptr; // by unit: has a secondary shard
    std::vector<bool> m_gathered;             // by tensor
    std::vector<std::int64_t> m_fetchedFor;   // by tensor: latest step it has been fetched for
    std::vector<std::vector<std::size_t>> m_piecesOf;
    std::vector<std::vector<std::size_t>> m_savedOf;
    std::vector<std::vector<std::size_t>> m_waitingFor;
    std::vector<CallState> m_callState;
    QueuePosition m_queue;
    std::int64_t m_available = 0;
    std::int64_t m_live = 0;
};

} // namespace

GatherPlan planGathers(const ActivationModel& activations, const std::vector<Visit>& visits,
                       const DeepSpeedOptions& options, bool namesTensors)
{
    return Planner(activations, visits, options, namesTensors).run();
}

} // namespace shardwright
