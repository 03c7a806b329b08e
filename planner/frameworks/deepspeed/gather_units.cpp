#include "planner/frameworks/deepspeed/gather_units.hpp"

#include <map>
#include <tuple>

namespace shardwright {

namespace {

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

class UnitFinder {
public:
    UnitFinder(const ActivationModel& activations, const DeepSpeedOptions& options, bool namesTensors)
        : m_activations(activations), m_options(options), m_namesTensors(namesTensors)
    {
    }

    GatherUnits run()
    {
        define();
        return std::move(m_found);
    }

private:
    void define()
    {
        const Model& model = m_activations.model();
        std::map<std::tuple<int, int, std::vector<bool>>, int> known;
        std::int64_t persistent = 0;
        m_layerBase = 0;
        for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
            const int layerType = model.layers[layer];
            const std::vector<LeafModule>& modules = m_activations.modules(layerType);
            std::vector<int>& unitOf = m_found.unitOf.emplace_back(modules.size(), -1);
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
                                  static_cast<int>(m_found.types.size()));
                if (fresh)
                    m_found.types.push_back(std::move(type));
                unitOf[module] = static_cast<int>(m_found.units.size());
                m_found.units.push_back({at->second, static_cast<int>(layer)});
                if (leaf)
                    experts = unitOf[module];
            }
            m_layerBase += static_cast<std::int32_t>(model.layer(layer).parameters.size());
        }
        std::size_t tensors = 0;
        for (std::size_t unit = 0; unit < m_found.units.size(); ++unit) {
            m_found.tensorBase.push_back(tensors);
            for (const TensorRun& run : m_found.typeOf(static_cast<int>(unit)).tensors)
                tensors += static_cast<std::size_t>(run.count);
        }
        m_found.tensorBase.push_back(tensors);
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
                append(m_found.persistent, run);
                if (m_namesTensors)
                    m_found.persistentTensors.push_back(m_layerBase + index);
            } else {
                append(type.tensors, run);
                if (m_namesTensors)
                    m_found.names.push_back(m_layerBase + index); // no parameter repeats
                type.elements = checkedAdd(type.elements, all);
            }
        }
    }

    const ActivationModel& m_activations;
    const DeepSpeedOptions& m_options;
    bool m_namesTensors;
    std::int32_t m_layerBase = 0; // of the layer in listParameters
    GatherUnits m_found;
};

} // namespace

bool belongsToExperts(ModuleKind kind)
{
    return kind == ModuleKind::Router || kind == ModuleKind::ExpertIn || kind == ModuleKind::ExpertOut ||
           kind == ModuleKind::SharedIn || kind == ModuleKind::SharedOut;
}

void append(TensorRuns& runs, const TensorRun& run)
{
    if (!runs.empty() && runs.back().numel == run.numel && runs.back().frozen == run.frozen)
        runs.back().count += run.count;
    else
        runs.push_back(run);
}

const TensorRun& GatherUnits::tensorRun(int unit, std::size_t tensor) const
{
    for (const TensorRun& run : typeOf(unit).tensors) {
        if (tensor < static_cast<std::size_t>(run.count))
            return run;
        tensor -= static_cast<std::size_t>(run.count);
    }
    return typeOf(unit).tensors.back();
}

GatherUnits gatherUnits(const ActivationModel& activations, const DeepSpeedOptions& options, bool namesTensors)
{
    return UnitFinder(activations, options, namesTensors).run();
}

} // namespace shardwright
