#include "planner/frameworks/deepspeed/gather_plan.hpp"

#include <algorithm>
#include <map>
#include <tuple>

namespace shardwright {

namespace {

bool belongsToExperts(ModuleKind kind)
{
    return kind == ModuleKind::Router || kind == ModuleKind::ExpertIn || kind == ModuleKind::ExpertOut ||
           kind == ModuleKind::SharedIn || kind == ModuleKind::SharedOut;
}

bool isLinear(ModuleKind kind)
{
    switch (kind) {
    case ModuleKind::Embedding:
    case ModuleKind::InputNorm:
    case ModuleKind::AttentionNorm:
    case ModuleKind::PostAttentionNorm:
    case ModuleKind::PostMlpNorm:
    case ModuleKind::FinalNorm: return false;
    default: return true;
    }
}

/// The modules without parameters around the leaf modules (decoder layer, attention, MLP, its activation function) have
/// hooks too, so each is a step of the trace in which the coordinator may prefetch.
enum class Surroundings : std::uint8_t { None, Attention, MlpIn, MlpOut };

Surroundings surroundingsOf(ModuleKind kind)
{
    switch (kind) {
    case ModuleKind::AttentionIn:
    case ModuleKind::AttentionNorm:
    case ModuleKind::AttentionOut: return Surroundings::Attention;
    case ModuleKind::MlpIn: return Surroundings::MlpIn;
    case ModuleKind::MlpOut: return Surroundings::MlpOut;
    default: return Surroundings::None;
    }
}

struct Step {
    int unit = -1; // -1: a module without parameters
    Pass pass = Pass::Forward;
    std::size_t lastVisit = 0;
};

void append(TensorRuns& runs, const TensorRun& run)
{
    if (!runs.empty() && runs.back().numel == run.numel && runs.back().frozen == run.frozen)
        runs.back().count += run.count;
    else
        runs.push_back(run);
}

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
        : m_activations(activations), m_visits(visits), m_options(options), m_namesTensors(namesTensors),
          m_callKinds(m_plan.callKinds), m_pieceKinds(m_plan.pieceKinds)
    {
    }

    GatherPlan run()
    {
        defineUnits();
        defineSteps();
        std::vector<bool> secondary(m_plan.units.size(), false);
        m_plan.first = trace(secondary);
        m_plan.later = m_options.hpzPartitionSize > 1 ? trace(secondary) : m_plan.first;
        return std::move(m_plan);
    }

private:
    void defineUnits()
    {
        const Model& model = m_activations.model();
        std::map<std::tuple<int, int, std::vector<bool>>, int> known;
        std::int64_t persistent = 0;
        m_layerBase = 0;
        for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
            const int layerType = model.layers[layer];
            const std::vector<LeafModule>& modules = m_activations.modules(layerType);
            std::vector<int>& unitOf = m_unitOf.emplace_back(modules.size(), -1);
            int experts = -1;
            for (std::size_t module = 0; module < modules.size(); ++module) {
                const bool leaf = belongsToExperts(modules[module].kind);
                if (leaf && experts >= 0) {
                    unitOf[module] = experts;
                    continue;
                }
                std::vector<std::size_t> members{module};
                for (std::size_t other = module + 1; leaf && other < modules.size(); ++other)
                    if (belongsToExperts(modules[other].kind))
                        members.push_back(other);
                GatherUnitType type;
                type.layerType = layerType;
                std::vector<bool> persists;
                for (const std::size_t member : members)
                    addModule(model.layer(layer), modules[member], type, persists, persistent);
                const auto [at, fresh] =
                    known.emplace(std::make_tuple(layerType, static_cast<int>(module), std::move(persists)),
                                  static_cast<int>(m_plan.types.size()));
                if (fresh)
                    m_plan.types.push_back(std::move(type));
                unitOf[module] = static_cast<int>(m_plan.units.size());
                m_plan.units.push_back({at->second, static_cast<int>(layer)});
                if (leaf)
                    experts = unitOf[module];
            }
            m_layerBase += static_cast<std::int32_t>(model.layer(layer).parameters.size());
        }
        for (const GatherUnit& unit : m_plan.units) {
            m_tensorBase.push_back(m_tensors);
            for (const TensorRun& run : typeOf(unit).tensors)
                m_tensors += static_cast<std::size_t>(run.count);
        }
        m_tensorBase.push_back(m_tensors);
    }

    /// parameter_offload.py mark_persistent_parameters: small parameters stay gathered, up to a total.
    void addModule(const LayerType& layer, const LeafModule& module, GatherUnitType& type, std::vector<bool>& persists,
                   std::int64_t& persistent)
    {
        type.tracedElements = checkedAdd(type.tracedElements, module.numel);
        type.linear |= isLinear(module.kind);
        for (const int index : module.parameters) {
            const ParameterSpec& parameter = layer.parameters[static_cast<std::size_t>(index)];
            const std::int64_t all = checkedMultiply(parameter.numel, parameter.repeat);
            const bool stays = parameter.numel <= m_options.paramPersistenceThreshold &&
                               all <= m_options.modelPersistenceThreshold - persistent;
            persists.push_back(stays);
            const TensorRun run{parameter.numel, parameter.repeat, !parameter.trainable};
            if (stays) {
                persistent = checkedAdd(persistent, all);
                append(m_plan.persistent, run);
                if (m_namesTensors)
                    m_plan.persistentTensors.push_back(m_layerBase + index);
            } else {
                append(type.tensors, run);
                if (m_namesTensors)
                    m_names.push_back(m_layerBase + index); // no parameter repeats
                type.elements = checkedAdd(type.elements, all);
            }
        }
    }

    const GatherUnitType& typeOf(const GatherUnit& unit) const
    {
        return m_plan.types[static_cast<std::size_t>(unit.type)];
    }
    const GatherUnitType& typeOfUnit(int unit) const { return typeOf(m_plan.units[static_cast<std::size_t>(unit)]); }

    void defineSteps()
    {
        int lastUnit = -1;
        int lastLayer = -1;
        Pass lastPass = Pass::Forward;
        Surroundings last = Surroundings::None;
        m_recomputes.assign(m_activations.model().layers.size(), false);
        for (std::size_t i = 0; i < m_visits.size(); ++i) {
            const Visit& visit = m_visits[i];
            const auto layer = static_cast<std::size_t>(visit.layer);
            const int unit = m_unitOf[layer][static_cast<std::size_t>(visit.module)];
            const LeafModule& module =
                m_activations.modules(m_activations.model().layers[layer])[static_cast<std::size_t>(visit.module)];
            if (visit.pass == Pass::Recompute)
                m_recomputes[layer] = true;
            const bool sameLayer = visit.layer == lastLayer && visit.pass == lastPass;
            if (sameLayer && unit == lastUnit && belongsToExperts(module.kind)) {
                m_steps.back().lastVisit = i;
                m_stepOfVisit.push_back(m_steps.size() - 1);
                continue;
            }
            const Surroundings now = surroundingsOf(module.kind);
            if (!sameLayer && m_activations.model().layer(layer).kind == LayerKind::Block)
                m_steps.push_back({-1, visit.pass, i});
            if (now != Surroundings::None && (now != last || !sameLayer))
                m_steps.push_back({-1, visit.pass, i});
            m_steps.push_back({unit, visit.pass, i});
            m_stepOfVisit.push_back(m_steps.size() - 1);
            lastUnit = unit;
            lastLayer = visit.layer;
            lastPass = visit.pass;
            last = now;
        }
        for (std::size_t i = 0; i < m_visits.size(); ++i)
            m_plan.endsUnit.push_back(m_steps[m_stepOfVisit[i]].lastVisit == i);

        m_traced.assign(m_steps.size() + 1, 0);
        for (std::size_t i = 0; i < m_steps.size(); ++i)
            m_traced[i + 1] =
                checkedAdd(m_traced[i], m_steps[i].unit < 0 ? 0 : typeOfUnit(m_steps[i].unit).tracedElements);
        m_nextUse.assign(m_steps.size(), m_steps.size());
        std::vector<std::size_t> next(m_plan.units.size(), m_steps.size());
        for (std::size_t i = m_steps.size(); i-- > 0;)
            if (m_steps[i].unit >= 0) {
                m_nextUse[i] = next[static_cast<std::size_t>(m_steps[i].unit)];
                next[static_cast<std::size_t>(m_steps[i].unit)] = i;
            }
    }

    /// A tensor in the coordinator's queue, in order of the trace.
    struct QueuePosition {
        std::size_t step = 0;
        std::size_t tensor = 0; // within the unit
    };

    GatherTrace trace(std::vector<bool>& secondary)
    {
        m_trace = {};
        m_secondary = &secondary;
        m_gathered.assign(m_tensors, false);
        m_fetchedFor.assign(m_tensors, -1);
        m_piecesOf.assign(m_plan.units.size(), {});
        m_savedOf.assign(m_plan.units.size(), {});
        m_waitingFor.assign(m_plan.units.size(), {});
        m_callState.clear();
        m_queue = {};
        m_available = 0;
        m_live = 0;
        std::size_t step = 0;
        for (std::size_t visit = 0; visit < m_visits.size(); ++visit) {
            for (; step <= m_stepOfVisit[visit]; ++step)
                fetch(step);
            m_trace.beforeEnd.push_back(static_cast<std::uint32_t>(m_trace.commands.size()));
            if (m_plan.endsUnit[visit])
                release(m_stepOfVisit[visit]);
            m_trace.afterEnd.push_back(static_cast<std::uint32_t>(m_trace.commands.size()));
        }
        return std::move(m_trace);
    }

    void command(GatherCommand::Kind kind, std::size_t index)
    {
        m_trace.commands.push_back({kind, static_cast<std::int32_t>(index)});
    }

    std::size_t tensorsOf(int unit) const
    {
        return m_tensorBase[static_cast<std::size_t>(unit) + 1] - m_tensorBase[static_cast<std::size_t>(unit)];
    }
    std::size_t tensorId(int unit, std::size_t tensor) const
    {
        return m_tensorBase[static_cast<std::size_t>(unit)] + tensor;
    }
    const TensorRun& tensorRun(int unit, std::size_t tensor) const
    {
        for (const TensorRun& run : typeOfUnit(unit).tensors) {
            if (tensor < static_cast<std::size_t>(run.count))
                return run;
            tensor -= static_cast<std::size_t>(run.count);
        }
        return typeOfUnit(unit).tensors.back();
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
        const int unit = m_steps[step].unit;
        if (unit >= 0) {
            std::vector<Wanted> wanted;
            for (std::size_t tensor = 0; tensor < tensorsOf(unit); ++tensor)
                want(wanted, unit, tensor);
            gather(wanted);
            waitFor(unit);
            takeFromQueue(step, unit);
        }
        prefetch();
    }

    bool want(std::vector<Wanted>& wanted, int unit, std::size_t tensor)
    {
        const std::size_t id = tensorId(unit, tensor);
        if (m_gathered[id])
            return false;
        m_gathered[id] = true;
        if (wanted.empty() || wanted.back().unit != unit)
            wanted.push_back({unit, {}, {}});
        TensorRun one = tensorRun(unit, tensor);
        one.count = 1;
        append(wanted.back().tensors, one);
        if (m_namesTensors)
            wanted.back().names.push_back(m_names[id]);
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

    bool queueHasMore() const { return m_queue.step < m_steps.size(); }

    /// Skips steps without tensors.
    void settleQueue()
    {
        while (queueHasMore() &&
               (m_steps[m_queue.step].unit < 0 || m_queue.tensor >= tensorsOf(m_steps[m_queue.step].unit)))
            m_queue = {m_queue.step + 1, 0};
    }

    void takeFromQueue(std::size_t step, int unit)
    {
        std::size_t missing = 0;
        for (std::size_t tensor = 0; tensor < tensorsOf(unit); ++tensor)
            if (m_fetchedFor[tensorId(unit, tensor)] < static_cast<std::int64_t>(step))
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
        std::int64_t& fetchedFor = m_fetchedFor[tensorId(m_steps[m_queue.step].unit, m_queue.tensor)];
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
            const int unit = m_steps[m_queue.step].unit;
            mark();
            if (want(wanted, unit, m_queue.tensor))
                elements += tensorRun(unit, m_queue.tensor).numel;
            ++m_queue.tensor;
        }
        gather(wanted);
    }

    /// coordinator release_sub_module, __params_to_release: kept when the prefetcher has passed over a later use, or
    /// when the next use is less than max_reuse_distance elements of the trace away.
    void release(std::size_t step)
    {
        const int unit = m_steps[step].unit;
        const auto index = static_cast<std::size_t>(unit);
        const std::size_t next = m_nextUse[step];
        const bool reused = next < m_steps.size() && m_traced[next] - m_traced[step + 1] < m_options.maxReuseDistance;
        bool passedOver = false;
        for (std::size_t tensor = 0; tensor < tensorsOf(unit); ++tensor)
            passedOver |= m_fetchedFor[tensorId(unit, tensor)] > static_cast<std::int64_t>(step) + 1;
        if (!reused && !passedOver && !m_piecesOf[index].empty()) {
            const std::int64_t elements = typeOfUnit(unit).elements;
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
            for (std::size_t tensor = 0; tensor < tensorsOf(unit); ++tensor)
                m_gathered[tensorId(unit, tensor)] = false;
            m_available -= elements;
            m_live -= elements;
        }
        if (m_steps[step].pass != Pass::Backward)
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
        if (replaced || !typeOfUnit(m_steps[step].unit).linear)
            return false;
        const int layer = m_plan.units[static_cast<std::size_t>(m_steps[step].unit)].layer;
        return m_steps[step].pass == Pass::Recompute ||
               (m_steps[step].pass == Pass::Forward && !m_recomputes[static_cast<std::size_t>(layer)]);
    }

    struct CallState {
        bool waited = false;
        int unitsLeft = 0;
    };

    const ActivationModel& m_activations;
    const std::vector<Visit>& m_visits;
    const DeepSpeedOptions& m_options;
    bool m_namesTensors;
    std::int32_t m_layerBase = 0;      // of the layer in listParameters
    std::vector<std::int32_t> m_names; // by tensor that is gathered
    GatherPlan m_plan;
    Kinds m_callKinds;
    Kinds m_pieceKinds;
    std::vector<std::vector<int>> m_unitOf; // by layer and module
    std::vector<std::size_t> m_tensorBase;  // by unit
    std::size_t m_tensors = 0;
    std::vector<Step> m_steps;
    std::vector<std::size_t> m_stepOfVisit;
    std::vector<std::int64_t> m_traced; // elements of the trace before each step
    std::vector<std::size_t> m_nextUse; // step that uses the same unit next
    std::vector<bool> m_recomputes;     // by layer

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
